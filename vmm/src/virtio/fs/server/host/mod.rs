//! The host's system calls that `std` does not offer: relative to descriptors, without following symbolic links.
//!
//! Thin: one call each, borrowed descriptors in, owned ones out. Decides nothing.

mod file_handle;
pub(super) mod inotify;
pub(super) mod xattr;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(super) use self::file_handle::FileHandle;
use super::errno::Errno;

/// What statx(2) is asked for.
const STATX_MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;

/// A file as the host sees it.
#[derive(Clone, Copy)]
pub(super) struct Stat(pub(super) libc::statx);

/// Identity of a file on the host, for as long as something keeps it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    pub(super) mount: u64,
    pub(super) inode: u64,
}

impl Stat {
    pub(super) fn key(&self) -> Key {
        Key {
            device: u64::from(self.0.stx_dev_major) << 32 | u64::from(self.0.stx_dev_minor),
            mount: self.0.stx_mnt_id,
            inode: self.0.stx_ino,
        }
    }

    /// The file type bits.
    pub(super) fn kind(&self) -> u32 {
        u32::from(self.0.stx_mode) & libc::S_IFMT
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

fn owned(result: libc::c_int) -> Result<OwnedFd, Errno> {
    check(result)?;
    // SAFETY: the kernel just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// The name of a descriptor in `/proc/self/fd`.
pub(super) struct FdName([u8; 12]);

impl FdName {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        let mut digits = [0; 12];
        let mut at = digits.len() - 1;
        let mut number = fd.as_raw_fd().unsigned_abs();
        // Ten digits at most, so that `at` stays in range and a NUL is left at the end.
        while at > 0 {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        digits.rotate_left(at);
        Self(digits)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// statx(2) of a name in a directory (not followed), or of the descriptor itself when the name is empty.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: all-zero is a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name is NUL-terminated and `stat` is a live statx.
    check(unsafe {
        libc::statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags,
            STATX_MASK,
            &raw mut stat,
        )
    })?;
    Ok(Stat(stat))
}

/// statx(2) of a descriptor.
pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    stat_at(fd, c"")
}

/// openat(2) with O_CLOEXEC added.
pub(super) fn open_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: libc::c_int,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is NUL-terminated; the mode is passed as the kernel takes it.
    owned(unsafe {
        libc::openat(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode,
        )
    })
}

/// A handle on whatever the name is, without opening it and without following it.
pub(super) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open_at(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
}

pub(super) fn mkdir_at(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) })
}

pub(super) fn mknod_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    device: libc::dev_t,
) -> Result<(), Errno> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) })
}

pub(super) fn symlink_at(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both texts are NUL-terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

/// linkat(2) of an open file, named through `/proc/self/fd`.
pub(super) fn link_at(
    proc_fds: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> Result<(), Errno> {
    let from = FdName::new(file);
    // SAFETY: both texts are NUL-terminated.
    check(unsafe {
        libc::linkat(
            proc_fds.as_raw_fd(),
            from.as_c_str().as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })
}

pub(super) fn unlink_at(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

pub(super) fn rename_at(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> Result<(), Errno> {
    // SAFETY: both names are NUL-terminated. A raw call, because musl has no wrapper.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.0.as_raw_fd(),
            from.1.as_ptr(),
            to.0.as_raw_fd(),
            to.1.as_ptr(),
            flags,
        )
    };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

/// Target of the symbolic link that `fd` refers to.
pub(super) fn read_link(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the pointer and length are those of a live slice.
    let n = unsafe {
        libc::readlinkat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            into.as_mut_ptr().cast(),
            into.len(),
        )
    };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// Changes the owner of the file itself; `u32::MAX` leaves an id as it is.
pub(super) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the empty name makes the call act on the descriptor.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, flags) })
}

/// Changes permissions through `/proc/self/fd`, because fchmod(2) does not take O_PATH descriptors. EOPNOTSUPP for
/// symbolic links.
pub(super) fn chmod(proc_fds: BorrowedFd<'_>, fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let name = FdName::new(fd);
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::fchmodat(proc_fds.as_raw_fd(), name.as_c_str().as_ptr(), mode, 0) })
}

/// Sets access and modification time of the file itself.
pub(super) fn set_times(fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> Result<(), Errno> {
    // SAFETY: the empty name makes the call act on the descriptor; `times` are two timespecs.
    check(unsafe {
        libc::utimensat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            times.as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
        )
    })
}

pub(super) fn truncate(fd: BorrowedFd<'_>, size: i64) -> Result<(), Errno> {
    // SAFETY: a plain call on a live descriptor.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) })
}

pub(super) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
    // SAFETY: plain calls on a live descriptor.
    check(unsafe {
        if data_only {
            libc::fdatasync(fd.as_raw_fd())
        } else {
            libc::fsync(fd.as_raw_fd())
        }
    })
}

pub(super) fn sync_fs(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: a plain call on a live descriptor.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) })
}

pub(super) fn statfs(fd: BorrowedFd<'_>) -> Result<libc::statvfs, Errno> {
    // SAFETY: all-zero is a valid statvfs.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is live.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), &raw mut stat) })?;
    Ok(stat)
}

pub(super) fn allocate(
    fd: BorrowedFd<'_>,
    mode: libc::c_int,
    offset: i64,
    len: i64,
) -> Result<(), Errno> {
    // SAFETY: a plain call on a live descriptor.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) })
}

pub(super) fn seek(fd: BorrowedFd<'_>, offset: i64, whence: libc::c_int) -> Result<i64, Errno> {
    // SAFETY: a plain call on a live descriptor.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    if at < 0 { Err(Errno::last()) } else { Ok(at) }
}

pub(super) fn copy_range(
    from: (BorrowedFd<'_>, i64),
    to: (BorrowedFd<'_>, i64),
    len: usize,
) -> Result<usize, Errno> {
    let (mut from_at, mut to_at) = (from.1, to.1);
    // SAFETY: both offsets are live; the kernel writes back where it got to.
    let n = unsafe {
        libc::copy_file_range(
            from.0.as_raw_fd(),
            &raw mut from_at,
            to.0.as_raw_fd(),
            &raw mut to_at,
            len,
            0,
        )
    };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// getdents64(2): fills `into` with as many entries as fit, and returns the bytes used; 0 at the end.
pub(super) fn read_entries(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the pointer and length are those of a live slice.
    let n = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            into.as_mut_ptr(),
            into.len(),
        )
    };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// The open-files limit of this process.
pub(super) fn open_file_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is live.
    match check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }) {
        Ok(()) => limit.rlim_cur,
        Err(_) => 1024,
    }
}

/// Opens `/proc/self/fd` of this process, the way back from a descriptor to a path.
pub(super) fn open_proc_fds() -> Result<OwnedFd, Errno> {
    // SAFETY: the path is NUL-terminated.
    owned(unsafe {
        libc::open(
            c"/proc/self/fd".as_ptr(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn fd_name_is_the_decimal_number() {
        let file = std::fs::File::open("/").unwrap();
        let text = FdName::new(file.as_fd())
            .as_c_str()
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(text, file.as_raw_fd().to_string());
        // SAFETY: only its number is looked at.
        let large = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
        assert_eq!(FdName::new(large).as_c_str(), c"2147483647");
        // SAFETY: as above.
        let zero = unsafe { BorrowedFd::borrow_raw(0) };
        assert_eq!(FdName::new(zero).as_c_str(), c"0");
    }
}
