//! Records of mounts in the host's namespace: one file each, written before the mount is made, so that whoever comes after a
//! kill finds it. To be used in that namespace.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

/// Which file something is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where: an absolute path without symbolic links.
    pub(super) place: PathBuf,
    /// What is seen there.
    pub(super) shows: FileId,
}

/// Opens an absolute path (O_PATH) that had no symbolic link in it: one that has got one since is ELOOP.
pub(super) fn open_as_it_was(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Takes away the mount that is seen by `mount`, a descriptor of its root, however busy it is. False: it is none.
pub(super) fn detach(mount: &OwnedFd) -> rustix::io::Result<bool> {
    // The path of a descriptor is followed to it and not past it.
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Record {
    /// Takes the mount away. One that is not there, or in the place of which there is something else, needs nothing.
    fn undo(&self) -> rustix::io::Result<()> {
        let found = match open_as_it_was(&self.place) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        if FileId::from(&fstat(&found)?) == self.shows {
            detach(&found)?;
        }
        Ok(())
    }
}

/// Takes away what the record `file` describes, and the record.
pub(super) fn undo_one(file: &Path) -> Result<(), String> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| format!("cannot read {}: {error}", file.display()))?,
    };
    // A torn one was never finished: its mount was not made.
    if let Ok(record) = serde_json::from_slice::<Record>(&bytes) {
        record.undo().map_err(|error| {
            format!(
                "cannot unmount {}, which the pod has mounted in a volume: {error}",
                record.place.display()
            )
        })?;
    }
    fs::remove_file(file).map_err(|error| format!("cannot remove {}: {error}", file.display()))
}

/// Takes away what all records in `directory` describe, the newest first, which may lie in older ones.
pub(super) fn undo_all(directory: &Path) -> Result<(), String> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| format!("cannot read {}: {error}", directory.display()))?,
    };
    let mut numbers: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let resisting: Vec<String> = numbers
        .iter()
        .rev()
        .filter_map(|number| undo_one(&directory.join(number.to_string())).err())
        .collect();
    if resisting.is_empty() {
        return Ok(());
    }
    Err(resisting.join("; "))
}
