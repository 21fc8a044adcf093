//! Whether a disk has room for a pod at all: a pod without any would run and lose its output.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

/// What a pod needs for its directories, its containers' writable layers and the beginning of their logs, in bytes.
pub const NEEDED: u64 = 1 << 20;

/// The disk is full.
#[derive(Debug, thiserror::Error)]
#[error(
    "No space left on device: the disk that holds {} has {free} bytes left and a pod needs {NEEDED} for its writable layers and logs; \
     free space there, or remove images that no pod uses with `vmpod image rm` and `vmpod gc`",
    path.display()
)]
pub struct DiskFull {
    /// Directory on that disk.
    pub path: PathBuf,
    /// Bytes that are left.
    pub free: u64,
}

/// Bytes that are left on the disk that holds `path`, for a user without privileges (statvfs(3), `f_bavail`).
///
/// # Errors
/// The system's answer.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Looks at the disk that holds `path`. One that cannot be asked is taken to have room: whatever is wrong with it shows
/// at the first write.
///
/// # Errors
/// [`DiskFull`].
pub fn check(path: &Path) -> Result<(), DiskFull> {
    match free_bytes(path) {
        Ok(free) if free < NEEDED => Err(DiskFull {
            path: path.to_path_buf(),
            free,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_of_a_disk_without_room_names_the_place() {
        // procfs has no blocks at all.
        let error = check(Path::new("/proc")).unwrap_err();
        assert_eq!(error.free, 0);
        assert!(error.to_string().contains("/proc"), "{error}");
        check(Path::new("/no/such/place")).unwrap();
        check(&std::env::temp_dir()).unwrap();
    }
}
