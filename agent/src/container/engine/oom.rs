//! Out-of-memory kills, noticed as they happen: inotify on each container's `memory.events`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError, Weak};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::Inner;
use crate::byte_stream::ByteStream;
use crate::container::group::Group;

/// The watches of all containers.
#[derive(Debug)]
pub(super) struct OomWatch {
    inotify: Inotify,
    // Shared by create, delete and the watching task; never held across an await.
    watches: Mutex<HashMap<String, WatchDescriptor>>,
}

impl OomWatch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(OomWatch {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            watches: Mutex::default(),
        })
    }

    /// Watches a group. Without a memory controller there is nothing to watch.
    pub(super) fn add(&self, group: &Group, id: &str) {
        let path = group.path().join("memory.events");
        if let Ok(watch) = self.inotify.add_watch(&path, AddWatchFlags::IN_MODIFY) {
            self.watches().insert(id.to_owned(), watch);
        }
    }

    pub(super) fn remove(&self, id: &str) {
        if let Some(watch) = self.watches().remove(id) {
            // The kernel drops the watch with the file; then there is nothing left to remove.
            let _ = self.inotify.rm_watch(watch);
        }
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, HashMap<String, WatchDescriptor>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.inotify.as_fd().try_clone_to_owned()
    }
}

/// Looks at the counters of all containers whenever one of the files has changed.
pub(super) async fn watch(inner: Weak<Inner>) {
    let stream = match inner.upgrade().map(|inner| inner.oom.descriptor()) {
        Some(Ok(descriptor)) => ByteStream::reader(descriptor),
        _ => return,
    };
    let Ok(stream) = stream else {
        return;
    };
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer).await {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let containers: Vec<_> = inner
            .state()
            .containers
            .values()
            .flatten()
            .cloned()
            .collect();
        for container in containers {
            if !container.first.is_ended() {
                inner.report_oom(&container);
            }
        }
    }
}
