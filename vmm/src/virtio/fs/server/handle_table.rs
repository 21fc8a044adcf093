//! Open files and directories of the guest, by file handle number.
//!
//! Shared by all workers of a device; the lock is held for map operations only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::errno::Errno;

/// Most directories that keep entries between requests: bounds the memory that a guest can make this process hold.
const MAX_KEPT: usize = 128;

/// Position in a directory, with the entries that the host gave and the guest has not yet taken.
#[derive(Debug)]
pub(super) struct Listing {
    /// Entries in the layout of getdents64(2).
    pub(super) entries: Vec<u8>,
    /// Where the next entry starts in `entries`.
    pub(super) at: usize,
    /// The offset that the guest passes when it goes on from there; `None` when the host has to be told.
    pub(super) offset: Option<i64>,
    /// Held while entries are kept.
    permit: Option<KeepPermit>,
    kept: Arc<AtomicUsize>,
}

/// One of [`MAX_KEPT`]. The count is shared by all directories of a table.
#[derive(Debug)]
struct KeepPermit(Arc<AtomicUsize>);

impl Drop for KeepPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listing {
    fn new(kept: Arc<AtomicUsize>) -> Self {
        Self {
            entries: Vec::new(),
            at: 0,
            offset: Some(0),
            permit: None,
            kept,
        }
    }

    /// To be called after each request: keeps the entries that are left if too many directories do not do so already. The
    /// host gives them again otherwise.
    pub(super) fn settle(&mut self) {
        if self.at >= self.entries.len() {
            self.entries = Vec::new();
            self.at = 0;
            self.permit = None;
        } else if self.permit.is_none() {
            if self.kept.fetch_add(1, Ordering::Relaxed) < MAX_KEPT {
                self.permit = Some(KeepPermit(Arc::clone(&self.kept)));
            } else {
                self.kept.fetch_sub(1, Ordering::Relaxed);
                self.entries = Vec::new();
                self.at = 0;
                self.offset = None;
            }
        }
    }
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
    /// Directories that keep entries. Shared with all of them.
    kept: Arc<AtomicUsize>,
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
            kind: Kind::Directory(Mutex::new(Listing::new(Arc::clone(&self.kept)))),
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
