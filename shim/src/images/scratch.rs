//! The store's scratch directories: each held by a lock for as long as its owner lives, and swept when that is gone.
//!
//! Whatever is half done (a download, a layer being unpacked) lives here and is renamed into place when it is whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::index::open_lock;

/// A directory that is removed when this is dropped, or by the next [`sweep`] if the process is killed.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// Keeps the lock; others see by it that the directory is in use.
    _held: File,
}

impl Scratch {
    /// Makes a directory below `parent` (the store's `tmp/`).
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        // Under this lock no sweep can see the directory before it is locked itself.
        let guard = open_lock(&parent.join("lock"))?;
        guard.lock()?;
        let path = parent.join(random_name()?);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let held = File::open(&path)?;
        held.lock()?;
        Ok(Self { path, _held: held })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a scratch directory could not be removed; the next start tries again");
        }
    }
}

/// Removes what dead processes left below `parent`. Returns how many directories that were.
pub(super) fn sweep(parent: &Path) -> io::Result<usize> {
    let guard = open_lock(&parent.join("lock"))?;
    guard.lock()?;
    let mut swept = 0;
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let Ok(held) = File::open(entry.path()) else {
            continue;
        };
        if held.try_lock().is_ok() {
            // What cannot be removed now must not keep the store from being used.
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => swept += 1,
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "left-over image work could not be removed")
                }
            }
        }
    }
    Ok(swept)
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0_u8; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled != bytes.len() {
        return Err(io::Error::other(
            "the kernel gave fewer random bytes than asked for",
        ));
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_while_scratch_is_held_keeps_it_and_removes_orphans() {
        let parent = tempfile::tempdir().unwrap();
        let held = Scratch::new(parent.path()).unwrap();
        std::fs::create_dir_all(parent.path().join("orphan/fs/deep")).unwrap();
        assert_eq!(sweep(parent.path()).unwrap(), 1);
        assert!(held.path().is_dir() && !parent.path().join("orphan").exists());
        let path = held.path().to_path_buf();
        drop(held);
        assert!(!path.exists());
    }
}
