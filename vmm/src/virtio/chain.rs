//! A descriptor chain as pieces of host memory, and system calls straight into or out of them (no bounce buffer).
//!
//! Owned by one worker each, reused from chain to chain. Knows bounds and order (VIRTIO 1.3 section 2.7.4.2), nothing of
//! what a chain means.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, GuestMemoryMmap, Permissions, VolatileSlice};

/// Most pieces that a chain may fall into: what one system call takes (`IOV_MAX`, readv(2)).
pub const MAX_PIECES: usize = 1024;

/// Why a chain is not used as the driver meant it. The driver is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More pieces than [`MAX_PIECES`].
    #[error("a descriptor chain has more than {MAX_PIECES} pieces")]
    TooManyPieces,
    /// A piece is outside guest memory.
    #[error("a descriptor points outside guest memory")]
    OutsideMemory,
    /// A device-readable descriptor follows a device-writable one.
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
}

/// The pieces of one chain, in order; empty ones are left out.
#[derive(Debug, Default)]
pub struct ChainParts<'m> {
    /// Device-readable pieces.
    pub readable: Vec<VolatileSlice<'m>>,
    /// Device-writable pieces.
    pub writable: Vec<VolatileSlice<'m>>,
}

impl<'m> ChainParts<'m> {
    /// Replaces the pieces by those of `chain`.
    ///
    /// # Errors
    /// The driver's mistake; no pieces are left then.
    pub fn fill(
        &mut self,
        memory: &'m GuestMemoryMmap<()>,
        chain: DescriptorChain<&'m GuestMemoryMmap<()>>,
    ) -> Result<(), ChainFault> {
        self.clear();
        let filled = self.fill_unchecked(memory, chain);
        if filled.is_err() {
            self.clear();
        }
        filled
    }

    fn fill_unchecked(
        &mut self,
        memory: &'m GuestMemoryMmap<()>,
        chain: DescriptorChain<&'m GuestMemoryMmap<()>>,
    ) -> Result<(), ChainFault> {
        // Descriptors are counted too, because empty ones make no piece but cost time.
        for (count, descriptor) in chain.enumerate() {
            let (pieces, access) = if descriptor.is_write_only() {
                (&mut self.writable, Permissions::Write)
            } else if self.writable.is_empty() {
                (&mut self.readable, Permissions::Read)
            } else {
                return Err(ChainFault::Order);
            };
            if count >= MAX_PIECES {
                return Err(ChainFault::TooManyPieces);
            }
            let slices = memory
                .get_slices(descriptor.addr(), descriptor.len() as usize, access)
                .map_err(|_| ChainFault::OutsideMemory)?;
            for slice in slices {
                if pieces.len() >= MAX_PIECES {
                    return Err(ChainFault::TooManyPieces);
                }
                pieces.push(slice.map_err(|_| ChainFault::OutsideMemory)?);
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// Sum of the lengths, in bytes. At most 4 GiB, because a longer chain ends early.
#[must_use]
pub fn total_len(pieces: &[VolatileSlice<'_>]) -> usize {
    pieces.iter().map(VolatileSlice::len).sum()
}

/// Copies out of the pieces from byte `offset` on; returns how much there was, at most `into.len()`.
pub fn copy_out(pieces: &[VolatileSlice<'_>], offset: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in window(pieces, offset, into.len()) {
        let Some(rest) = into.get_mut(done..) else {
            break;
        };
        done += piece.copy_to(rest);
    }
    done
}

/// Copies into the pieces from byte `offset` on; returns how much fitted, at most `from.len()`.
pub fn copy_in(pieces: &[VolatileSlice<'_>], offset: usize, from: &[u8]) -> usize {
    let mut done = 0;
    for piece in window(pieces, offset, from.len()) {
        let Some(rest) = from.get(done..) else {
            break;
        };
        let part = rest.get(..piece.len()).unwrap_or(rest);
        piece.copy_from(part);
        done += part.len();
    }
    done
}

/// The pieces cut to `len` bytes from byte `offset` on.
pub fn window<'p, 'm>(
    pieces: &'p [VolatileSlice<'m>],
    offset: usize,
    len: usize,
) -> impl Iterator<Item = VolatileSlice<'m>> + use<'p, 'm> {
    let mut skip = offset;
    let mut left = len;
    pieces.iter().filter_map(move |piece| {
        if left == 0 {
            return None;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            return None;
        }
        let n = (piece.len() - skip).min(left);
        // Within the piece by the lines above.
        let cut = piece.subslice(skip, n).ok()?;
        skip = 0;
        left -= n;
        (n > 0).then_some(cut)
    })
}

/// Pieces in the form that scatter/gather system calls take. Reused to save allocations.
#[derive(Debug, Default)]
pub struct IoVecs<'m> {
    vectors: Vec<libc::iovec>,
    len: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> IoVecs<'m> {
    /// Replaces the vectors by `len` bytes of the pieces from byte `offset` on; returns the bytes that there are. Vectors
    /// beyond [`MAX_PIECES`] are left out.
    pub fn fill(&mut self, pieces: &[VolatileSlice<'m>], offset: usize, len: usize) -> usize {
        self.clear();
        self.append(pieces, offset, len);
        self.len
    }

    /// Like [`Self::fill`], behind what is there; returns the bytes added.
    pub fn append(&mut self, pieces: &[VolatileSlice<'m>], offset: usize, len: usize) -> usize {
        let before = self.len;
        for piece in window(pieces, offset, len) {
            if self.vectors.len() >= MAX_PIECES {
                break;
            }
            self.vectors.push(libc::iovec {
                iov_base: piece.ptr_guard_mut().as_ptr().cast(),
                iov_len: piece.len(),
            });
            self.len += piece.len();
        }
        self.len - before
    }

    /// Removes all vectors.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.len = 0;
    }

    /// Bytes covered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no byte is covered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn count(&self) -> libc::c_int {
        // At most MAX_PIECES.
        libc::c_int::try_from(self.vectors.len()).unwrap_or(libc::c_int::MAX)
    }

    /// readv(2) into the vectors.
    ///
    /// # Errors
    /// As the system call.
    pub fn read_from(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: every vector covers guest memory that is mapped for 'm, and the guest expects it to be written.
        let n = unsafe { libc::readv(fd.as_raw_fd(), self.vectors.as_ptr(), self.count()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// writev(2) from the vectors.
    ///
    /// # Errors
    /// As the system call.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: every vector covers guest memory that is mapped for 'm.
        let n = unsafe { libc::writev(fd.as_raw_fd(), self.vectors.as_ptr(), self.count()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// writev(2) of `first` and then the vectors, as one.
    ///
    /// # Errors
    /// As the system call; [`MAX_PIECES`] vectors have no place for another in front of them.
    pub fn write_behind(&mut self, first: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        if first.is_empty() {
            return self.write_to(fd);
        }
        let vector = libc::iovec {
            iov_base: first.as_ptr().cast_mut().cast(),
            iov_len: first.len(),
        };
        self.vectors.insert(0, vector);
        // The kernel only reads, and `first` outlives the call; the vector that covers it does not.
        let written = self.write_to(fd);
        self.vectors.remove(0);
        written
    }

    /// preadv(2) into the vectors.
    ///
    /// # Errors
    /// As the system call.
    pub fn read_from_at(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
        let n =
            unsafe { libc::preadv(fd.as_raw_fd(), self.vectors.as_ptr(), self.count(), offset) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// pwritev(2) from the vectors.
    ///
    /// # Errors
    /// As the system call.
    pub fn write_to_at(&self, fd: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        // SAFETY: as in `write_to`.
        let n =
            unsafe { libc::pwritev(fd.as_raw_fd(), self.vectors.as_ptr(), self.count(), offset) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// pwritev2(2) from the vectors, with its flags (`RWF_*`).
    ///
    /// # Errors
    /// As the system call.
    pub fn write_to_at_with(
        &self,
        fd: BorrowedFd<'_>,
        offset: i64,
        flags: libc::c_int,
    ) -> io::Result<usize> {
        // SAFETY: as in `write_to`.
        let n = unsafe {
            libc::pwritev2(
                fd.as_raw_fd(),
                self.vectors.as_ptr(),
                self.count(),
                offset,
                flags,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// sendmsg(2) from the vectors to a connected socket, without waiting and without SIGPIPE.
    ///
    /// # Errors
    /// As the system call; `WouldBlock` when the socket takes nothing.
    pub fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all-zero is a valid msghdr: no name, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_ptr().cast_mut();
        message.msg_iovlen = self.vectors.len();
        // SAFETY: the kernel reads `vectors` and the guest memory behind it, mapped for 'm.
        let n = unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(buffer: &mut [u8]) -> Vec<VolatileSlice<'_>> {
        let (a, rest) = buffer.split_at_mut(3);
        let (b, c) = rest.split_at_mut(5);
        vec![a.into(), b.into(), c.into()]
    }

    #[test]
    fn copy_across_pieces_keeps_order_and_bounds() {
        let mut buffer = *b"abcdefghijkl";
        let parts = pieces(&mut buffer);
        let mut out = [0; 6];
        assert_eq!(copy_out(&parts, 2, &mut out), 6);
        assert_eq!(&out, b"cdefgh");
        assert_eq!(copy_out(&parts, 9, &mut out), 3);
        assert_eq!(copy_out(&parts, 12, &mut out), 0);
        assert_eq!(copy_in(&parts, 7, b"XYZ"), 3);
        assert_eq!(copy_in(&parts, 11, b"long"), 1);
        assert_eq!(&buffer, b"abcdefgXYZkl");
    }

    #[test]
    fn iovecs_of_a_window_cover_it_exactly() {
        use std::os::fd::AsFd;
        let mut buffer = *b"abcdefghijkl";
        let parts = pieces(&mut buffer);
        let mut vectors = IoVecs::default();
        assert_eq!(vectors.fill(&parts, 1, 4), 4);
        assert_eq!(vectors.append(&parts, 10, 9), 2);
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(vectors.write_to(writer.as_fd()).unwrap(), 6);
        assert_eq!(vectors.write_behind(b"12", writer.as_fd()).unwrap(), 8);
        assert_eq!(vectors.write_behind(b"", writer.as_fd()).unwrap(), 6);
        drop(writer);
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut got).unwrap();
        assert_eq!(got, b"bcdekl12bcdeklbcdekl");
    }
}
