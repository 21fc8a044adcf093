//! A block device of the host, found by its number: an OCI configuration names no path on the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::fault::Fault;

/// Where the kernel lists block devices by number (Documentation/ABI/testing/sysfs-dev).
const BY_NUMBER: &str = "/sys/dev/block";

/// Where their files are.
const FILES: &str = "/dev";

/// A block device as a container is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostBlock {
    /// Major number on the host.
    pub major: u64,
    /// Minor number on the host.
    pub minor: u64,
    /// Whether the pod may write to it.
    pub writable: bool,
}

impl HostBlock {
    /// What the guest finds it by: at most 20 bytes (12 bits of major and 20 of minor).
    #[must_use]
    pub fn serial(&self) -> String {
        let Self { major, minor, .. } = self;
        let kind = if self.writable { "w" } else { "r" };
        format!("{major}-{minor}{kind}")
    }

    /// Opens it.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn open(&self) -> Result<File, Fault> {
        let name = format!("{}:{}", self.major, self.minor);
        let path = self.path(Path::new(BY_NUMBER)).map_err(|error| {
            Fault::invalid(format!("the host has no block device {name}: {error}"))
        })?;
        let failed = |error: io::Error| {
            Fault::invalid(format!(
                "cannot open block device {}: {error}",
                path.display()
            ))
        };
        let file = OpenOptions::new()
            .read(true)
            .write(self.writable)
            .open(&path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let number = rustix::fs::makedev(
            u32::try_from(self.major).unwrap_or(u32::MAX),
            u32::try_from(self.minor).unwrap_or(u32::MAX),
        );
        if !found.file_type().is_block_device() || found.rdev() != number {
            return Err(Fault::invalid(format!(
                "{} is not the block device {name}",
                path.display()
            )));
        }
        Ok(file)
    }

    /// Its file: `DEVNAME` of its uevent.
    fn path(&self, by_number: &Path) -> io::Result<PathBuf> {
        let place = by_number.join(format!("{}:{}/uevent", self.major, self.minor));
        let text = fs::read_to_string(place)?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("DEVNAME="))
            .ok_or_else(|| io::Error::other("its uevent names no file"))?;
        Ok(Path::new(FILES).join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(major: u64, minor: u64) -> HostBlock {
        HostBlock {
            major,
            minor,
            writable: true,
        }
    }

    #[test]
    fn serial_number_fits_and_tells_devices_apart() {
        let longest = block((1 << 12) - 1, (1 << 20) - 1);
        assert!(longest.serial().len() <= 20, "{}", longest.serial());
        assert_ne!(block(1, 11).serial(), block(11, 1).serial());
        let read_only = HostBlock {
            writable: false,
            ..block(1, 11)
        };
        assert_ne!(read_only.serial(), block(1, 11).serial());
    }

    #[test]
    fn file_of_a_device_is_what_the_kernel_calls_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("7:3");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("uevent"), "MAJOR=7\nMINOR=3\nDEVNAME=mapper/x\n").unwrap();
        let path = block(7, 3).path(directory.path()).unwrap();
        assert_eq!(path, Path::new("/dev/mapper/x"));
        assert!(block(7, 4).path(directory.path()).is_err());
        assert!(
            block(4095, 1)
                .open()
                .unwrap_err()
                .message
                .contains("4095:1")
        );
    }
}
