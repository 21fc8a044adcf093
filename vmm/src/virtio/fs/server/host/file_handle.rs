//! File handles: a file without a descriptor (name_to_handle_at(2), open_by_handle_at(2)).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, owned};

/// Largest file handle (`MAX_HANDLE_SZ`, name_to_handle_at(2)).
const MAX_HANDLE: usize = 128;

/// Names a file for as long as its file system exists, without holding it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

/// `struct file_handle` with room for the largest.
#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

impl FileHandle {
    /// The handle of an open file; EOPNOTSUPP when its file system has none.
    pub(in super::super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut raw = RawHandle {
            length: MAX_HANDLE as u32,
            kind: 0,
            bytes: [0; MAX_HANDLE],
        };
        let mut mount = 0i32;
        // SAFETY: `raw` has the layout of file_handle with `length` bytes of room, and `mount` is live.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if result < 0 {
            return Err(Errno::last());
        }
        let bytes = raw.bytes.get(..raw.length as usize).ok_or(Errno::EIO)?;
        Ok(Self {
            kind: raw.kind,
            bytes: bytes.into(),
        })
    }

    /// Opens the file again with O_PATH. `mount` is any open file (not O_PATH) of the same mount. Needs
    /// CAP_DAC_READ_SEARCH; ESTALE when the file is gone.
    pub(in super::super) fn open(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let mut raw = RawHandle {
            length: u32::try_from(self.bytes.len()).map_err(|_| Errno::EIO)?,
            kind: self.kind,
            bytes: [0; MAX_HANDLE],
        };
        raw.bytes
            .get_mut(..self.bytes.len())
            .ok_or(Errno::EIO)?
            .copy_from_slice(&self.bytes);
        // SAFETY: `raw` has the layout of file_handle and is live.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut raw,
                libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
            )
        };
        owned(libc::c_int::try_from(fd).map_err(|_| Errno::EIO)?)
    }
}
