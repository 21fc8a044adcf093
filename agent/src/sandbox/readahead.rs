//! How much of a share's files is read ahead. The kernel's own 128 KiB are meant for disks; over virtio-fs a request costs
//! the same two changes between guest and host whatever it carries, and a program of a few MiB took a dozen of them to
//! start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

/// KiB that are read ahead, for a quarter of the requests. A fault in the middle of a mapped file reads as much around
/// it, so more is not always better.
const KIB: u32 = 512;

/// Has the kernel read more ahead in the file system that is mounted at `mount_point` and in those below it, which share
/// its settings (Documentation/ABI/testing/sysfs-class-bdi).
///
/// # Errors
/// Nothing is mounted there, or there is no sysfs.
pub fn extend(mount_point: &str) -> io::Result<()> {
    // The file system is asked for what the walk through its root needs next anyway.
    let device = fs::metadata(mount_point)?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    fs::write(
        format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
        KIB.to_string(),
    )
}
