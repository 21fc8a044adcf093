//! What the host is told of each container (Kubernetes API, ContainerStatus).

use std::time::Duration;

use vmpod_agent_protocol::messages::{ContainerState, ContainerStatus, ExitStatus, PodPhase};

use super::driver::Seen;
use super::machine::{Phase, Slot, State};
use crate::clock;

/// The protocol's word for a phase.
pub(super) fn phase(phase: Phase) -> PodPhase {
    match phase {
        Phase::Pending => PodPhase::PENDING,
        Phase::Running => PodPhase::RUNNING,
        Phase::Succeeded => PodPhase::SUCCEEDED,
        Phase::Failed => PodPhase::FAILED,
    }
}

/// What is remembered of a container beside its state.
#[derive(Clone, Debug)]
pub(super) struct ContainerRecord {
    name: String,
    /// Attempt that ran or runs last, from 0.
    attempt: u32,
    pid: u32,
    started_at_ns: i64,
    exit: Option<ExitStatus>,
    last_exit: Option<ExitStatus>,
    delay: Duration,
    next_start_ns: i64,
    /// The host could not make the root file system of the next attempt.
    pub(super) rootfs_error: Option<String>,
}

impl ContainerRecord {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            attempt: 0,
            pid: 0,
            started_at_ns: 0,
            exit: None,
            last_exit: None,
            delay: Duration::ZERO,
            next_start_ns: 0,
            rootfs_error: None,
        }
    }

    pub(super) fn creating(&mut self, attempt: u32) {
        self.attempt = attempt;
        self.next_start_ns = 0;
        self.pid = 0;
        if self.exit.is_some() {
            self.last_exit = self.exit.take();
        }
    }

    pub(super) fn started(&mut self, pid: u32, at_ns: i64) {
        self.pid = pid;
        self.started_at_ns = at_ns;
    }

    pub(super) fn ended(&mut self, mut exit: ExitStatus) {
        if exit.reason.is_empty() {
            exit.reason = match (exit.oom_killed, exit.code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            }
            .into();
        }
        self.pid = 0;
        self.exit = Some(exit);
    }

    pub(super) fn backing_off(&mut self, delay: Duration) {
        self.delay = delay;
        let delay = i64::try_from(delay.as_nanos()).unwrap_or(i64::MAX);
        self.next_start_ns = clock::realtime_ns().saturating_add(delay);
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            attempt: self.attempt,
            started: self.pid != 0,
            ended: self.exit.is_some(),
        }
    }

    pub(super) fn status(&self, slot: &Slot) -> ContainerStatus {
        let (state, reason, message) = match slot.state {
            State::Waiting => (ContainerState::WAITING, "PodInitializing", String::new()),
            // As the kubelet has it: a container counts as running when its postStart hook is through.
            State::Starting | State::PostStart { .. } => {
                (ContainerState::WAITING, "ContainerCreating", String::new())
            }
            State::Preparing { .. } if slot.delay.is_zero() => {
                (ContainerState::WAITING, "ContainerCreating", String::new())
            }
            State::Preparing { .. } => (
                ContainerState::WAITING,
                "CrashLoopBackOff",
                format!(
                    "back-off {}s restarting failed container={}",
                    self.delay.as_secs(),
                    self.name
                ),
            ),
            State::Running { .. } => (ContainerState::STARTED, "", String::new()),
            State::Ended { .. } => (
                ContainerState::TERMINATED,
                self.exit
                    .as_ref()
                    .map_or("Error", |exit| exit.reason.as_str()),
                self.exit
                    .as_ref()
                    .map(|exit| exit.message.clone())
                    .unwrap_or_default(),
            ),
        };
        let terminated = state == ContainerState::TERMINATED;
        ContainerStatus {
            name: self.name.clone(),
            state: state.into(),
            reason: reason.into(),
            message,
            attempt: self.attempt,
            restart_count: self.attempt,
            exit: self.exit.clone().filter(|_| terminated).into(),
            last_exit: match &self.exit {
                Some(exit) if !terminated => Some(exit.clone()),
                _ => self.last_exit.clone(),
            }
            .into(),
            started_at_ns: self.started_at_ns,
            pid: self.pid,
            next_start_ns: self.next_start_ns,
            started: slot.started,
            ready: slot.ready,
            ..Default::default()
        }
    }
}
