//! Error numbers as FUSE replies carry them.

use std::io;

/// An error number of the host, which is the guest's too (both are Linux on x86-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio::fs) struct Errno(pub(in crate::virtio::fs) i32);

impl Errno {
    pub(in crate::virtio::fs) const EPERM: Self = Self(libc::EPERM);
    pub(in crate::virtio::fs) const ENOENT: Self = Self(libc::ENOENT);
    pub(in crate::virtio::fs) const EIO: Self = Self(libc::EIO);
    pub(in crate::virtio::fs) const ENXIO: Self = Self(libc::ENXIO);
    pub(in crate::virtio::fs) const EBADF: Self = Self(libc::EBADF);
    pub(in crate::virtio::fs) const EEXIST: Self = Self(libc::EEXIST);
    pub(in crate::virtio::fs) const ENOTDIR: Self = Self(libc::ENOTDIR);
    pub(in crate::virtio::fs) const EINVAL: Self = Self(libc::EINVAL);
    pub(in crate::virtio::fs) const ENFILE: Self = Self(libc::ENFILE);
    pub(in crate::virtio::fs) const ENOSPC: Self = Self(libc::ENOSPC);
    pub(in crate::virtio::fs) const ENOTTY: Self = Self(libc::ENOTTY);
    pub(in crate::virtio::fs) const EROFS: Self = Self(libc::EROFS);
    pub(in crate::virtio::fs) const ENAMETOOLONG: Self = Self(libc::ENAMETOOLONG);
    pub(in crate::virtio::fs) const ENOSYS: Self = Self(libc::ENOSYS);
    pub(in crate::virtio::fs) const EPROTO: Self = Self(libc::EPROTO);
    pub(in crate::virtio::fs) const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    pub(in crate::virtio::fs) const ESTALE: Self = Self(libc::ESTALE);
    pub(in crate::virtio::fs) const ERANGE: Self = Self(libc::ERANGE);
    pub(in crate::virtio::fs) const E2BIG: Self = Self(libc::E2BIG);

    /// The error of the system call that just failed on this thread.
    pub(in crate::virtio::fs) fn last() -> Self {
        io::Error::last_os_error().into()
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // It is this process that has too many files open, not the one in the guest.
            Some(libc::EMFILE) => Self::ENFILE,
            Some(number) => Self(number),
            None => Self::EIO,
        }
    }
}
