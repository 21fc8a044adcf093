//! One file that the guest knows: how the host finds it again, and what is remembered about it.
//!
//! Shared by all workers through the inode table. Never opens the file for I/O.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::errno::Errno;
use super::host::{FileHandle, Key, Stat};
use super::policy::{CachePolicy, Place};

/// How an inode is found on the host.
#[derive(Debug)]
pub(super) enum Anchor {
    /// Held open with O_PATH: it keeps its identity whatever happens to its names.
    Fd(OwnedFd),
    /// Opened anew for each use, because too many descriptors are open.
    Handle {
        /// The file.
        handle: FileHandle,
        /// An open file on its mount.
        mount: Arc<OwnedFd>,
    },
}

/// A descriptor to work with for the length of one request.
#[derive(Debug)]
pub(super) enum InodeFd<'a> {
    Held(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for InodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// What a file looked like when it was last opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentStamp {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl ContentStamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            size: stat.0.stx_size,
            modified: (stat.0.stx_mtime.tv_sec, stat.0.stx_mtime.tv_nsec),
            changed: (stat.0.stx_ctime.tv_sec, stat.0.stx_ctime.tv_nsec),
        }
    }

    /// True when a change in the next moment might leave the stamp as it is: file times advance in ticks of up to 10 ms.
    pub(super) fn is_fresh(&self) -> bool {
        const SETTLED_NANOS: i128 = 50_000_000;
        let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) else {
            return true;
        };
        let nanos = |(sec, nsec): (i64, u32)| i128::from(sec) * 1_000_000_000 + i128::from(nsec);
        let last = nanos(self.changed).max(nanos(self.modified));
        i128::try_from(now.as_nanos()).map_or(true, |now| now - last < SETTLED_NANOS)
    }
}

/// A file that the guest holds references to.
#[derive(Debug)]
pub(super) struct Inode {
    /// Node id; never given to another file.
    pub(super) id: u64,
    /// Identity on the host.
    pub(super) key: Key,
    /// File type bits of the mode. They cannot change.
    pub(super) kind: u32,
    pub(super) anchor: Anchor,
    place: AtomicU8,
    /// Set at each open of a shared file, unless the file was still changing. Shared by the workers that open it.
    opened: Mutex<Option<ContentStamp>>,
    /// Counts modification times that were told differently; see [`Self::distinct_nanos`].
    told: AtomicU64,
}

impl Inode {
    pub(super) fn new(id: u64, stat: &Stat, anchor: Anchor, place: Place) -> Self {
        Self {
            id,
            key: stat.key(),
            kind: stat.kind(),
            anchor,
            place: AtomicU8::new(place as u8),
            opened: Mutex::new(None),
            told: AtomicU64::new(0),
        }
    }

    /// A descriptor (O_PATH) of the file.
    ///
    /// # Errors
    /// ESTALE when the file was deleted while only its handle was kept.
    pub(super) fn fd(&self) -> Result<InodeFd<'_>, Errno> {
        match &self.anchor {
            Anchor::Fd(fd) => Ok(InodeFd::Held(fd.as_fd())),
            Anchor::Handle { handle, mount } => handle.open((**mount).as_fd()).map(InodeFd::Opened),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    pub(super) fn place(&self) -> Place {
        Place::from_u8(self.place.load(Ordering::Relaxed))
    }

    pub(super) fn policy(&self) -> CachePolicy {
        self.place().policy()
    }

    /// Notes that the file was found at `place` too: what is reachable from a shared directory is shared.
    pub(super) fn found_at(&self, place: Place) {
        if place.policy() == CachePolicy::Shared && self.policy() == CachePolicy::Private {
            self.place.store(place as u8, Ordering::Relaxed);
        }
    }

    /// Records an open. True when the contents are surely those of the last open, so that the guest may keep its copy.
    pub(super) fn unchanged_since_last_open(&self, now: ContentStamp) -> bool {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = *opened == Some(now);
        *opened = (!now.is_fresh()).then_some(now);
        unchanged
    }

    /// Nanoseconds of a modification time that differ from `nanos` and from what was returned last, in the lowest byte.
    pub(super) fn distinct_nanos(&self, nanos: u32) -> u32 {
        // 1 to 255, so that the time is another one; flipping bits of the lowest byte of a number below 10^9 keeps it
        // below, because 999,999,999 ends in 0xff.
        let change = 1 + self.told.fetch_add(1, Ordering::Relaxed) % 255;
        nanos ^ change as u32
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn distinct_nanos_never_repeat_and_stay_in_range() {
        let file = std::fs::File::open("/").unwrap();
        let stat = super::super::host::stat(file.as_fd()).unwrap();
        let inode = Inode::new(1, &stat, Anchor::Fd(file.into()), Place::Root);
        for nanos in [0, 1, 77_777, 999_999_999] {
            let mut last = nanos;
            for _ in 0..600 {
                let now = inode.distinct_nanos(nanos);
                assert!(now != last && now != nanos && now < 1_000_000_000);
                last = now;
            }
        }
    }
}
