//! The container engine: which containers and execs exist, and what may be done to them when.
//!
//! One for the agent. [`Engine`] is a handle; its state is behind a mutex that is never held across an await, each
//! process has one task that waits for its end. Operations that must not be cut short half-way (a connection that
//! breaks cancels the call) run in tasks of their own. Does not know what a pod is.

mod launch;
mod oom;
mod process;
mod report;

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use vmpod_agent_protocol::limits::{CONTAINERS, EXECS, OCI_SPEC_BYTES};
use vmpod_agent_protocol::messages::{Event, EventKind, ExitStatus, Stdio};

use super::api::{
    ContainerError, Containers, CreateContainer, CreateExec, ExecOutcome, PodLabel, ProcessName,
};
use super::device_filter;
use super::group::Group;
use super::hooks;
use super::plan::{Plan, check_id};
use super::process_plan::ProcessPlan;
use super::step::{At as _, StepError};
use crate::event_log::EventLog;
use crate::process::{Exit, Reaper};
use crate::stdio::{ProcessStreams, Tail};
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
                next_run: AtomicU64::new(1),
                state: Mutex::default(),
            }),
        };
        tokio::spawn(oom::watch(Arc::downgrade(&engine.inner)));
        Ok(engine)
    }

    /// From now on containers share the PID namespace of the process behind `pidfd`.
    pub fn share_pids(&self, pidfd: OwnedFd) {
        self.inner.state().pod_pids = Some(Arc::new(pidfd));
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

    /// A descriptor of the container's first process, by which its namespaces can be joined.
    pub fn pidfd(&self, id: &str) -> Result<OwnedFd, ContainerError> {
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

    async fn create(self: Arc<Self>, request: CreateContainer) -> Result<u32, ContainerError> {
        if request.spec.len() > OCI_SPEC_BYTES {
            return Err(ContainerError::InvalidArgument(format!(
                "OCI specification of {} bytes exceeds the limit of {OCI_SPEC_BYTES} bytes",
                request.spec.len()
            )));
        }
        let plan = Plan::parse(
            &request.id,
            &request.spec,
            request.rootfs.as_deref(),
            &self.config.groups,
        )
        .map_err(|error| {
            ContainerError::InvalidArgument(format!("create container {:?}: {error}", request.id))
        })?;
        let pod_pids = {
            let mut state = self.state();
            if state.containers.contains_key(&request.id) {
                return Err(ContainerError::AlreadyExists(format!(
                    "container {:?} exists already",
                    request.id
                )));
            }
            if state.containers.len() >= CONTAINERS {
                return Err(ContainerError::FailedPrecondition(format!(
                    "there are {CONTAINERS} containers, which is the limit: delete one first"
                )));
            }
            state.containers.insert(request.id.clone(), None);
            state.pod_pids.clone()
        };
        let id = request.id.clone();
        let made = self.make(request, plan, pod_pids).await;
        if made.is_err() {
            self.state().containers.remove(&id);
        }
        made
    }

    async fn make(
        self: &Arc<Self>,
        request: CreateContainer,
        mut plan: Plan,
        pod_pids: Option<Arc<OwnedFd>>,
    ) -> Result<u32, ContainerError> {
        let id = request.id;
        let failed =
            |StepError(text)| ContainerError::Start(format!("create container {id:?}: {text}"));
        let group = Group::create(&plan.root.cgroup).map_err(failed)?;
        let tail = Tail::default();
        let launched = async {
            group.apply(&plan.resources).map_err(failed)?;
            device_filter::attach(
                plan.resources.devices().as_deref().unwrap_or_default(),
                group.as_fd(),
            )
            .at(|| "attach the device rules to the control group")
            .map_err(failed)?;
            launch::first(
                &self.config,
                &self.reaper,
                &mut plan,
                &group,
                pod_pids.as_deref(),
                &request.stdio,
                &tail,
            )
            .await
        }
        .await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let _ = group.kill();
                until(DEATH_WAIT, || group.remove().is_ok()).await;
                return Err(error);
            }
        };
        let pid = launched.process.pid;
        let container = Arc::new(Container {
            id: id.clone(),
            plan,
            group,
            first: Arc::new(launched.process),
            execs: Mutex::default(),
            tail,
            label: request.label,
            termination_message_path: request.termination_message_path,
            oom_reported: AtomicU64::new(0),
        });
        let name = ProcessName::container(id.clone());
        self.register_streams(&name, &container.first.streams);
        self.oom.add(&container.group, &id);
        self.events.push(Event {
            pid,
            ..self.event(
                EventKind::CONTAINER_CREATED,
                &name,
                container.label.as_ref(),
            )
        });
        tokio::spawn(Arc::clone(self).report_end(Arc::clone(&container), launched.exit));
        self.state().containers.insert(id, Some(container));
        Ok(pid)
    }

    /// Waits for the end of a container's first process and tells everybody.
    async fn report_end(self: Arc<Self>, container: Arc<Container>, exit: oneshot::Receiver<Exit>) {
        let Ok(exit) = exit.await else {
            return;
        };
        // Without a PID namespace of its own nothing else ends the rest of the container.
        let _ = container.group.kill();
        self.report_oom(&container);
        let oom_killed = container.oom_reported.load(Ordering::Relaxed) > 0;
        let message = report::termination_message(Path::new(&container.termination_message_path));
        let status = container.first.end(exit, oom_killed, message).await;
        self.events.push(Event {
            pid: container.first.pid,
            exit: Some(status).into(),
            ..self.event(
                EventKind::CONTAINER_EXITED,
                &container.first.name,
                container.label.as_ref(),
            )
        });
    }

    fn report_oom(&self, container: &Container) {
        let kills = container.group.oom_kills();
        if container.oom_reported.swap(kills, Ordering::Relaxed) < kills {
            self.events.push(self.event(
                EventKind::CONTAINER_OOM,
                &container.first.name,
                container.label.as_ref(),
            ));
        }
    }

    async fn create_exec(
        self: Arc<Self>,
        request: CreateExec,
        tail: Option<Tail>,
    ) -> Result<u32, ContainerError> {
        check_id("exec id", &request.exec)
            .map_err(|error| ContainerError::InvalidArgument(error.to_string()))?;
        if request.process.len() > OCI_SPEC_BYTES {
            return Err(ContainerError::InvalidArgument(format!(
                "OCI process of {} bytes exceeds the limit of {OCI_SPEC_BYTES} bytes",
                request.process.len()
            )));
        }
        let container = self.container(&request.container)?;
        let name = ProcessName::exec(request.container, request.exec);
        let plan = ProcessPlan::parse_exec(&request.process, &container.plan.process_json)
            .map_err(|error| ContainerError::InvalidArgument(format!("create {name}: {error}")))?;
        if container.first.is_ended() {
            return Err(ContainerError::FailedPrecondition(format!(
                "create {name}: the container has ended"
            )));
        }
        {
            let mut execs = container.execs();
            if execs.contains_key(&name.exec) {
                return Err(ContainerError::AlreadyExists(format!(
                    "{name} exists already"
                )));
            }
            if execs.len() >= EXECS {
                return Err(ContainerError::FailedPrecondition(format!(
                    "container {:?} has {EXECS} execs, which is the limit: delete one first",
                    name.container
                )));
            }
            execs.insert(name.exec.clone(), None);
        }
        let launched = launch::exec(
            &self.config,
            &self.reaper,
            launch::ExecPlace {
                plan: &container.plan,
                group: &container.group,
                first: &container.first,
            },
            name.clone(),
            plan,
            &request.stdio,
            &tail.unwrap_or_default(),
        )
        .await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                container.execs().remove(&name.exec);
                return Err(error);
            }
        };
        let process = Arc::new(launched.process);
        let pid = process.pid;
        self.register_streams(&name, &process.streams);
        container
            .execs()
            .insert(name.exec.clone(), Some(Arc::clone(&process)));
        let exit = launched.exit;
        tokio::spawn(async move {
            if let Ok(exit) = exit.await {
                let status = process.end(exit, false, String::new()).await;
                self.events.push(Event {
                    pid,
                    exit: Some(status).into(),
                    ..self.event(EventKind::EXEC_EXITED, &name, container.label.as_ref())
                });
            }
        });
        Ok(pid)
    }

    async fn start(self: Arc<Self>, name: ProcessName) -> Result<(), ContainerError> {
        let container = self.container(&name.container)?;
        let process = self.process(&name)?;
        let kind = if name.is_container() {
            EventKind::CONTAINER_STARTED
        } else {
            EventKind::EXEC_STARTED
        };
        process
            .start(|| {
                self.events.push(Event {
                    pid: process.pid,
                    ..self.event(kind, &name, container.label.as_ref())
                });
            })
            .await?;
        let poststart = &container.plan.hooks.poststart;
        if name.is_container() && !poststart.is_empty() {
            let pid = libc::pid_t::try_from(process.pid).ok();
            let state = hooks::state(&container.plan.state, "running", pid);
            if let Err(error) = hooks::run(&self.reaper, poststart, "poststart", &state).await {
                crate::boot::report(&format!("{name}: {error}"));
            }
        }
        Ok(())
    }

    async fn delete(self: Arc<Self>, name: ProcessName) -> Result<ExitStatus, ContainerError> {
        let container = self.container(&name.container)?;
        let process = self.process(&name)?;
        match process.stage() {
            Stage::Ended(_) => {}
            Stage::Running => {
                return Err(ContainerError::FailedPrecondition(format!(
                    "{name} is running: kill it before it is deleted"
                )));
            }
            Stage::Created => {
                let _ = process.signal(libc::SIGKILL.unsigned_abs());
            }
        }
        let status = process.ended().await.ok_or_else(|| unknown(&name))?;
        if !name.is_container() {
            container.execs().remove(&name.exec);
            self.retire_streams(&name);
            return Ok(status);
        }
        let _ = container.group.kill();
        if !until(DEATH_WAIT, || container.group.remove().is_ok()).await {
            return Err(ContainerError::Internal(format!(
                "delete {name}: processes are left in its control group after {} s",
                DEATH_WAIT.as_secs()
            )));
        }
        self.oom.remove(&name.container);
        self.state().containers.remove(&name.container);
        let execs: Vec<String> = container.execs().keys().cloned().collect();
        for exec in execs {
            self.retire_streams(&ProcessName::exec(name.container.clone(), exec));
        }
        self.retire_streams(&name);
        let poststop = &container.plan.hooks.poststop;
        if !poststop.is_empty() {
            let state = hooks::state(&container.plan.state, "stopped", None);
            if let Err(error) = hooks::run(&self.reaper, poststop, "poststop", &state).await {
                crate::boot::report(&format!("{name}: {error}"));
            }
        }
        Ok(status)
    }
}

impl Container {
    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs an operation to its end even when the caller stops waiting for it.
async fn detached<T: Send + 'static>(
    operation: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Result<T, ContainerError> {
    tokio::spawn(operation)
        .await
        .unwrap_or_else(|error| Err(ContainerError::Internal(error.to_string())))
}

impl Containers for Engine {
    async fn create(&self, request: CreateContainer) -> Result<u32, ContainerError> {
        detached(Arc::clone(&self.inner).create(request)).await
    }

    async fn create_exec(&self, request: CreateExec) -> Result<u32, ContainerError> {
        detached(Arc::clone(&self.inner).create_exec(request, None)).await
    }

    async fn start(&self, process: &ProcessName) -> Result<(), ContainerError> {
        detached(Arc::clone(&self.inner).start(process.clone())).await
    }

    fn signal(&self, process: &ProcessName, signal: u32, all: bool) -> Result<(), ContainerError> {
        let found = self.inner.process(process)?;
        if !all {
            return found.signal(signal);
        }
        let container = self.inner.container(&process.container)?;
        if signal == libc::SIGKILL.unsigned_abs() {
            return container.group.kill().map_err(|error| {
                ContainerError::Internal(format!("kill container {:?}: {error}", container.id))
            });
        }
        for pid in container.group.pids() {
            let Ok(pid) = libc::pid_t::try_from(pid) else {
                continue;
            };
            // SAFETY: pidfd_open takes integers only.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            let Ok(fd @ 0..) = libc::c_int::try_from(fd) else {
                // Gone by now.
                continue;
            };
            // SAFETY: the kernel returned a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
            let number = libc::c_int::try_from(signal).unwrap_or(-1);
            if let Err(error) = crate::process::send_signal(&pidfd, number)
                && error.raw_os_error() == Some(libc::EINVAL)
            {
                return Err(ContainerError::InvalidArgument(format!(
                    "{signal} is not a signal number"
                )));
            }
        }
        Ok(())
    }

    async fn wait(&self, process: &ProcessName) -> Result<ExitStatus, ContainerError> {
        let found = self.inner.process(process)?;
        found.ended().await.ok_or_else(|| unknown(process))
    }

    async fn delete(&self, process: &ProcessName) -> Result<ExitStatus, ContainerError> {
        detached(Arc::clone(&self.inner).delete(process.clone())).await
    }

    async fn run(
        &self,
        container: &str,
        process: Vec<u8>,
        time: Duration,
        output_limit: usize,
    ) -> Result<ExecOutcome, ContainerError> {
        let number = self.inner.next_run.fetch_add(1, Ordering::Relaxed);
        let name = ProcessName::exec(container, format!("vmpod-run-{number}"));
        let engine = self.clone();
        // In a task of its own, so that the process is removed even when the caller gives up.
        detached(async move { engine.run_named(&name, process, time, output_limit).await }).await
    }

    fn output_tail(&self, container: &str) -> Vec<u8> {
        match self.inner.container(container) {
            Ok(container) => {
                container.first.streams.look_ahead();
                container.tail.bytes()
            }
            Err(_) => Vec::new(),
        }
    }

    fn events(&self) -> &EventLog {
        &self.inner.events
    }
}

impl Engine {
    async fn run_named(
        &self,
        name: &ProcessName,
        process: Vec<u8>,
        time: Duration,
        output_limit: usize,
    ) -> Result<ExecOutcome, ContainerError> {
        let deadline = tokio::time::Instant::now() + time;
        self.create_exec(CreateExec {
            container: name.container.clone(),
            exec: name.exec.clone(),
            process,
            stdio: Stdio {
                stdout: true,
                stderr: true,
                ..Default::default()
            },
        })
        .await?;
        if let Err(error) = self.start(name).await {
            let _ = self.delete(name).await;
            return Err(error);
        }
        let output = Arc::new(Mutex::new(Vec::new()));
        let collectors: Vec<_> = self
            .streams(name)
            .into_iter()
            .flat_map(|streams| streams.outputs())
            .map(|stream| {
                let output = Arc::clone(&output);
                tokio::spawn(async move { stream.collect(output_limit, &output).await })
            })
            .collect();
        let exit = tokio::time::timeout_at(deadline, self.wait(name))
            .await
            .ok();
        if exit.is_none() {
            let _ = self.signal(name, libc::SIGKILL.unsigned_abs(), false);
            let _ = self.wait(name).await;
        }
        // What was written before the end is there; a grandchild that keeps the pipe open is not waited for.
        for mut collector in collectors {
            if tokio::time::timeout(Duration::from_millis(50), &mut collector)
                .await
                .is_err()
            {
                collector.abort();
            }
        }
        let _ = self.delete(name).await;
        let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(ExecOutcome {
            exit: exit.transpose()?,
            output,
        })
    }
}
