//! Extended attributes of an open file. The calling thread's working directory is `/proc/self/fd`, so that the descriptor's
//! number is its path; this reaches symbolic links and special files without opening them.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use super::{Errno, FdName, check};

fn length(n: isize) -> Result<usize, Errno> {
    usize::try_from(n).map_err(|_| Errno::last())
}

pub(in super::super) fn get(
    fd: BorrowedFd<'_>,
    name: &CStr,
    into: &mut [u8],
) -> Result<usize, Errno> {
    let path = FdName::new(fd);
    // SAFETY: texts are NUL-terminated; pointer and length are those of a live slice.
    length(unsafe {
        libc::getxattr(
            path.as_c_str().as_ptr(),
            name.as_ptr(),
            into.as_mut_ptr().cast(),
            into.len(),
        )
    })
}

pub(in super::super) fn list(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    let path = FdName::new(fd);
    // SAFETY: the path is NUL-terminated; pointer and length are those of a live slice.
    length(unsafe {
        libc::listxattr(
            path.as_c_str().as_ptr(),
            into.as_mut_ptr().cast(),
            into.len(),
        )
    })
}

pub(in super::super) fn set(
    fd: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
    flags: libc::c_int,
) -> Result<(), Errno> {
    let path = FdName::new(fd);
    // SAFETY: texts are NUL-terminated; pointer and length are those of a live slice.
    check(unsafe {
        libc::setxattr(
            path.as_c_str().as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    })
}

pub(in super::super) fn remove(fd: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let path = FdName::new(fd);
    // SAFETY: texts are NUL-terminated.
    check(unsafe { libc::removexattr(path.as_c_str().as_ptr(), name.as_ptr()) })
}
