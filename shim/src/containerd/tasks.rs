//! The tasks of one shim: a sandbox and its containers, or a container alone. Everything that containerd asks of them, in
//! its own terms; the guest's agent does what is done to processes.
//!
//! A handle that all connections share. Each process has a turn ([`Process::turn`]) that whoever changes its state holds,
//! and one task that waits for its end: so events come in their order, and nobody waits for another container's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api as shim;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use serde_json::{Map, Value};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::timeout;
use vmpod_agent_protocol::messages as m;

use super::bundle::{OciBundle, Role};
use super::fault::Fault;
use super::guest_spec::{GuestSpec, PidNamespace};
use super::process::{Process, guest_pid, told_pid};
use super::publisher::Publisher;
use super::sandbox::{Place, Sandbox};
use super::sandbox_wish::SandboxWish;
use super::stdio::{ProcessStdio, StdioUris};
use super::task_state::{Exit, Operation, TaskState};
use super::timestamp;
use crate::pod::clock;
use crate::pod::tree::{RootSource, SnapshotMount};

/// Status of what was killed with its machine: as of SIGKILL.
pub const KILLED: u32 = 128 + 9;

/// How long output may still come when a process is deleted.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How long a machine may live whose agent is not there any more.
const LOST_LIMIT: Duration = Duration::from_secs(3);

/// A container, or the sandbox itself.
#[derive(Debug)]
pub struct Task {
    /// Its bundle.
    pub bundle: PathBuf,
    /// Whether it is the machine.
    pub is_sandbox: bool,
    /// Its first process.
    pub first: Arc<Process>,
    /// Processes that were added. Never held across an await.
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
}

/// A process that was added to a container.
#[derive(Debug)]
struct Exec {
    process: Arc<Process>,
    /// OCI `process` object.
    spec: Vec<u8>,
}

/// What a task is made from.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system; empty: the bundle says which directory.
    pub rootfs: Vec<SnapshotMount>,
    /// Where its streams go.
    pub uris: StdioUris,
}

/// The tasks of one shim.
#[derive(Debug)]
pub struct Tasks {
    place: Place,
    publisher: Publisher,
    host_cpus: u64,
    /// The machine. Held while it is made, so that there is one.
    sandbox: AsyncMutex<Option<Arc<Sandbox>>>,
    /// Shared by all calls; never held across an await. `None`: being made.
    tasks: Mutex<BTreeMap<String, Option<Arc<Task>>>>,
    shutdown: watch::Sender<bool>,
}

impl Task {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    /// No tasks yet, for the sandbox at `place`.
    #[must_use]
    pub fn new(place: Place, publisher: Publisher, host_cpus: u64) -> Arc<Self> {
        Arc::new(Self {
            place,
            publisher,
            host_cpus,
            sandbox: AsyncMutex::new(None),
            tasks: Mutex::default(),
            shutdown: watch::Sender::new(false),
        })
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Task>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Task `id`.
    ///
    /// # Errors
    /// There is none.
    pub fn task(&self, id: &str) -> Result<Arc<Task>, Fault> {
        self.tasks()
            .get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| Fault::not_found(format!("container {id} has no task")))
    }

    /// Process `exec` (empty: the first one) of task `id`.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, id: &str, exec: &str) -> Result<(Arc<Task>, Arc<Process>), Fault> {
        let task = self.task(id)?;
        if exec.is_empty() {
            let first = Arc::clone(&task.first);
            return Ok((task, first));
        }
        let found = task.execs().get(exec).map(|exec| Arc::clone(&exec.process));
        found
            .map(|process| (task, process))
            .ok_or_else(|| Fault::not_found(format!("container {id} has no exec {exec}")))
    }

    /// The machine.
    ///
    /// # Errors
    /// There is none, or none any more.
    pub async fn sandbox(&self) -> Result<Arc<Sandbox>, Fault> {
        let sandbox = self.sandbox.lock().await.clone().ok_or_else(|| {
            Fault::precondition(format!(
                "sandbox {} has no machine: it was not created, or has ended",
                self.place.sandbox
            ))
        })?;
        match sandbox.end() {
            None => Ok(sandbox),
            Some(end) => Err(Fault::precondition(format!(
                "sandbox {}: {end}",
                self.place.sandbox
            ))),
        }
    }

    /// Makes the machine of `wish`, unless it is there.
    ///
    /// # Errors
    /// What it lacks.
    pub async fn start_sandbox(
        self: &Arc<Self>,
        wish: &SandboxWish,
    ) -> Result<Arc<Sandbox>, Fault> {
        let mut held = self.sandbox.lock().await;
        if let Some(sandbox) = &*held {
            return Ok(Arc::clone(sandbox));
        }
        let sandbox = Arc::new(Sandbox::start(&self.place, wish).await?);
        *held = Some(Arc::clone(&sandbox));
        tokio::spawn(Arc::clone(self).tell_ooms(Arc::clone(&sandbox)));
        Ok(sandbox)
    }

    /// Makes a task. Returns its process id.
    ///
    /// # Errors
    /// What it lacks; nothing of it is left then.
    pub async fn create(self: &Arc<Self>, request: CreateTask) -> Result<u32, Fault> {
        {
            let mut tasks = self.tasks();
            if tasks.contains_key(&request.id) {
                return Err(Fault::already_exists(format!(
                    "container {} has a task already",
                    request.id
                )));
            }
            tasks.insert(request.id.clone(), None);
        }
        let id = request.id.clone();
        let (bundle, rootfs) = (request.bundle.clone(), request.rootfs.clone());
        let made = self.make(request).await;
        let task = match made {
            Ok(task) => task,
            Err(fault) => {
                self.tasks().remove(&id);
                return Err(fault);
            }
        };
        let uris = &task.first.uris;
        let created = events::TaskCreate {
            container_id: id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            rootfs: rootfs.iter().map(told_mount).collect(),
            io: MessageField::some(events::TaskIO {
                stdin: uris.stdin.clone(),
                stdout: uris.stdout.clone(),
                stderr: uris.stderr.clone(),
                terminal: uris.terminal,
                ..Default::default()
            }),
            pid: task.first.pid(),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_CREATE_EVENT_TOPIC, &created);
        let pid = task.first.pid();
        self.tasks().insert(id, Some(Arc::clone(&task)));
        let first = Arc::clone(&task.first);
        tokio::spawn(Arc::clone(self).watch_process(first, task.is_sandbox));
        Ok(pid)
    }

    async fn make(self: &Arc<Self>, request: CreateTask) -> Result<Arc<Task>, Fault> {
        let bundle = OciBundle::read(&request.bundle)?;
        let sandbox = match &bundle.role {
            Role::Sandbox | Role::Single => {
                let wish = SandboxWish::of(&bundle, self.host_cpus)?;
                self.start_sandbox(&wish).await?
            }
            Role::Member(_) => self.sandbox().await?,
        };
        let process = Process::new(&request.id, "", request.uris.clone());
        let is_sandbox = bundle.role == Role::Sandbox;
        if is_sandbox {
            // The machine is the pause container: this process stands for it.
            process.set_pid(std::process::id());
        } else {
            let alone = bundle.role == Role::Single;
            let made = self
                .make_container(&sandbox, &request, bundle, &process)
                .await;
            if let Err(fault) = made {
                if alone {
                    self.end_sandbox().await;
                }
                return Err(fault);
            }
        }
        Ok(Arc::new(Task {
            bundle: request.bundle,
            is_sandbox,
            first: Arc::new(process),
            execs: Mutex::default(),
        }))
    }

    async fn make_container(
        &self,
        sandbox: &Sandbox,
        request: &CreateTask,
        bundle: OciBundle,
        process: &Process,
    ) -> Result<(), Fault> {
        let id = &request.id;
        let root = root_source(&bundle, &request.rootfs)?;
        let spec = GuestSpec::of(id, bundle.config)?;
        let mut config = spec.config;
        let shares_pids = self.join_pids(&spec.pids, &mut config)?;
        sandbox.tree.add_member(id, &root, &spec.binds)?;
        let wanted = m::CreateContainerRequest {
            container_id: id.clone(),
            // A value that was read as JSON is always written again.
            oci_spec: serde_json::to_vec(&config).unwrap_or_default(),
            stdio: Some(request.uris.wanted()).into(),
            pids: shares_pids.into(),
            ..Default::default()
        };
        let started = match sandbox.agent.create_container(&wanted).await {
            Ok(started) => started,
            Err(error) => {
                sandbox.tree.remove_member(id);
                return Err(error.into());
            }
        };
        process.set_pid(told_pid(started.pid));
        let connected = ProcessStdio::connect(
            &sandbox.socket,
            id,
            "",
            &request.uris,
            &self.place.namespace,
        )
        .await;
        match connected {
            Ok(stdio) => {
                *process.turn().await = Some(stdio);
                Ok(())
            }
            Err(error) => {
                let _ = sandbox.agent.delete_container(&reference(id, "")).await;
                sandbox.tree.remove_member(id);
                Err(error.into())
            }
        }
    }

    /// Which process namespace the agent is asked for; the guest's path to it goes into `config`.
    fn join_pids(
        &self,
        pids: &PidNamespace,
        config: &mut Map<String, Value>,
    ) -> Result<m::PidNamespace, Fault> {
        let path = match pids {
            PidNamespace::Own => return Ok(m::PidNamespace::PID_NAMESPACE_OWN),
            PidNamespace::Joined(path) => path,
        };
        let pid = path
            .strip_prefix("/proc")
            .ok()
            .and_then(|rest| rest.to_str()?.strip_suffix("/ns/pid")?.parse().ok());
        if pid == Some(std::process::id()) {
            return Ok(m::PidNamespace::PID_NAMESPACE_POD);
        }
        let known = pid.filter(|&pid| {
            let tasks = self.tasks();
            tasks.values().flatten().any(|task| task.first.pid() == pid)
        });
        let Some(guest) = known.and_then(guest_pid) else {
            return Err(Fault::precondition(format!(
                "the process namespace {} is not that of a container in this pod",
                path.display()
            )));
        };
        let namespaces = config
            .get_mut("linux")
            .and_then(|linux| linux.get_mut("namespaces"))
            .and_then(Value::as_array_mut);
        if let Some(namespaces) = namespaces {
            namespaces
                .push(serde_json::json!({"type": "pid", "path": format!("/proc/{guest}/ns/pid")}));
        }
        Ok(m::PidNamespace::PID_NAMESPACE_OWN)
    }

    /// Lets a process run. Returns its process id.
    ///
    /// # Errors
    /// When it cannot be executed; it has ended then.
    pub async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32, Fault> {
        let (task, process) = self.process(id, exec)?;
        let mut turn = process.turn().await;
        process.check(Operation::Start)?;
        if task.is_sandbox && exec.is_empty() {
            process.set(TaskState::Running);
        } else if exec.is_empty() {
            let sandbox = self.sandbox().await?;
            sandbox.agent.start_container(&reference(id, "")).await?;
            process.set(TaskState::Running);
        } else {
            let sandbox = self.sandbox().await?;
            let started = self.start_exec(&sandbox, &task, &process).await;
            match started {
                Ok(stdio) => *turn = Some(stdio),
                Err(fault) => {
                    process.set(TaskState::Stopped(Exit {
                        status: 128,
                        at_ns: clock::now_ns(),
                    }));
                    return Err(fault);
                }
            }
            process.set(TaskState::Running);
            tokio::spawn(Arc::clone(self).watch_process(Arc::clone(&process), false));
        }
        let pid = process.pid();
        if exec.is_empty() {
            let event = events::TaskStart {
                container_id: id.to_owned(),
                pid,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_START_EVENT_TOPIC, &event);
        } else {
            let event = events::TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec.to_owned(),
                pid,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
        drop(turn);
        Ok(pid)
    }

    async fn start_exec(
        &self,
        sandbox: &Sandbox,
        task: &Task,
        process: &Process,
    ) -> Result<ProcessStdio, Fault> {
        let (id, exec) = (&process.container, &process.exec);
        let spec = task.execs().get(exec).map(|exec| exec.spec.clone());
        let request = m::CreateExecRequest {
            container_id: id.clone(),
            exec_id: exec.clone(),
            oci_process: spec.unwrap_or_default(),
            stdio: Some(process.uris.wanted()).into(),
            ..Default::default()
        };
        let started = sandbox.agent.create_exec(&request).await?;
        process.set_pid(told_pid(started.pid));
        let name = reference(id, exec);
        let running = async {
            let stdio = ProcessStdio::connect(
                &sandbox.socket,
                id,
                exec,
                &process.uris,
                &self.place.namespace,
            )
            .await?;
            sandbox.agent.start_exec(&name).await?;
            Ok(stdio)
        };
        let running: Result<ProcessStdio, Fault> = running.await;
        if running.is_err() {
            let _ = sandbox.agent.delete_container(&name).await;
        }
        running
    }

    /// Adds a process to a container; it does not run yet.
    ///
    /// # Errors
    /// When the container does not run or the id is taken.
    pub fn add_exec(
        &self,
        id: &str,
        exec: &str,
        spec: Vec<u8>,
        uris: StdioUris,
    ) -> Result<(), Fault> {
        let task = self.task(id)?;
        if task.is_sandbox {
            return Err(Fault::precondition(format!(
                "container {id} is the pod's sandbox, which is a machine: nothing can be executed in it but in the pod's other containers"
            )));
        }
        task.first.check(Operation::Exec)?;
        let process: Value = serde_json::from_slice(&spec).map_err(|error| {
            Fault::invalid(format!(
                "exec {exec} of container {id}: its OCI process is not JSON: {error}"
            ))
        })?;
        let mut process = process;
        if let Some(object) = process.as_object_mut() {
            for name in ["apparmorProfile", "selinuxLabel"] {
                object.remove(name);
            }
        }
        let mut execs = task.execs();
        if execs.contains_key(exec) {
            return Err(Fault::already_exists(format!(
                "container {id} has an exec {exec} already"
            )));
        }
        execs.insert(
            exec.to_owned(),
            Arc::new(Exec {
                process: Arc::new(Process::new(id, exec, uris)),
                spec: serde_json::to_vec(&process).unwrap_or_default(),
            }),
        );
        drop(execs);
        let event = events::TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Waits for the end of a process in the guest and tells containerd.
    async fn watch_process(self: Arc<Self>, process: Arc<Process>, is_sandbox: bool) {
        let Some(sandbox) = self.sandbox.lock().await.clone() else {
            return;
        };
        let killed = || Exit {
            status: KILLED,
            at_ns: clock::now_ns(),
        };
        let mut oom = false;
        let exit = if is_sandbox {
            sandbox.ended().await;
            killed()
        } else {
            let name = reference(&process.container, &process.exec);
            tokio::select! {
                // What the agent said last comes before the end of its machine.
                biased;
                waited = sandbox.agent.wait_process(&name) => match waited {
                    Ok(status) => {
                        oom = status.oom_killed;
                        Exit {
                            status: status.code,
                            at_ns: if status.finished_at_ns > 0 {
                                status.finished_at_ns
                            } else {
                                clock::now_ns()
                            },
                        }
                    }
                    Err(error) => {
                        tracing::warn!(process = process.name(), %error, "the agent does not say how a process ends");
                        // Its machine most likely ends as well; one that does not is of no use.
                        if timeout(LOST_LIMIT, sandbox.ended()).await.is_err() && !error.is_not_found() {
                            sandbox.stop();
                            sandbox.ended().await;
                        }
                        killed()
                    }
                },
                _ = sandbox.ended() => killed(),
            }
        };
        let _turn = process.turn().await;
        if !process.set(TaskState::Stopped(exit)) {
            return;
        }
        if oom && process.exec.is_empty() {
            self.tell_oom(&process);
        }
        self.tell_exit(&process, exit);
    }

    fn tell_exit(&self, process: &Process, exit: Exit) {
        let event = events::TaskExit {
            container_id: process.container.clone(),
            id: if process.exec.is_empty() {
                process.container.clone()
            } else {
                process.exec.clone()
            },
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at_ns)),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    fn tell_oom(&self, process: &Process) {
        if process.oom_was_told() {
            return;
        }
        let event = events::TaskOOM {
            container_id: process.container.clone(),
            ..Default::default()
        };
        self.publisher.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    /// Tells containerd of out-of-memory kills in the guest, until the machine ends.
    async fn tell_ooms(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        const WAIT: Duration = Duration::from_secs(25);
        let mut after = 0;
        loop {
            let batch = tokio::select! {
                batch = sandbox.agent.next_events(after, WAIT) => batch,
                _ = sandbox.ended() => return,
            };
            let Ok(batch) = batch else {
                // Whoever waits for a process says what became of the agent.
                return;
            };
            for event in &batch.events {
                if event.kind.enum_value_or(m::EventKind::UNKNOWN) == m::EventKind::CONTAINER_OOM
                    && let Ok(task) = self.task(&event.container_id)
                    && task.first.state().exit().is_none()
                {
                    self.tell_oom(&task.first);
                }
            }
            let last = batch.events.iter().map(|event| event.sequence).max();
            // An agent that repeats itself would keep this loop busy.
            if last.is_some_and(|last| last <= after) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            after = after.max(last.unwrap_or(0));
        }
    }

    /// Signals a process, or all of its container.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Fault> {
        let (task, process) = self.process(id, exec)?;
        process.check(Operation::Kill)?;
        if task.is_sandbox {
            // As pause does, which ends on these three.
            let ends = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT];
            if ends.map(libc::c_int::cast_unsigned).contains(&signal) {
                self.end_sandbox().await;
            }
            return Ok(());
        }
        if !exec.is_empty() && process.state() == TaskState::Created {
            let exit = Exit {
                status: 128 + signal,
                at_ns: clock::now_ns(),
            };
            process.set(TaskState::Stopped(exit));
            self.tell_exit(&process, exit);
            return Ok(());
        }
        let request = m::SignalRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        match self.sandbox().await?.agent.signal_process(&request).await {
            Err(error) if error.is_not_found() => Err(Fault::refused(
                Operation::Kill,
                &process.name(),
                process.state(),
                super::task_state::Refusal::Gone,
            )),
            other => other.map(drop).map_err(Fault::from),
        }
    }

    /// Ends the machine and waits for that.
    pub async fn end_sandbox(&self) {
        let Some(sandbox) = self.sandbox.lock().await.clone() else {
            return;
        };
        sandbox.stop();
        sandbox.ended().await;
    }

    /// Forgets a process that has ended, or never ran. Returns its process id and how it ended.
    ///
    /// # Errors
    /// When it runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(u32, Exit), Fault> {
        let (task, process) = self.process(id, exec)?;
        {
            let _turn = process.turn().await;
            process.check(Operation::Delete)?;
        }
        if task.is_sandbox && exec.is_empty() {
            self.end_sandbox().await;
        } else if let Ok(sandbox) = self.sandbox().await {
            // One that never ran is killed by that; one that was never made is not there.
            match sandbox.agent.delete_container(&reference(id, exec)).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        if process.state() == TaskState::Created && !exec.is_empty() {
            process.set(TaskState::Stopped(Exit {
                status: 0,
                at_ns: clock::now_ns(),
            }));
        }
        let exit = process.ended().await;
        if let Some(mut stdio) = process.turn().await.take() {
            stdio.drain(DRAIN_LIMIT).await;
        }
        let pid = process.pid();
        if exec.is_empty() {
            if let Ok(sandbox) = self.sandbox().await {
                sandbox.tree.remove_member(id);
            }
            self.tasks().remove(id);
            let alone = self.tasks().is_empty();
            if alone {
                // Without a sandbox task nobody else ends the machine.
                self.end_sandbox().await;
            }
        } else {
            task.execs().remove(exec);
        }
        let event = events::TaskDelete {
            container_id: id.to_owned(),
            id: exec.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at_ns)),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok((pid, exit))
    }

    /// Freezes a container, or lets it go on.
    ///
    /// # Errors
    /// When it is not in the state for that.
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<(), Fault> {
        let task = self.task(id)?;
        let _turn = task.first.turn().await;
        let operation = if frozen {
            Operation::Pause
        } else {
            Operation::Resume
        };
        task.first.check(operation)?;
        if task.is_sandbox {
            return Err(Fault::unimplemented(format!(
                "cannot {} the pod's sandbox; its containers can be, one by one",
                operation.word()
            )));
        }
        let sandbox = self.sandbox().await?;
        let name = reference(id, "");
        let container_id = id.to_owned();
        if frozen {
            sandbox.agent.pause_container(&name).await?;
            task.first.set(TaskState::Paused);
            let event = events::TaskPaused {
                container_id,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            sandbox.agent.resume_container(&name).await?;
            task.first.set(TaskState::Running);
            let event = events::TaskResumed {
                container_id,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        }
        Ok(())
    }

    /// Ends the input of a process.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn close_input(&self, id: &str, exec: &str) -> Result<(), Fault> {
        let (_, process) = self.process(id, exec)?;
        if let Some(stdio) = &*process.turn().await {
            stdio.close_input();
        }
        Ok(())
    }

    /// Whether this shim is of no more use: nothing is left, or it was told to go `now`.
    pub async fn shut_down(&self, now: bool) {
        if !now && !self.tasks().is_empty() {
            return;
        }
        self.end_sandbox().await;
        self.shutdown.send_replace(true);
    }

    /// Waits until [`Self::shut_down`] has done its work.
    pub async fn wait_shutdown(&self) {
        let mut shutdown = self.shutdown.subscribe();
        // The sender is in `self`.
        let _ = shutdown.wait_for(|down| *down).await;
    }
}

/// The agent's name of a process.
#[must_use]
pub fn reference(container: &str, exec: &str) -> m::ProcessRef {
    m::ProcessRef {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        ..Default::default()
    }
}

fn told_mount(mount: &SnapshotMount) -> shim::Mount {
    shim::Mount {
        type_: mount.kind.clone(),
        source: mount.source.to_string_lossy().into_owned(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

/// Where the root file system comes from: the snapshotter's mounts, or else the directory that the configuration names.
fn root_source(bundle: &OciBundle, mounts: &[SnapshotMount]) -> Result<RootSource, Fault> {
    if !mounts.is_empty() {
        return Ok(RootSource::Mounts(mounts.to_vec()));
    }
    let path = bundle
        .config
        .get("root")
        .and_then(|root| root.get("path"))
        .and_then(Value::as_str)
        .filter(|path| !path.is_empty())
        .ok_or_else(|| {
            Fault::invalid(format!(
                "bundle {}: there are no mounts for the root file system, and config.json has no root.path",
                bundle.path.display()
            ))
        })?;
    let path = bundle.path.join(path);
    if !path.is_dir() {
        return Err(Fault::invalid(format!(
            "bundle {}: the root file system {} is not a directory; an image without layers has none",
            bundle.path.display(),
            path.display()
        )));
    }
    Ok(RootSource::Directory(path))
}
