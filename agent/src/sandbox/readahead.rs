//! How much of a share's files is read ahead. The kernel's own 128 KiB are meant for disks; over virtio-fs a request costs
//! the same two changes between guest and host whatever it carries, and a program of a few MiB took a dozen of them to
//! start.

use std::ffi::CString;
use std::io;

/// KiB that are read ahead, for a quarter of the requests. A fault in the middle of a mapped file reads as much around
/// it, so more is not always better.
const KIB: u32 = 512;

/// Has the kernel read more ahead in the file system that is mounted at `mount_point` and in those below it, which share
/// its settings (Documentation/ABI/testing/sysfs-class-bdi).
///
/// # Errors
/// Nothing is mounted there, or there is no sysfs.
pub fn extend(mount_point: &str) -> io::Result<()> {
    let (major, minor) = device(mount_point)?;
    std::fs::write(
        format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
        KIB.to_string(),
    )
}

/// Number of the file system's device (statx(2)), from what the kernel has: the file system is not asked.
fn device(path: &str) -> io::Result<(u32, u32)> {
    let path = CString::new(path)?;
    // SAFETY: a structure of numbers, of which zero is one.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // The C library's function is a weak symbol for Rust's library, and absent from a static program.
    // SAFETY: the path ends in NUL, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            0,
            &raw mut found,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.stx_dev_major, found.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn device_of_a_path_is_that_of_its_file_system() {
        let (major, minor) = device("/proc").unwrap();
        let whole = std::fs::metadata("/proc").unwrap().dev();
        assert_eq!(libc::makedev(major, minor), whole);
        assert!(device("/not/there").is_err());
        assert!(device("a\0b").is_err());
    }
}
