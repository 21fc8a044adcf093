//! The tasks of one shim: a sandbox and its containers, or a container alone. Everything that containerd asks of them, in
//! its own terms; the guest's agent does what is done to processes.
//!
//! A handle that all connections share. Each process has a turn ([`Process::turn`]) that whoever changes its state holds,
//! and one task that waits for its end: so events come in their order, and nobody waits for another container's.

mod create;
mod ends;
mod execs;
mod freeze;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api as shim;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use tokio::sync::{Mutex as AsyncMutex, watch};
use vmpod_agent_protocol::messages as m;

use super::fault::Fault;
use super::process::Process;
use super::publisher::Publisher;
use super::sandbox::{Place, Sandbox};
use super::sandbox_wish::SandboxWish;
use super::stdio::StdioUris;
use super::streaming::Streams;
use super::task_state::{Exit, Operation, TaskState};
use super::timestamp;
use crate::pod::clock;
use crate::pod::tree::SnapshotMount;

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
    /// `vmpod.toml`, where containerd names one.
    pub settings: Option<PathBuf>,
}

/// The tasks of one shim.
#[derive(Debug)]
pub struct Tasks {
    place: Place,
    publisher: Publisher,
    streams: Streams,
    host_cpus: u64,
    /// The machine. Held while it is made, so that there is one.
    sandbox: AsyncMutex<Option<Arc<Sandbox>>>,
    /// Shared by all calls; never held across an await. `None`: being made.
    tasks: Mutex<BTreeMap<String, Option<Arc<Task>>>>,
    /// The pod was made by the sandbox service: it lives without tasks as well.
    by_itself: AtomicBool,
    shutdown: watch::Sender<bool>,
}

impl Task {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    /// No tasks yet, for the sandbox at `place`. `host_cpus` bounds the vCPUs.
    #[must_use]
    pub fn new(place: Place, publisher: Publisher, streams: Streams, host_cpus: u64) -> Arc<Self> {
        Arc::new(Self {
            place,
            publisher,
            streams,
            host_cpus,
            sandbox: AsyncMutex::new(None),
            tasks: Mutex::default(),
            by_itself: AtomicBool::new(false),
            shutdown: watch::Sender::new(false),
        })
    }

    pub(super) fn host_cpus(&self) -> u64 {
        self.host_cpus
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

    /// containerd's id of the pod.
    #[must_use]
    pub fn sandbox_id(&self) -> &str {
        &self.place.sandbox
    }

    /// From now on the pod lives until it is ended, whatever tasks it has.
    pub fn keep_without_tasks(&self) {
        self.by_itself.store(true, Ordering::Relaxed);
    }

    /// The machine, whether it runs or has ended.
    ///
    /// # Errors
    /// There never was one.
    pub async fn machine(&self) -> Result<Arc<Sandbox>, Fault> {
        self.sandbox.lock().await.clone().ok_or_else(|| {
            Fault::precondition(format!(
                "sandbox {} has no machine: it was not started",
                self.place.sandbox
            ))
        })
    }

    /// The machine.
    ///
    /// # Errors
    /// There is none, or none any more.
    pub async fn sandbox(&self) -> Result<Arc<Sandbox>, Fault> {
        let sandbox = self.machine().await?;
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
                sandbox.remove_member(id);
            }
            self.tasks().remove(id);
            let alone = self.tasks().is_empty();
            if alone && !self.by_itself.load(Ordering::Relaxed) {
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
        let of_use = !self.tasks().is_empty() || self.by_itself.load(Ordering::Relaxed);
        if of_use && !now {
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
