//! What containers mount in volumes that they share with the host (mountPropagation: Bidirectional, `rshared`), told to the
//! host, which makes the same mounts.
//!
//! A container's copy of such a volume is a peer of the agent's own, so that the agent's mount table has what it mounts
//! there. The table is looked at when the kernel says that it has changed, and when a process of such a container has
//! ended: that end waits for the host's answer, so that whoever hears of it finds the mount on the host.
//!
//! State is behind a lock that is never held across an await; one task watches while there is such a container. Makes no
//! mounts; takes those away that a container leaves which is deleted.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use vmpod_agent_protocol::GUEST_SHARED;
use vmpod_agent_protocol::limits::EVENT_WAIT_MS;
use vmpod_agent_protocol::messages::{NextMountsResponse, VolumeMount};

use super::inside;
use super::plan::RootPlan;

/// The agent's own mount table.
const TABLE: &str = "/proc/self/mountinfo";

/// How long the end of a process waits for the host.
const HOST_LIMIT: Duration = Duration::from_secs(2);

/// Pause between two looks at a table that keeps changing.
const PAUSE: Duration = Duration::from_millis(5);

/// A handle; clones are of one.
#[derive(Clone, Debug)]
pub struct VolumeMounts {
    // Shared by the calls of the service and the tasks of all processes.
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Shared volumes of each container, relative to the shared tree.
    volumes: BTreeMap<String, Vec<String>>,
    mounts: Vec<VolumeMount>,
    /// Of `mounts`; counts their changes.
    generation: u64,
    /// What the host has acted upon; `None`: it never asked.
    done: Option<u64>,
    watched: bool,
}

/// The volumes of a container that it shares with the host, relative to the shared tree.
pub fn shared_volumes(plan: &RootPlan) -> Vec<String> {
    let shared = plan.mounts.iter().filter(|mount| {
        let mut propagation = mount.options.propagation.iter();
        mount.options.bind.is_some() && propagation.any(|flags| flags.contains(MsFlags::MS_SHARED))
    });
    shared
        .filter_map(|mount| table::below(&mount.source, GUEST_SHARED))
        .filter(|volume| !volume.is_empty())
        .map(str::to_owned)
        .collect()
}

impl Default for VolumeMounts {
    fn default() -> Self {
        VolumeMounts {
            state: Arc::new(watch::Sender::new(State::default())),
        }
    }
}

impl VolumeMounts {
    /// From now on the host hears what `container` mounts in its shared volumes.
    pub fn add(&self, container: &str, plan: &RootPlan) {
        let volumes = shared_volumes(plan);
        if volumes.is_empty() {
            return;
        }
        let mut watched = true;
        self.state.send_modify(|state| {
            state.volumes.insert(container.to_owned(), volumes);
            watched = std::mem::replace(&mut state.watched, true);
        });
        if watched {
            return;
        }
        let mounts = self.clone();
        tokio::spawn(async move {
            if let Err(error) = mounts.watch().await {
                crate::boot::report(&format!("watch {TABLE}: {error}"));
                mounts.state.send_modify(|state| state.watched = false);
            }
        });
    }

    /// Takes away what a deleted `container` has left: mounts in its own volumes and mounts of its own files.
    pub fn remove(&self, container: &str) {
        if !self.state.borrow().volumes.contains_key(container) {
            return;
        }
        self.look();
        let own = format!("containers/{container}");
        let left: Vec<String> = {
            let state = self.state.borrow();
            let is_own = |path: &str| table::below(path, &own).is_some();
            let mounts = state.mounts.iter().rev();
            mounts
                .filter(|mount| is_own(&mount.place) || is_own(&mount.source))
                .map(|mount| mount.place.clone())
                .collect()
        };
        for place in left {
            if let Err(error) = unmount(&place) {
                crate::boot::report(&format!("unmount {place} of the shared tree: {error}"));
            }
        }
        // As long as it is known, what went is news.
        self.look();
        self.state.send_modify(|state| {
            state.volumes.remove(container);
        });
        self.look();
    }

    /// Waits until the host has done what `container` has mounted and unmounted until now. Not for a host that does not ask.
    pub async fn settle(&self, container: &str) {
        if !self.state.borrow().volumes.contains_key(container) {
            return;
        }
        let generation = self.look();
        let mut state = self.state.subscribe();
        let done = state.wait_for(|state| state.done.is_none_or(|done| done >= generation));
        if tokio::time::timeout(HOST_LIMIT, done).await.is_err() {
            crate::boot::report(&format!(
                "the host has not mounted what container {container:?} did in its volumes after {} s",
                HOST_LIMIT.as_secs()
            ));
        }
    }

    /// Waits for mounts that are not those of generation `done`, which the host has, up to `wait_ms` milliseconds (cut to
    /// [`EVENT_WAIT_MS`]).
    pub async fn next(&self, done: u64, wait_ms: u32) -> NextMountsResponse {
        let wait = Duration::from_millis(u64::from(wait_ms.min(EVENT_WAIT_MS)));
        self.state.send_if_modified(|state| {
            let newer = state.done.is_none_or(|before| before < done);
            if newer {
                state.done = Some(done);
            }
            newer
        });
        let mut state = self.state.subscribe();
        let _ = tokio::time::timeout(wait, state.wait_for(|state| state.generation != done)).await;
        let state = self.state.borrow();
        NextMountsResponse {
            generation: state.generation,
            mounts: state.mounts.clone(),
            ..Default::default()
        }
    }

    /// Reads the table. Returns the generation that it is.
    fn look(&self) -> u64 {
        let text = fs::read(TABLE).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        self.state.send_if_modified(|state| {
            let volumes: BTreeSet<&str> = state
                .volumes
                .values()
                .flatten()
                .map(String::as_str)
                .collect();
            let mounts = table::mounts(&text, GUEST_SHARED, &volumes);
            let news = mounts != state.mounts;
            if news {
                state.mounts = mounts;
                state.generation += 1;
            }
            news
        });
        self.state.borrow().generation
    }

    /// Looks whenever the table changes, until there is no shared volume any more.
    async fn watch(&self) -> io::Result<()> {
        // The kernel tells of changes by POLLPRI (proc_pid_mounts(5)).
        let file = File::open(TABLE)?;
        // SAFETY: a file has one descriptor as long as it lives, and this one is nobody else's.
        let table = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?;
        loop {
            self.look();
            let ends = !self.state.send_if_modified(|state| {
                state.watched = !state.volumes.is_empty();
                state.watched
            });
            if ends {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
            table.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Takes away the mount at `place` of the shared tree, where containers write: no link is followed out of it.
fn unmount(place: &str) -> io::Result<()> {
    let shared = File::open(GUEST_SHARED)?;
    let mount = inside::open_beneath(&shared, Path::new(place), OFlag::O_NOFOLLOW)?;
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok(umount2(path.as_str(), MntFlags::MNT_DETACH)?)
}
