//! The file behind the device: carries out checked requests straight between it and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;

use super::request::Range;
use crate::virtio::chain::IoVecs;

/// Bytes of zeroes written at once where the file system cannot make them.
const ZEROES: usize = 64 << 10;

/// Reads the range into the pieces, from their first byte on.
///
/// # Errors
/// As preadv(2); `UnexpectedEof` when the file is shorter than it was.
pub fn read<'m>(
    file: &File,
    range: Range,
    pieces: &[VolatileSlice<'m>],
    vectors: &mut IoVecs<'m>,
) -> io::Result<()> {
    transfer(range, pieces, 0, vectors, |vectors, offset| {
        vectors.read_from_at(file.as_fd(), offset)
    })
}

/// Writes the range from the pieces, from their byte `skip` on.
///
/// # Errors
/// As pwritev(2).
pub fn write<'m>(
    file: &File,
    range: Range,
    pieces: &[VolatileSlice<'m>],
    skip: usize,
    vectors: &mut IoVecs<'m>,
) -> io::Result<()> {
    transfer(range, pieces, skip, vectors, |vectors, offset| {
        vectors.write_to_at(file.as_fd(), offset)
    })
}

fn transfer<'m>(
    range: Range,
    pieces: &[VolatileSlice<'m>],
    skip: usize,
    vectors: &mut IoVecs<'m>,
    call: impl Fn(&IoVecs<'m>, i64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < range.len {
        vectors.fill(pieces, skip + done, range.len - done);
        // Inside the file by the request's check, so that the sum is no more than its size.
        let offset = range.offset.saturating_add_unsigned(done as u64);
        match call(vectors, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Gives the space of a range back. Nothing happens where the file system cannot: it is a hint.
///
/// # Errors
/// As fallocate(2).
pub fn discard(file: &File, range: Range) -> io::Result<()> {
    match allocate(file, libc::FALLOC_FL_PUNCH_HOLE, range) {
        Err(e) if is_unsupported(&e) => Ok(()),
        other => other,
    }
}

/// Zeroes a range.
///
/// # Errors
/// As fallocate(2) and pwrite(2).
pub fn write_zeroes(file: &File, range: Range) -> io::Result<()> {
    let mode = if range.unmap {
        libc::FALLOC_FL_PUNCH_HOLE
    } else {
        libc::FALLOC_FL_ZERO_RANGE
    };
    match allocate(file, mode, range) {
        Err(e) if is_unsupported(&e) => {}
        other => return other,
    }
    let zeroes = vec![0; ZEROES.min(range.len)];
    let mut done = 0;
    while done < range.len {
        let n = zeroes.len().min(range.len - done);
        let at = range.offset.unsigned_abs() + done as u64;
        file.write_all_at(zeroes.get(..n).unwrap_or(&zeroes), at)?;
        done += n;
    }
    Ok(())
}

fn allocate(file: &File, mode: i32, range: Range) -> io::Result<()> {
    if range.len == 0 {
        return Ok(());
    }
    let len = i64::try_from(range.len).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: fallocate(2) touches no memory of this process.
        let done = unsafe {
            libc::fallocate(
                file.as_raw_fd(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                range.offset,
                len,
            )
        };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}
