//! The container engine: which containers and execs exist, and what may be done to them when.
//!
//! One for the agent. [`Engine`] is a handle; its state is behind a mutex that is never held across an await, each
//! process has one task that waits for its end. Operations that must not be cut short half-way (a connection that
//! breaks cancels the call) run in tasks of their own. Does not know what a pod is.

mod calls;
mod launch;
mod life;
mod oom;
mod process;
mod report;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmpod_agent_protocol::messages::{Event, EventKind};

use super::api::{ContainerError, PodLabel, ProcessName};
use super::device_filter::DeviceFilters;
use super::group::Group;
use super::plan::Plan;
use super::pod_users::PodUsers;
use super::step::StepError;
use super::volume_mounts::VolumeMounts;
use crate::event_log::EventLog;
use crate::process::Reaper;
use crate::stdio::{ProcessStreams, Tail};

/// How the ids of execs begin that the agent runs by itself, for probes and hooks.
const OWN_RUN: &str = "vmpod-run-";
use oom::OomWatch;
use process::{Process, Stage};

/// How long output that nobody has fetched survives the deletion of its process.
const OUTPUT_KEPT: Duration = Duration::from_secs(10);
/// How long the death of a container's last processes is waited for when it is deleted.
const DEATH_WAIT: Duration = Duration::from_secs(10);
/// How long freezing may take.
const FREEZE_WAIT: Duration = Duration::from_secs(5);

/// Where the engine finds its tools in the agent's file system.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Mount point of the version 2 control group hierarchy.
    pub hierarchy: PathBuf,
    /// Existing group below it in which containers' groups are made.
    pub groups: PathBuf,
    /// An empty directory of the agent's root file system; containers' roots are attached there in their own mount
    /// namespaces.
    pub mount_point: PathBuf,
}

/// A handle to the engine.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EngineConfig,
    reaper: Reaper,
    events: EventLog,
    oom: OomWatch,
    device_filters: DeviceFilters,
    volume_mounts: VolumeMounts,
    next_run: AtomicU64,
    // Shared by all calls and the tasks of all processes; never held across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: being created.
    containers: HashMap<String, Option<Arc<Container>>>,
    /// Streams by process, including those of deleted processes for a while. The number tells generations apart.
    streams: HashMap<ProcessName, (u64, ProcessStreams)>,
    next_streams: u64,
    /// Pidfd of the pod's own pause process, when containers share their PID namespace.
    pod_pids: Option<Arc<OwnedFd>>,
    /// The pod's own user namespace, when it has one.
    pod_users: Option<Arc<PodUsers>>,
}

#[derive(Debug)]
struct Container {
    id: String,
    plan: Plan,
    group: Group,
    first: Arc<Process>,
    /// `None`: being created. Shared by calls that touch execs; never held across an await.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    tail: Tail,
    label: Option<PodLabel>,
    termination_message_path: String,
    oom_reported: AtomicU64,
}

fn unknown(what: impl std::fmt::Display) -> ContainerError {
    ContainerError::NotFound(format!("{what} does not exist"))
}

impl Engine {
    /// An engine whose events go into `events`. To be called within the runtime.
    pub fn new(config: EngineConfig, reaper: Reaper, events: EventLog) -> std::io::Result<Engine> {
        let engine = Engine {
            inner: Arc::new(Inner {
                config,
                reaper,
                events,
                oom: OomWatch::new()?,
                device_filters: DeviceFilters::default(),
                volume_mounts: VolumeMounts::default(),
                next_run: AtomicU64::new(1),
                state: Mutex::default(),
            }),
        };
        tokio::spawn(oom::watch(Arc::downgrade(&engine.inner)));
        Ok(engine)
    }

    /// Does ahead what the first container would otherwise wait for. What cannot be done is left to that container, which
    /// says why it fails.
    pub fn prepare(&self) {
        let _ = self.inner.device_filters.prepare();
    }

    /// From now on containers share the PID namespace of the process behind `pidfd`.
    pub fn share_pids(&self, pidfd: OwnedFd) {
        self.inner.state().pod_pids = Some(Arc::new(pidfd));
    }

    /// From now on containers are in the pod's own user namespace.
    pub fn share_users(&self, users: PodUsers) {
        self.inner.state().pod_users = Some(Arc::new(users));
    }

    /// The pod's own user namespace, when it has one.
    pub fn users(&self) -> Option<Arc<PodUsers>> {
        self.inner.state().pod_users.clone()
    }

    /// The empty directory at which the roots of new mount namespaces are attached.
    pub fn mount_point(&self) -> &Path {
        &self.inner.config.mount_point
    }

    /// What containers mount in volumes that they share with the host.
    pub fn volume_mounts(&self) -> &VolumeMounts {
        &self.inner.volume_mounts
    }

    /// The reaper of the agent, for other processes that it makes.
    pub fn reaper(&self) -> &Reaper {
        &self.inner.reaper
    }

    /// The streams of a process, for a connection.
    pub fn streams(&self, name: &ProcessName) -> Result<ProcessStreams, ContainerError> {
        self.inner
            .state()
            .streams
            .get(name)
            .map(|(_, streams)| streams.clone())
            .ok_or_else(|| unknown(name))
    }

    /// A descriptor of the container's first process, by which its namespaces can be joined, and whether its user namespace
    /// is one of them.
    pub fn pidfd(&self, id: &str) -> Result<(OwnedFd, bool), ContainerError> {
        let container = self.inner.container(id)?;
        if container.first.is_ended() {
            return Err(ContainerError::FailedPrecondition(format!(
                "container {id:?} has ended, and its file system with it"
            )));
        }
        container
            .first
            .pidfd
            .try_clone()
            .map(|pidfd| (pidfd, container.plan.namespaces.other_users()))
            .map_err(|error| ContainerError::Internal(format!("copy a descriptor: {error}")))
    }

    /// Sets the size of a process's terminal.
    pub fn resize(
        &self,
        name: &ProcessName,
        rows: u32,
        columns: u32,
    ) -> Result<(), ContainerError> {
        let process = self.inner.process(name)?;
        let size = |number: u32| {
            u16::try_from(number).map_err(|_| {
                ContainerError::InvalidArgument(format!("{number} is not a terminal size"))
            })
        };
        match process.streams.resize(size(rows)?, size(columns)?) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ContainerError::FailedPrecondition(format!(
                "{name} has no terminal"
            ))),
            Err(error) => Err(ContainerError::Internal(format!(
                "resize the terminal of {name}: {error}"
            ))),
        }
    }

    /// Freezes or thaws all processes of a container.
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<(), ContainerError> {
        let container = self.inner.container(id)?;
        if container.first.stage() != Stage::Running {
            return Err(ContainerError::FailedPrecondition(format!(
                "container {id:?} is not running"
            )));
        }
        let what = if frozen { "freeze" } else { "thaw" };
        container.group.freeze(frozen).map_err(|error| {
            ContainerError::Internal(format!("{what} container {id:?}: {error}"))
        })?;
        if until(FREEZE_WAIT, || container.group.is_frozen() == frozen).await {
            return Ok(());
        }
        Err(ContainerError::Internal(format!(
            "{what} container {id:?}: not done after {} s",
            FREEZE_WAIT.as_secs()
        )))
    }

    /// Applies new limits (`linux.resources` as JSON) to a container.
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<(), ContainerError> {
        let container = self.inner.container(id)?;
        let resources = serde_json::from_slice(resources).map_err(|error| {
            ContainerError::InvalidArgument(format!("OCI resources are not valid: {error}"))
        })?;
        container
            .group
            .apply(&resources)
            .map_err(|StepError(text)| {
                ContainerError::Internal(format!("update container {id:?}: {text}"))
            })
    }

    /// Kills everything, for the end of the guest, and waits for the deaths as long as `time`.
    pub async fn kill_all(&self, time: Duration) {
        let containers: Vec<Arc<Container>> = {
            let state = self.inner.state();
            state.containers.values().flatten().cloned().collect()
        };
        for container in &containers {
            let _ = container.group.kill();
        }
        until(time, || {
            containers
                .iter()
                .all(|container| !container.group.is_populated())
        })
        .await;
    }
}

/// Asks `done` at growing intervals until it says yes; false: the time has passed.
async fn until(time: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + time;
    let mut pause = Duration::from_millis(1);
    loop {
        if done() {
            return true;
        }
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match self.state().containers.get(id) {
            Some(Some(container)) => Ok(Arc::clone(container)),
            Some(None) => Err(ContainerError::FailedPrecondition(format!(
                "container {id:?} is still being created"
            ))),
            None => Err(unknown(ProcessName::container(id))),
        }
    }

    fn process(&self, name: &ProcessName) -> Result<Arc<Process>, ContainerError> {
        let container = self.container(&name.container)?;
        if name.is_container() {
            return Ok(Arc::clone(&container.first));
        }
        match container.execs().get(&name.exec) {
            Some(Some(process)) => Ok(Arc::clone(process)),
            Some(None) => Err(ContainerError::FailedPrecondition(format!(
                "{name} is still being created"
            ))),
            None => Err(unknown(name)),
        }
    }

    fn register_streams(&self, name: &ProcessName, streams: &ProcessStreams) {
        let mut state = self.state();
        let number = state.next_streams;
        state.next_streams += 1;
        state
            .streams
            .insert(name.clone(), (number, streams.clone()));
    }

    /// Forgets streams at once when all was fetched, else after [`OUTPUT_KEPT`].
    fn retire_streams(self: &Arc<Self>, name: &ProcessName) {
        let number = {
            let mut state = self.state();
            match state.streams.get(name) {
                Some((number, streams)) if !streams.is_drained() => *number,
                Some(_) => {
                    state.streams.remove(name);
                    return;
                }
                None => return,
            }
        };
        let (inner, name) = (Arc::clone(self), name.clone());
        tokio::spawn(async move {
            tokio::time::sleep(OUTPUT_KEPT).await;
            let mut state = inner.state();
            // A new process of that name has streams of its own.
            if state
                .streams
                .get(&name)
                .is_some_and(|(found, _)| *found == number)
            {
                state.streams.remove(&name);
            }
        });
    }

    fn event(&self, kind: EventKind, name: &ProcessName, label: Option<&PodLabel>) -> Event {
        Event {
            kind: kind.into(),
            container_id: name.container.clone(),
            exec_id: name.exec.clone(),
            container: label
                .map(|label| label.container.clone())
                .unwrap_or_default(),
            attempt: label.map_or(0, |label| label.attempt),
            ..Default::default()
        }
    }
}

impl Container {
    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
