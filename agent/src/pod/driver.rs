//! Carries out what the pod's state machine says: the one task that owns it, and the handle to that task.
//!
//! Every wait of a container is a task of its own that reports back; the driver itself waits for nothing but reports and
//! the machine's timer.

mod announce;
mod care;
mod life;
mod news;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use vmpod_agent_protocol::limits::MESSAGE_BYTES;
use vmpod_agent_protocol::messages::{
    self, ExitStatus, PodContainer, PodStatus, ProvideRootfsRequest, StartPodRequest,
    StopPodRequest,
};

use self::care::Hook;
use self::life::Life;
pub(super) use self::news::Seen;
use super::machine::{Action, Input, PodMachine, Time};
use super::request::{self, Care, Checked, RequestError};
use super::status::ContainerRecord;
use crate::clock;
use crate::container::{Containers, CreateContainer, PodLabel, ProcessName};
use crate::probe::{self, Told, Watched};

/// SIGTERM, for containers that name no stop signal.
const DEFAULT_STOP_SIGNAL: u32 = 15;

/// SIGKILL.
const KILL_SIGNAL: u32 = 9;

/// A pod operation was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// The request cannot be meant.
    #[error(transparent)]
    Invalid(#[from] RequestError),
    /// A pod was started already.
    #[error(
        "start pod: this machine runs its pod already; a machine holds one pod for its whole life"
    )]
    AlreadyStarted,
    /// No pod was started.
    #[error("{0}: no pod was started in this machine")]
    NotStarted(&'static str),
    /// The container or attempt is not waiting for a root file system.
    #[error("provide rootfs: container {container:?} does not wait for one for attempt {attempt}")]
    NotWanted {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
    },
}

/// Handle to the pod of this machine. Clones name the same pod.
#[derive(Clone, Debug)]
pub struct PodDriver<C> {
    containers: C,
    // Shared by the service's calls and the driver's task; never held across an await.
    shared: Arc<Mutex<Shared>>,
    published: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Shared {
    reports: Option<mpsc::UnboundedSender<Report>>,
    status: PodStatus,
    /// How far the status is with each container, in the order of `wanted`.
    seen: Vec<Seen>,
    /// Names in order, and the attempt each waits for a root file system for.
    wanted: Vec<(String, Option<u32>)>,
}

#[derive(Debug)]
enum Report {
    Rootfs {
        index: usize,
        attempt: u32,
        path: Result<String, String>,
    },
    Started {
        index: usize,
        pid: u32,
    },
    Ended {
        index: usize,
        exit: ExitStatus,
    },
    Stop {
        grace: Option<Duration>,
        reason: String,
    },
    Hook {
        attempt: Attempt,
        hook: Hook,
        result: Result<(), String>,
    },
}

/// One attempt of a container: what hooks and probes answer is about it, however late.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    index: usize,
    attempt: u32,
}

impl<C: Containers> PodDriver<C> {
    /// A driver without a pod yet.
    pub fn new(containers: C) -> Self {
        Self {
            containers,
            shared: Arc::default(),
            published: Arc::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the pod. Returns at once; events and status tell how it goes. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The request is wrong, or a pod was started before.
    pub fn start(&self, request: StartPodRequest) -> Result<(), PodError> {
        let address = probe::address_or_loopback(&request.pod_ip);
        let Checked {
            settings,
            containers,
            care,
        } = request::check(request)?;
        let mut shared = self.lock();
        if shared.reports.is_some() {
            return Err(PodError::AlreadyStarted);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        shared.reports = Some(sender.clone());
        shared.wanted = containers.iter().map(|c| (c.name.clone(), None)).collect();
        let init_count = settings
            .containers
            .iter()
            .filter(|traits| traits.role != super::machine::Role::Main)
            .count();
        let (tell, told) = mpsc::unbounded_channel();
        let task = Task {
            running: care.iter().map(|_| None).collect(),
            hooks: care.iter().map(|_| None).collect(),
            care,
            address,
            tell,
            machine: PodMachine::new(settings),
            records: containers
                .iter()
                .map(|c| ContainerRecord::new(c.name.clone()))
                .collect(),
            rootfs: containers.iter().map(|c| c.rootfs.clone()).collect(),
            plans: containers,
            init_count,
            containers: self.containers.clone(),
            shared: Arc::clone(&self.shared),
            published: Arc::clone(&self.published),
            reports: sender,
            began: Instant::now(),
            started_at_ns: clock::realtime_ns(),
            stop_reason: String::new(),
        };
        task.publish(&mut shared);
        drop(shared);
        tokio::spawn(task.run(receiver, told));
        Ok(())
    }

    /// Takes the host's answer to `ROOTFS_WANTED`.
    ///
    /// # Errors
    /// No pod, or nothing waits for it.
    pub fn provide_rootfs(&self, request: ProvideRootfsRequest) -> Result<(), PodError> {
        let mut shared = self.lock();
        let Some(reports) = shared.reports.clone() else {
            return Err(PodError::NotStarted("provide rootfs"));
        };
        let wanted = shared
            .wanted
            .iter_mut()
            .enumerate()
            .find(|(_, (name, attempt))| {
                *name == request.container && *attempt == Some(request.attempt)
            });
        let Some((index, (_, wanted))) = wanted else {
            return Err(PodError::NotWanted {
                container: request.container,
                attempt: request.attempt,
            });
        };
        *wanted = None;
        let path = if request.error.is_empty() {
            Ok(request.rootfs)
        } else {
            Err(request.error)
        };
        let _ = reports.send(Report::Rootfs {
            index,
            attempt: request.attempt,
            path,
        });
        Ok(())
    }

    /// Brings the pod down. Idempotent; a later call may shorten the grace.
    ///
    /// # Errors
    /// No pod was started.
    pub fn stop(&self, request: &StopPodRequest) -> Result<(), PodError> {
        let shared = self.lock();
        let Some(reports) = &shared.reports else {
            return Err(PodError::NotStarted("stop pod"));
        };
        let grace = request
            .has_grace
            .then(|| Duration::from_secs(u64::from(request.grace_seconds)));
        let reason = request.reason.chars().take(MESSAGE_BYTES / 4).collect();
        // The task has ended when nothing receives: the pod is down already.
        let _ = reports.send(Report::Stop { grace, reason });
        Ok(())
    }

    /// The pod's status at this moment.
    ///
    /// # Errors
    /// No pod was started.
    pub fn status(&self) -> Result<PodStatus, PodError> {
        let shared = self.lock();
        if shared.reports.is_none() {
            return Err(PodError::NotStarted("pod status"));
        }
        Ok(shared.status.clone())
    }
}

struct Task<C> {
    machine: PodMachine,
    plans: Vec<PodContainer>,
    records: Vec<ContainerRecord>,
    rootfs: Vec<String>,
    care: Vec<Care>,
    /// Probes of containers that run.
    running: Vec<Option<Watched>>,
    /// The hook of each container that runs at present.
    hooks: Vec<Option<tokio::task::AbortHandle>>,
    tell: mpsc::UnboundedSender<(Attempt, Told)>,
    address: IpAddr,
    init_count: usize,
    containers: C,
    shared: Arc<Mutex<Shared>>,
    published: Arc<Notify>,
    reports: mpsc::UnboundedSender<Report>,
    began: Instant,
    started_at_ns: i64,
    stop_reason: String,
}

impl<C: Containers> Task<C> {
    async fn run(
        mut self,
        mut receiver: mpsc::UnboundedReceiver<Report>,
        mut told: mpsc::UnboundedReceiver<(Attempt, Told)>,
    ) {
        self.feed(Input::Begin);
        while !self.machine.finished() {
            let timer = self.machine.next_timer().map(|at| self.began + at);
            let report = tokio::select! {
                report = receiver.recv() => report,
                Some((attempt, told)) = told.recv() => {
                    self.hear(attempt, told);
                    continue;
                }
                () = sleep_until(timer.unwrap_or(self.began)), if timer.is_some() => {
                    self.feed(Input::Timer);
                    continue;
                }
            };
            match report {
                Some(report) => self.take(report),
                None => return,
            }
        }
    }

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Rootfs {
                index,
                attempt,
                path: Ok(path),
            } => {
                if let Some(place) = self.rootfs.get_mut(index) {
                    *place = path;
                }
                self.feed(Input::RootfsReady { index, attempt });
            }
            Report::Rootfs {
                index,
                attempt,
                path: Err(error),
            } => {
                // The attempt takes place and fails, so that back-off and restart policy apply to it.
                if let Some(place) = self.rootfs.get_mut(index) {
                    place.clear();
                }
                if let Some(record) = self.records.get_mut(index) {
                    record.rootfs_error = Some(error);
                }
                self.feed(Input::RootfsReady { index, attempt });
            }
            Report::Started { index, pid } => {
                if let Some(record) = self.records.get_mut(index) {
                    record.started(pid, clock::realtime_ns());
                }
                self.feed(Input::Started { index });
            }
            Report::Ended { index, exit } => {
                let success = exit.code == 0;
                if let Some(record) = self.records.get_mut(index) {
                    record.ended(exit);
                }
                self.let_go(index);
                self.feed(Input::Ended { index, success });
            }
            Report::Stop { grace, reason } => {
                if self.machine.end_reason().is_none() {
                    self.stop_reason = reason;
                }
                self.feed(Input::Stop { grace });
            }
            Report::Hook {
                attempt,
                hook,
                result,
            } => self.hook_ended(attempt, hook, result),
        }
    }

    fn feed(&mut self, input: Input) {
        let actions = self.machine.handle(self.now(), input);
        for action in &actions {
            self.act(*action);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.publish(&mut shared);
        drop(shared);
        self.published.notify_waiters();
        // Status first: whoever reads it because of an event must find the event's news in it.
        for action in actions {
            self.announce(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::WantRootfs { index, attempt } => {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, wanted)) = shared.wanted.get_mut(index) {
                    *wanted = Some(attempt);
                }
            }
            Action::Run { index, attempt } => self.start_container(index, attempt),
            Action::Stop { index } => {
                let signal = self.plans.get(index).map_or(0, |plan| plan.stop_signal);
                let signal = if signal == 0 {
                    DEFAULT_STOP_SIGNAL
                } else {
                    signal
                };
                self.signal(index, signal, false);
            }
            Action::Kill { index } => self.signal(index, KILL_SIGNAL, true),
            Action::BackingOff { index, delay } => {
                if let Some(record) = self.records.get_mut(index) {
                    record.backing_off(delay);
                }
            }
            Action::PostStart { index } => {
                // It takes as long as it takes; the end of the container or the pod ends it.
                self.run_hook(index, Hook::PostStart, care::NO_LIMIT);
            }
            Action::PreStop { index, limit } => self.run_hook(index, Hook::PreStop, limit),
            Action::Watch { index } => self.watch(index),
            Action::StartupPassed { index } => {
                if let Some(Some(watched)) = self.running.get(index) {
                    watched.startup_passed();
                }
            }
            Action::Ending { index, .. } => self.ending(index),
            Action::Ready { .. } | Action::Phase(_) | Action::Finished => {}
        }
    }

    fn signal(&self, index: usize, signal: u32, all: bool) {
        let attempt = self
            .machine
            .slots()
            .get(index)
            .map_or(0, |slot| slot.attempt);
        if let Some(plan) = self.plans.get(index) {
            let process = ProcessName::container(container_id(&plan.name, attempt));
            // A process that has ended in the meantime reports its end by itself.
            let _ = self.containers.signal(&process, signal, all);
        }
    }

    fn start_container(&mut self, index: usize, attempt: u32) {
        let (Some(plan), Some(record)) = (self.plans.get(index), self.records.get_mut(index))
        else {
            return;
        };
        record.creating(attempt);
        let request = CreateContainer {
            id: container_id(&plan.name, attempt),
            spec: plan.oci_spec.clone(),
            rootfs: self
                .rootfs
                .get(index)
                .filter(|path| !path.is_empty())
                .cloned(),
            stdio: plan.stdio.clone().unwrap_or_default(),
            termination_message_path: plan.termination_message_path.clone(),
            label: Some(PodLabel {
                container: plan.name.clone(),
                attempt,
            }),
            own_pids: false,
        };
        let life = Life {
            containers: self.containers.clone(),
            reports: self.reports.clone(),
            index,
            message_from_logs: plan.message_from_logs,
            rootfs_error: record.rootfs_error.take(),
        };
        tokio::spawn(life.run(request));
    }

    fn publish(&self, shared: &mut Shared) {
        let (reason, message) = self.end_words();
        let mut statuses: Vec<messages::ContainerStatus> = self
            .records
            .iter()
            .zip(self.machine.slots())
            .map(|(record, slot)| record.status(slot))
            .collect();
        shared.seen = self.records.iter().map(ContainerRecord::seen).collect();
        let main = statuses.split_off(self.init_count.min(statuses.len()));
        shared.status = PodStatus {
            phase: super::status::phase(self.machine.phase()).into(),
            init_containers: statuses,
            containers: main,
            reason,
            message,
            started_at_ns: self.started_at_ns,
            finished_at_ns: if self.machine.finished() {
                clock::realtime_ns()
            } else {
                0
            },
            sequence: self.containers.events().last_sequence(),
            ..Default::default()
        };
    }
}

/// Id of one attempt of a container.
fn container_id(name: &str, attempt: u32) -> String {
    format!("{name}.{attempt}")
}

#[cfg(test)]
mod tests;
