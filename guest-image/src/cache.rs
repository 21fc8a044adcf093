//! Files that appear whole or not at all, and the lock that makes one builder of many.
//!
//! Used on the thread of the build. Nothing is ever deleted from a cache here: which hashes are
//! still wanted, the caller knows.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// Why a cache could not be used.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("cannot create the cache folder {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot lock {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Publish {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Writes `path` through a file beside it, which takes its name only when it is complete and on
/// disk.
pub(crate) fn publish(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), CacheError> {
    let failed = |source| CacheError::Publish {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    // Two processes that write the same file write two temporary ones; the later rename wins whole.
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let result = File::create(&temporary)
        .and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    result.map_err(|source| {
        // The first failure is the one to tell; a leftover is overwritten by the next attempt.
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

/// Creates a folder and everything above it.
pub(crate) fn folder(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(|source| CacheError::Folder {
        path: path.to_owned(),
        source,
    })
}

/// Takes the exclusive lock `path`, held until the file is dropped; the kernel lets it go when its
/// process dies. `waiting` runs once where another process holds it.
pub(crate) fn lock(path: &Path, waiting: impl FnOnce()) -> Result<File, CacheError> {
    let failed = |source| CacheError::Lock {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => waiting(),
        Err(errno) => return Err(failed(errno.into())),
    }
    loop {
        match flock(file.as_fd(), FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn publish_failed_fill_keeps_the_old_file_and_no_leftover() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("artifact");
        publish(&path, |file| file.write_all(b"old")).expect("old");
        let error = publish(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk is full"))
        })
        .expect_err("a failed fill");
        assert!(error.to_string().ends_with("artifact"), "{error}");
        assert_eq!(fs::read(&path).expect("old"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1);
    }

    #[test]
    fn lock_second_taker_waits_for_the_first() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        let first = lock(&path, || panic!("nobody holds it")).expect("first");
        let (report, reports) = mpsc::channel();
        let second = thread::spawn(move || {
            let waiting = report.clone();
            let held = lock(&path, move || waiting.send("waiting").expect("receiver"));
            report.send("held").expect("receiver");
            held.map(drop)
        });
        assert_eq!(reports.recv(), Ok("waiting"));
        assert_eq!(reports.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(first);
        assert_eq!(reports.recv(), Ok("held"));
        second.join().expect("thread").expect("second");
    }
}
