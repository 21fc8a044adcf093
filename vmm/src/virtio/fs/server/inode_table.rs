//! All inodes that the guest references, by node id and by identity on the host, with their reference counts.
//!
//! Shared by all workers of a device; one lock, held only for map operations and never over a system call. Keeps what the
//! device needs to continue after `stop` and `activate`.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::errno::Errno;
use super::host::{self, FileHandle, Key, Stat};
use super::inode::{Anchor, Inode};
use super::policy::Place;
use crate::virtio::fs::fuse::ROOT_ID;

/// Most inodes that a guest may reference: bounds the memory of this process (some 200 bytes each).
const MAX_INODES: usize = 1 << 20;

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    /// Replies that named the inode, less what the guest forgot.
    references: u64,
}

#[derive(Debug)]
struct Maps {
    by_id: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    next_id: u64,
    /// Inodes held by a descriptor.
    descriptors: usize,
    /// One open file per mount that has inodes held by handle.
    mounts: HashMap<u64, Arc<OwnedFd>>,
}

/// How many inodes are held open by a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio::fs) struct DescriptorLimits {
    /// From here on, files are held by handle where their file system has handles.
    pub(in crate::virtio::fs) handles_from: usize,
    /// From here on, files without a handle are refused.
    pub(in crate::virtio::fs) refuse_from: usize,
}

impl DescriptorLimits {
    /// Leaves room for open files below the limit of this process.
    pub(in crate::virtio::fs) fn of_this_process() -> Self {
        let limit = usize::try_from(host::open_file_limit()).unwrap_or(usize::MAX);
        Self {
            handles_from: limit / 2,
            refuse_from: limit / 8 * 7,
        }
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct InodeTable {
    root: Arc<Inode>,
    /// Shared by all workers.
    maps: Mutex<Maps>,
    limits: DescriptorLimits,
    /// Set once an inode is held by handle: identity then needs the handle's comparison too.
    handles: AtomicBool,
}

impl InodeTable {
    /// A table that knows the root only.
    ///
    /// # Errors
    /// ENOTDIR when `root` is no directory, or statx(2) failed on it.
    pub(super) fn new(root: OwnedFd, limits: DescriptorLimits) -> Result<Self, Errno> {
        let stat = host::stat(root.as_fd())?;
        if !stat.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let root = Arc::new(Inode::new(ROOT_ID, &stat, Anchor::Fd(root), Place::Root));
        let maps = Mutex::new(Maps::with_root(&root, ROOT_ID + 1));
        Ok(Self {
            root,
            maps,
            limits,
            handles: AtomicBool::new(false),
        })
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// ESTALE when the guest holds no such node.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        if id == ROOT_ID {
            return Ok(Arc::clone(&self.root));
        }
        let maps = self.maps();
        let entry = maps.by_id.get(&id).ok_or(Errno::ESTALE)?;
        Ok(Arc::clone(&entry.inode))
    }

    /// Adds a reference to the inode that is the file `key`, if one is held open; such a file cannot have been replaced
    /// by another with the same identity.
    pub(super) fn reference_held(&self, key: Key) -> Option<Arc<Inode>> {
        let mut maps = self.maps();
        let id = *maps.by_key.get(&key)?;
        let entry = maps.by_id.get_mut(&id)?;
        if !matches!(entry.inode.anchor, Anchor::Fd(_)) {
            return None;
        }
        entry.references = entry.references.saturating_add(1);
        Some(Arc::clone(&entry.inode))
    }

    /// Adds a reference to the inode of an O_PATH descriptor, which is new to the table or not. It was found in the
    /// directory `parent`, at `place`.
    ///
    /// # Errors
    /// ENFILE when the table or the descriptors are used up and the file system has no handles.
    pub(super) fn adopt(
        &self,
        fd: OwnedFd,
        stat: &Stat,
        parent: &Inode,
        place: Place,
    ) -> Result<Arc<Inode>, Errno> {
        let held = self.maps().descriptors;
        let crowded = held >= self.limits.handles_from;
        let handle = if crowded || self.handles.load(Ordering::Acquire) {
            FileHandle::of(fd.as_fd()).ok()
        } else {
            None
        };
        let key = stat.key();
        if let Some(inode) = self.maps().reference_same(key, handle.as_ref()) {
            inode.found_at(place);
            return Ok(inode);
        }
        let by_handle = if crowded {
            handle.clone().zip(self.mount(&fd, stat, parent))
        } else {
            None
        };
        let anchor = match by_handle {
            Some((handle, mount)) => {
                self.handles.store(true, Ordering::Release);
                Anchor::Handle { handle, mount }
            }
            None if held >= self.limits.refuse_from => return Err(Errno::ENFILE),
            None => Anchor::Fd(fd),
        };
        let mut maps = self.maps();
        // Another worker may have been faster.
        if let Some(inode) = maps.reference_same(key, handle.as_ref()) {
            inode.found_at(place);
            return Ok(inode);
        }
        if maps.by_id.len() >= MAX_INODES {
            return Err(Errno::ENFILE);
        }
        let id = maps.next_id;
        maps.next_id += 1;
        if matches!(anchor, Anchor::Fd(_)) {
            maps.descriptors += 1;
        }
        let inode = Arc::new(Inode::new(id, stat, anchor, place));
        maps.by_key.insert(key, id);
        maps.by_id.insert(
            id,
            Entry {
                inode: Arc::clone(&inode),
                references: 1,
            },
        );
        Ok(inode)
    }

    /// An open directory on the mount of `fd`, for opening handles. `None` for a mounted file, which may be special and must
    /// not be opened.
    fn mount(&self, fd: &OwnedFd, stat: &Stat, parent: &Inode) -> Option<Arc<OwnedFd>> {
        let mount = stat.0.stx_mnt_id;
        if let Some(known) = self.maps().mounts.get(&mount) {
            return Some(Arc::clone(known));
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let opened = if stat.is_dir() {
            host::open_at(fd.as_fd(), c".", flags, 0)
        } else if mount == parent.key.mount {
            host::open_at(parent.fd().ok()?.as_fd(), c".", flags, 0)
        } else {
            return None;
        };
        let opened = Arc::new(opened.ok()?);
        let mut maps = self.maps();
        Some(Arc::clone(maps.mounts.entry(mount).or_insert(opened)))
    }

    /// Takes `count` references of a node away, and the node with the last one: true then.
    pub(super) fn forget(&self, id: u64, count: u64) -> bool {
        let gone = self.maps().forget(id, count);
        // The descriptor is closed here, after the lock is released.
        gone.is_some()
    }

    /// As [`Self::forget`], for many nodes. Returns those that are gone.
    pub(super) fn forget_all(&self, nodes: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
        let mut gone = Vec::new();
        let mut maps = self.maps();
        gone.extend(nodes.filter_map(|(id, count)| maps.forget(id, count)));
        drop(maps);
        gone.iter().map(|inode| inode.id).collect()
    }

    /// Forgets everything but the root. Node ids go on counting.
    pub(super) fn clear(&self) {
        let mut maps = self.maps();
        let next_id = maps.next_id;
        let old = std::mem::replace(&mut *maps, Maps::with_root(&self.root, next_id));
        self.handles.store(false, Ordering::Release);
        drop(maps);
        drop(old);
    }

    /// Number of inodes, with the root.
    pub(super) fn len(&self) -> usize {
        self.maps().by_id.len()
    }
}

impl Maps {
    fn with_root(root: &Arc<Inode>, next_id: u64) -> Self {
        let entry = Entry {
            inode: Arc::clone(root),
            references: 1,
        };
        Self {
            by_id: HashMap::from([(ROOT_ID, entry)]),
            by_key: HashMap::from([(root.key, ROOT_ID)]),
            next_id,
            descriptors: 1,
            mounts: HashMap::new(),
        }
    }

    /// Adds a reference to the inode with this identity. One that is held by handle counts only if the handle agrees:
    /// its number may belong to another file by now.
    fn reference_same(&mut self, key: Key, handle: Option<&FileHandle>) -> Option<Arc<Inode>> {
        let id = *self.by_key.get(&key)?;
        let entry = self.by_id.get_mut(&id)?;
        match &entry.inode.anchor {
            Anchor::Fd(_) => {}
            Anchor::Handle { handle: known, .. } if Some(known) == handle => {}
            Anchor::Handle { .. } => return None,
        }
        entry.references = entry.references.saturating_add(1);
        Some(Arc::clone(&entry.inode))
    }

    fn forget(&mut self, id: u64, count: u64) -> Option<Arc<Inode>> {
        // The root is not looked up, so that nothing the guest says can lose it.
        if id == ROOT_ID {
            return None;
        }
        let entry = self.by_id.get_mut(&id)?;
        entry.references = entry.references.saturating_sub(count);
        if entry.references > 0 {
            return None;
        }
        let inode = self.by_id.remove(&id)?.inode;
        if self.by_key.get(&inode.key) == Some(&id) {
            self.by_key.remove(&inode.key);
        }
        if matches!(inode.anchor, Anchor::Fd(_)) {
            self.descriptors = self.descriptors.saturating_sub(1);
        }
        Some(inode)
    }
}
