//! Open files and directories of the guest, by file handle number.
//!
//! Shared by all workers of a device; the lock is held for map operations only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::errno::Errno;

/// Position in a directory, with the entries that the host gave and the guest has not yet taken.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Entries in the layout of getdents64(2).
    pub(super) entries: Vec<u8>,
    /// Where the next entry starts in `entries`.
    pub(super) at: usize,
    /// The offset that the guest passes when it goes on from there.
    pub(super) offset: i64,
}

/// What a handle refers to.
#[derive(Debug)]
pub(super) enum Kind {
    File,
    /// Shared by workers that read the same open directory, whose position the host keeps in the descriptor.
    Directory(Mutex<Listing>),
}

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    fd: OwnedFd,
    kind: Kind,
}

impl Handle {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The position, for a directory.
    ///
    /// # Errors
    /// EBADF for a file.
    pub(super) fn listing(&self) -> Result<MutexGuard<'_, Listing>, Errno> {
        match &self.kind {
            Kind::Directory(listing) => Ok(listing.lock().unwrap_or_else(PoisonError::into_inner)),
            Kind::File => Err(Errno::EBADF),
        }
    }
}

#[derive(Debug, Default)]
struct Map {
    handles: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// The table. Bounded by the open-files limit of the process.
#[derive(Debug, Default)]
pub(super) struct HandleTable {
    /// Shared by all workers.
    map: Mutex<Map>,
}

impl HandleTable {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an open file and returns its number, which is never used again.
    pub(super) fn insert_file(&self, fd: OwnedFd) -> u64 {
        self.insert(Handle {
            fd,
            kind: Kind::File,
        })
    }

    /// Adds an open directory.
    pub(super) fn insert_directory(&self, fd: OwnedFd) -> u64 {
        self.insert(Handle {
            fd,
            kind: Kind::Directory(Mutex::default()),
        })
    }

    fn insert(&self, handle: Handle) -> u64 {
        let mut map = self.map();
        map.last += 1;
        let number = map.last;
        map.handles.insert(number, Arc::new(handle));
        number
    }

    /// An open file or directory.
    ///
    /// # Errors
    /// EBADF when there is none of that number.
    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.map().handles.get(&number).cloned().ok_or(Errno::EBADF)
    }

    /// An open regular file.
    ///
    /// # Errors
    /// EBADF when there is none of that number.
    pub(super) fn file(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.get(number)?;
        match handle.kind {
            Kind::File => Ok(handle),
            Kind::Directory(_) => Err(Errno::EBADF),
        }
    }

    /// Closes one.
    ///
    /// # Errors
    /// EBADF when there is none of that number.
    pub(super) fn remove(&self, number: u64) -> Result<(), Errno> {
        let gone = self.map().handles.remove(&number);
        gone.map(drop).ok_or(Errno::EBADF)
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut self.map().handles);
        drop(gone);
    }

    /// Number of open files and directories.
    pub(super) fn len(&self) -> usize {
        self.map().handles.len()
    }
}
