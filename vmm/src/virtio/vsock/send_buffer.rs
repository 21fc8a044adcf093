//! Bytes from the guest that a host socket did not take yet. Bounded by the credit given to the guest; holds no memory
//! when empty.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::virtio::chain::copy_out;

/// A queue of bytes on their way to a socket.
#[derive(Debug, Default)]
pub struct SendBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl SendBuffer {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// True when none wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `len` bytes of the pieces from byte `offset` on. The caller keeps to the bound.
    pub fn push(&mut self, pieces: &[VolatileSlice<'_>], offset: usize, len: usize) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
        let at = self.bytes.len();
        self.bytes.resize(at + len, 0);
        let n = self
            .bytes
            .get_mut(at..)
            .map_or(0, |into| copy_out(pieces, offset, into));
        self.bytes.truncate(at + n);
    }

    /// Sends what the socket takes without waiting; returns the bytes taken.
    ///
    /// # Errors
    /// As send(2), but not `WouldBlock`.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut total = 0;
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(socket, rest) {
                Ok(n) => {
                    self.sent += n;
                    total += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(total),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.clear();
        Ok(total)
    }

    /// Forgets all bytes and frees their memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// send(2) without waiting and without SIGPIPE.
///
/// # Errors
/// As the system call.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads `bytes.len()` bytes of `bytes`.
    let n = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
