//! What the guest watches (inotify(7)): the same files are watched on the host, and what others change there is told to
//! the guest. WATCH adds and removes watches; the notifier takes events from here and puts them on its queue.
//!
//! Shared by the request workers and the notifier. One lock holds watches and waiting events; while anything is watched,
//! requests that change files are done under it too, so that [`echo`] can tell the guest's own changes, of which its
//! kernel knows by itself, from those of others. Nothing of this costs anything where nothing is watched.
//!
//! Bounded: watches by [`MAX_WATCHES`] (the guest's program is told ENOSPC, as by its own kernel), waiting events by
//! [`MAX_WAITING`], beyond which every watcher is told that events were lost (IN_Q_OVERFLOW).

mod echo;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::echo::Effects;
use super::errno::Errno;
use super::host::inotify::{self, RawEvent};
use super::host::{self, Key};
use super::inode::Inode;
use super::policy::CachePolicy;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{InHeader, ROOT_ID, WatchIn, WatchOut};
use crate::virtio::fs::request::Arguments;

/// Most files and directories that a guest may watch.
const MAX_WATCHES: usize = 8192;
/// Most events that wait for the guest to give buffers.
const MAX_WAITING: usize = 1024;
/// Reads of the host's events in one turn, of some hundred events each; the host keeps the rest.
const MAX_READS: usize = 256;

/// Events that are told: what changes files. The guest's kernel reports opening and reading in the guest, and what
/// programs of the host read is none of the guest's business.
const EVENTS: u32 = libc::IN_MODIFY
    | libc::IN_ATTRIB
    | libc::IN_CLOSE_WRITE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF;

/// An event for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::virtio::fs) struct Event {
    /// The watched node.
    pub(in crate::virtio::fs) node: u64,
    /// The guest's file system that watches it.
    pub(in crate::virtio::fs) owner: u32,
    /// As in inotify(7).
    pub(in crate::virtio::fs) mask: u32,
    /// Joins the two halves of a rename.
    pub(in crate::virtio::fs) cookie: u32,
    /// The entry of the directory that it is about; empty when it is about the node itself.
    pub(in crate::virtio::fs) name: Box<[u8]>,
}

/// One node watched in one of the guest's file systems.
#[derive(Debug)]
struct Watcher {
    node: u64,
    owner: u32,
    key: Key,
    mask: u32,
    /// IN_DELETE_SELF was told.
    gone: bool,
}

/// A watch of the host, which is per file, however many mounts and nodes lead to it.
#[derive(Debug, Default)]
struct HostWatch {
    watchers: Vec<Watcher>,
    /// Watched directories inside this one, by node. An open directory that is deleted causes no event of its own; its
    /// parent has one.
    children: Vec<u64>,
}

#[derive(Debug, Default)]
struct State {
    host: HashMap<i32, HostWatch>,
    /// Watch descriptor of each watched node, and of the parent where that is watched for it.
    nodes: HashMap<u64, (i32, Option<i32>)>,
    waiting: VecDeque<Event>,
    /// Watchers that have to be told that events were lost.
    overflowed: VecDeque<(u64, u32)>,
}

/// All watches of a server.
#[derive(Debug)]
pub(in crate::virtio::fs) struct Watches {
    /// Whether events can be told: there is a notifier.
    told: AtomicBool,
    /// Number of watched nodes. Read without the lock: nothing more is needed while it is 0.
    count: AtomicUsize,
    /// The host's queue of events, made for the first watch: a user may have few of them.
    queue: OnceLock<OwnedFd>,
    /// Readable when the notifier shall look again.
    wake: EventFd,
    /// Shared by the request workers and the notifier.
    state: Mutex<State>,
}

impl Watches {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            told: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            queue: OnceLock::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is somebody to tell events. Without, the guest is told that WATCH is unknown.
    pub(in crate::virtio::fs) fn set_told(&self, told: bool) {
        self.told.store(told, Ordering::Release);
    }

    /// Descriptors that are readable when there may be events: [`Self::wake_up`] was called, the host has some. When the
    /// second comes into being, the first becomes readable.
    pub(in crate::virtio::fs) fn descriptors(&self) -> (RawFd, Option<RawFd>) {
        let queue = self.queue.get().map(AsRawFd::as_raw_fd);
        (self.wake.as_raw_fd(), queue)
    }

    fn wake_up(&self) {
        // Adding 1 fails only when it is readable already.
        let _ = self.wake.write(1);
    }

    /// Number of watched nodes.
    pub(in crate::virtio::fs) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The next event for the guest.
    pub(in crate::virtio::fs) fn next(&self) -> Option<Event> {
        let mut state = self.state();
        if let Some((node, owner)) = state.overflowed.pop_front() {
            let mask = libc::IN_Q_OVERFLOW;
            return Some(Event {
                node,
                owner,
                mask,
                cookie: 0,
                name: Box::default(),
            });
        }
        state.waiting.pop_front()
    }

    /// Whether [`Self::next`] has something.
    pub(in crate::virtio::fs) fn has_next(&self) -> bool {
        let state = self.state();
        !state.overflowed.is_empty() || !state.waiting.is_empty()
    }

    /// Ends all watches.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        if let Some(queue) = self.queue.get() {
            for wd in state.host.keys() {
                inotify::remove(queue.as_fd(), *wd);
            }
        }
        *state = State::default();
        self.count.store(0, Ordering::Release);
    }

    /// Ends the watches of nodes that the guest has forgotten.
    pub(super) fn forget(&self, nodes: impl Iterator<Item = u64>) {
        if self.len() == 0 {
            return;
        }
        let mut state = self.state();
        for node in nodes {
            self.remove(&mut state, node, None);
        }
    }

    /// Ends the watches of a node: those of one owner, or all.
    fn remove(&self, state: &mut State, node: u64, owner: Option<u32>) {
        let Some(&(wd, parent)) = state.nodes.get(&node) else {
            return;
        };
        if let Some(watch) = state.host.get_mut(&wd) {
            watch
                .watchers
                .retain(|w| w.node != node || owner.is_some_and(|owner| owner != w.owner));
            if watch.watchers.iter().any(|w| w.node == node) {
                return;
            }
        }
        state.nodes.remove(&node);
        self.count.store(state.nodes.len(), Ordering::Release);
        if let Some(above) = parent.and_then(|parent| state.host.get_mut(&parent)) {
            above.children.retain(|child| *child != node);
        }
        for wd in [Some(wd), parent].into_iter().flatten() {
            if state.host.get(&wd).is_some_and(HostWatch::is_unused) {
                state.host.remove(&wd);
                if let Some(queue) = self.queue.get() {
                    inotify::remove(queue.as_fd(), wd);
                }
            }
        }
    }
}

impl HostWatch {
    fn is_unused(&self) -> bool {
        self.watchers.is_empty() && self.children.is_empty()
    }
}

impl State {
    fn push(&mut self, event: Event) {
        // As inotify(7) does: an event like the one before it says nothing new.
        if self.waiting.back() == Some(&event) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.overflow();
            return;
        }
        self.waiting.push_back(event);
    }

    /// Events were lost: whoever watches has to look for himself.
    fn overflow(&mut self) {
        self.waiting.clear();
        let watchers = self.host.values().flat_map(|watch| &watch.watchers);
        self.overflowed = watchers.map(|w| (w.node, w.owner)).collect();
    }

    fn tell(&mut self, watcher: (u64, u32), mask: u32, event: &RawEvent<'_>) {
        let (node, owner) = watcher;
        self.push(Event {
            node,
            owner,
            mask,
            cookie: event.cookie,
            name: event.name.into(),
        });
    }
}

impl Server {
    /// Starts, changes or ends the watch of a node.
    pub(super) fn watch(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let watch: WatchIn = args.take()?;
        let watches = &self.watches;
        if !watches.told.load(Ordering::Acquire) {
            return Err(Errno::ENOSYS);
        }
        let inode = self.node(header)?;
        let mask = watch.mask & EVENTS;
        let mut state = watches.state();
        let watched = if mask == 0 {
            watches.remove(&mut state, inode.id, Some(watch.owner));
            false
        } else if inode.policy() == CachePolicy::Private {
            false
        } else {
            self.add_watch(&mut state, &inode, watch.owner, mask)?;
            true
        };
        drop(state);
        thread.put(&WatchOut {
            watched: watched.into(),
            padding: 0,
        });
        Ok(())
    }

    fn add_watch(
        &self,
        state: &mut State,
        inode: &Inode,
        owner: u32,
        mask: u32,
    ) -> Result<(), Errno> {
        let watches = &self.watches;
        let known = state.nodes.get(&inode.id).copied();
        if known.is_none() && state.nodes.len() >= MAX_WATCHES {
            return Err(Errno::ENOSPC);
        }
        let queue = match watches.queue.get() {
            Some(queue) => queue,
            None => {
                // This is the only place where it is set, under the lock.
                let queue = inotify::new().map_err(|_| Errno::ENOSPC)?;
                let queue = watches.queue.get_or_init(|| queue);
                watches.wake_up();
                queue
            }
        };
        let fd = inode.fd()?;
        // A file that is deleted while it is open here changes its attributes and is not gone for the host.
        let wd = inotify::add(queue.as_fd(), fd.as_fd(), mask | libc::IN_ATTRIB)?;
        let parent = match known {
            Some((_, parent)) => parent,
            None => self.watch_parent(state, inode, mask),
        };
        let watch = state.host.entry(wd).or_default();
        let crowded = watch.watchers.len() >= MAX_WATCHES;
        let same = |w: &&mut Watcher| w.node == inode.id && w.owner == owner;
        match watch.watchers.iter_mut().find(same) {
            Some(watcher) => watcher.mask = mask,
            None if crowded => return Err(Errno::ENOSPC),
            None => watch.watchers.push(Watcher {
                node: inode.id,
                owner,
                key: inode.key,
                mask,
                gone: false,
            }),
        }
        state.nodes.insert(inode.id, (wd, parent));
        watches.count.store(state.nodes.len(), Ordering::Release);
        Ok(())
    }

    /// Watches the directory around a watched directory, so that its end is noticed. Not for the root of a mount: nothing
    /// can delete that. Where it fails, the end goes unnoticed and nothing else.
    fn watch_parent(&self, state: &mut State, inode: &Inode, mask: u32) -> Option<i32> {
        if !inode.is_dir() || mask & libc::IN_DELETE_SELF == 0 || inode.id == ROOT_ID {
            return None;
        }
        let fd = inode.fd().ok()?;
        let parent = host::open_path(fd.as_fd(), c"..").ok()?;
        let stat = host::stat(parent.as_fd()).ok()?;
        if stat.key().mount != inode.key.mount {
            return None;
        }
        let queue = self.watches.queue.get()?;
        let wd = inotify::add(queue.as_fd(), parent.as_fd(), libc::IN_DELETE).ok()?;
        state.host.entry(wd).or_default().children.push(inode.id);
        Some(wd)
    }

    /// Takes what the host has to say.
    pub(in crate::virtio::fs) fn collect_events(&self) {
        let _ = self.watches.wake.read();
        let mut state = self.watches.state();
        self.drain(&mut state, None);
    }

    /// Sorts the host's events to those who watch. `effects` are those of a request that was just done: they are left out.
    fn drain(&self, state: &mut State, effects: Option<&Effects<'_>>) {
        let Some(queue) = self.watches.queue.get() else {
            return;
        };
        for _ in 0..MAX_READS {
            let sort = |event: &RawEvent<'_>| self.sort(state, event, effects);
            if !inotify::read(queue.as_fd(), sort) {
                return;
            }
        }
    }

    fn sort(&self, state: &mut State, event: &RawEvent<'_>, effects: Option<&Effects<'_>>) {
        if event.mask & libc::IN_Q_OVERFLOW != 0 {
            state.overflow();
            return;
        }
        if event.mask & libc::IN_IGNORED != 0 {
            // The host has ended the watch: the file is gone for good, or its file system is.
            let ended = state.host.remove(&event.wd).unwrap_or_default();
            for watcher in &ended.watchers {
                state.nodes.remove(&watcher.node);
            }
            self.watches
                .count
                .store(state.nodes.len(), Ordering::Release);
            return;
        }
        let Some(watch) = state.host.get_mut(&event.wd) else {
            return;
        };
        let mut told = Vec::new();
        for watcher in &mut watch.watchers {
            let own = effects.is_some_and(|effects| self.is_own(effects, watcher, event));
            if own {
                continue;
            }
            let to = (watcher.node, watcher.owner);
            let kind = event.mask & libc::IN_ISDIR;
            if event.mask & watcher.mask != 0 && !(watcher.gone && is_end(event)) {
                told.push((to, event.mask & (EVENTS | libc::IN_ISDIR)));
                watcher.gone |= is_end(event);
            }
            let may_be_gone = event.name.is_empty() && event.mask & libc::IN_ATTRIB != 0;
            if may_be_gone && !watcher.gone && self.is_gone(watcher.node) {
                watcher.gone = true;
                if watcher.mask & libc::IN_DELETE_SELF != 0 {
                    told.push((to, libc::IN_DELETE_SELF | kind));
                }
            }
        }
        let deleted = libc::IN_DELETE | libc::IN_ISDIR;
        let children = if event.mask & deleted == deleted {
            watch.children.clone()
        } else {
            Vec::new()
        };
        for (watcher, mask) in told {
            state.tell(watcher, mask, event);
        }
        for child in children {
            self.tell_end_of(state, child, effects);
        }
    }

    /// Tells the watchers of a directory that it is gone, if it is.
    fn tell_end_of(&self, state: &mut State, node: u64, effects: Option<&Effects<'_>>) {
        let Some((wd, _)) = state.nodes.get(&node).copied() else {
            return;
        };
        if !self.is_gone(node) {
            return;
        }
        let Some(watch) = state.host.get_mut(&wd) else {
            return;
        };
        let mut ended = Vec::new();
        for watcher in watch.watchers.iter_mut().filter(|w| w.node == node) {
            let own = effects.is_some_and(|e| e.ends(watcher.key));
            if !watcher.gone && !own && watcher.mask & libc::IN_DELETE_SELF != 0 {
                ended.push((watcher.node, watcher.owner));
            }
            watcher.gone = true;
        }
        for (node, owner) in ended {
            state.push(Event {
                node,
                owner,
                mask: libc::IN_DELETE_SELF | libc::IN_ISDIR,
                cookie: 0,
                name: Box::default(),
            });
        }
    }

    /// Whether a file has lost its last name.
    fn is_gone(&self, node: u64) -> bool {
        let Ok(inode) = self.inodes.get(node) else {
            return true;
        };
        let stat = inode.fd().and_then(|fd| host::stat(fd.as_fd()));
        stat.map_or(true, |stat| stat.0.stx_nlink == 0)
    }
}

/// Whether an event says that the watched file is gone.
fn is_end(event: &RawEvent<'_>) -> bool {
    event.name.is_empty() && event.mask & libc::IN_DELETE_SELF != 0
}
