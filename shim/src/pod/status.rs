//! A pod's status as a user sees it: kept in `status.json` by the supervisor, made from what the agent says, and made
//! without it when the agent can say nothing any more.
//!
//! The agent's words are hostile input: texts are bounded here, numbers are taken into their ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmpod_agent_protocol::{limits, messages};

use super::conditions::{self, Condition};
use super::process::ProcessIdentity;
use super::record::{ContainerRecord, PodRecord};

/// `status.phase`, with the time before the machine runs told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Images, volumes and the machine are made ready.
    Preparing,
    /// Init containers run, or no container has started yet.
    Pending,
    /// At least one container runs or restarts.
    Running,
    /// All containers ended with 0.
    Succeeded,
    /// A container failed, or the machine ended by itself.
    Failed,
}

impl Phase {
    /// Whether the pod has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Preparing => "Preparing",
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        })
    }
}

/// The status of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Id.
    pub id: String,
    /// Name in the manifest.
    pub name: String,
    /// Namespace in the manifest.
    pub namespace: String,
    /// Phase.
    pub phase: Phase,
    /// One word for why, e.g. `Evicted`, `MachineFailed`; empty when there is nothing to say.
    pub reason: String,
    /// The same in full.
    pub message: String,
    /// Address of the pod; empty when it has none.
    pub pod_ip: String,
    /// Wall clock of the preparation, nanoseconds.
    pub created_at_ns: i64,
    /// Wall clock of the agent's start of the pod; 0: not yet.
    pub started_at_ns: i64,
    /// Wall clock of the end; 0: not yet.
    pub finished_at_ns: i64,
    /// Exit code of the pod: 0, or that of the first container that failed; `None` while it runs.
    pub exit_code: Option<u8>,
    /// Init containers in order.
    pub init_containers: Vec<ContainerStatus>,
    /// Containers in order.
    pub containers: Vec<ContainerStatus>,
    /// Containers that were added while the pod ran.
    #[serde(default)]
    pub ephemeral: Vec<ContainerStatus>,
    /// The supervising process.
    pub supervisor: Option<ProcessIdentity>,
    /// The VMM.
    pub vmm: Option<ProcessIdentity>,
    /// Wall clock of the guest's readiness, nanoseconds after the VMM's start; 0: not yet.
    pub boot_ns: i64,
    /// Version of the agent and of its kernel.
    pub guest: BTreeMap<String, String>,
    /// The supervisor was gone when this was written by somebody else.
    pub abandoned: bool,
    /// `status.conditions`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Types of conditions that `Ready` waits for.
    #[serde(default)]
    pub readiness_gates: Vec<String>,
}

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not started, or between two attempts.
    Waiting,
    /// Its process runs.
    Running,
    /// Ended for good.
    Terminated,
}

impl std::fmt::Display for ContainerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "Waiting",
            Self::Running => "Running",
            Self::Terminated => "Terminated",
        })
    }
}

/// The status of one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name in the manifest.
    pub name: String,
    /// An init container that keeps running.
    #[serde(default)]
    pub sidecar: bool,
    /// Image as the manifest names it.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// State.
    pub state: ContainerState,
    /// Kubernetes' reason of the state.
    pub reason: String,
    /// The same in full.
    pub message: String,
    /// Number of the present attempt, from 0.
    pub attempt: u32,
    /// How often it was started anew.
    pub restart_count: u32,
    /// Wall clock of the present attempt's start; 0: not yet.
    pub started_at_ns: i64,
    /// Wall clock of the next start while backing off; 0: none.
    pub next_start_ns: i64,
    /// How the present attempt ended.
    pub exit: Option<Exit>,
    /// How the attempt before ended.
    pub last_exit: Option<Exit>,
    /// Runs, its postStart hook is through and its startup probe has succeeded.
    #[serde(default)]
    pub started: bool,
    /// Started, and its readiness probe says so where there is one.
    #[serde(default)]
    pub ready: bool,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 and the signal for a killed process.
    pub code: u8,
    /// Signal that killed it; 0: none.
    pub signal: u32,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// Wall clock, nanoseconds.
    pub started_at_ns: i64,
    /// Wall clock, nanoseconds.
    pub finished_at_ns: i64,
    /// One word.
    pub reason: String,
    /// In full, or the termination message.
    pub message: String,
}

impl ContainerStatus {
    /// A container that has not been started.
    #[must_use]
    pub fn waiting(record: &ContainerRecord, reason: &str) -> Self {
        Self {
            name: record.name.clone(),
            sidecar: record.sidecar,
            image: record.image.clone(),
            image_digest: record.image_digest.clone(),
            state: ContainerState::Waiting,
            reason: reason.into(),
            message: String::new(),
            attempt: 0,
            restart_count: 0,
            started_at_ns: 0,
            next_start_ns: 0,
            exit: None,
            last_exit: None,
            started: false,
            ready: false,
        }
    }

    /// Takes over how its process ended, for good.
    pub fn terminate(&mut self, exit: Exit) {
        self.state = ContainerState::Terminated;
        self.reason.clone_from(&exit.reason);
        self.message.clone_from(&exit.message);
        self.started = false;
        self.ready = false;
        self.exit = Some(exit);
    }

    /// Ends it as one whose process SIGKILL has ended, with the pod.
    fn killed(&mut self, message: &str, at_ns: i64) {
        self.terminate(Exit {
            code: 137,
            signal: 9,
            oom_killed: false,
            started_at_ns: self.started_at_ns,
            finished_at_ns: at_ns,
            reason: "Error".into(),
            message: message.to_owned(),
        });
    }
}

impl PodStatus {
    /// The status of a pod that is being prepared.
    #[must_use]
    pub fn preparing(record: &PodRecord) -> Self {
        let waiting = |containers: &[ContainerRecord]| {
            containers
                .iter()
                .map(|c| ContainerStatus::waiting(c, "PodInitializing"))
                .collect()
        };
        let mut status = Self {
            id: record.id.clone(),
            name: record.name.clone(),
            namespace: record.namespace.clone(),
            phase: Phase::Preparing,
            reason: String::new(),
            message: String::new(),
            pod_ip: String::new(),
            created_at_ns: record.created_at_ns,
            started_at_ns: 0,
            finished_at_ns: 0,
            exit_code: None,
            init_containers: waiting(&record.init_containers),
            containers: waiting(&record.containers),
            ephemeral: Vec::new(),
            supervisor: None,
            vmm: None,
            boot_ns: 0,
            guest: BTreeMap::new(),
            abandoned: false,
            conditions: Vec::new(),
            readiness_gates: record.readiness_gates.clone(),
        };
        conditions::refresh(&mut status, record.created_at_ns);
        status
    }

    /// Takes over a phase that the agent has not told.
    pub fn enter(&mut self, phase: Phase, now_ns: i64) {
        self.phase = phase;
        conditions::refresh(self, now_ns);
    }

    /// All containers of the manifest, init containers first: those that decide how the pod is.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// Those that were added later as well.
    pub fn every_container(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.all_containers().chain(&self.ephemeral)
    }

    /// Ends the ephemeral containers that still are there: the pod's end is theirs.
    pub fn end_ephemeral(&mut self, at_ns: i64) {
        for container in &mut self.ephemeral {
            if container.state != ContainerState::Terminated {
                container.killed("", at_ns);
            }
        }
    }

    /// Takes over what the agent says. Names that the pod does not have are passed over, and a phase never leaves a
    /// final one.
    pub fn update(&mut self, told: &messages::PodStatus, now_ns: i64) {
        if self.phase.is_final() {
            return;
        }
        update_containers(&mut self.init_containers, &told.init_containers);
        update_containers(&mut self.containers, &told.containers);
        self.reason = bounded(&told.reason);
        self.message = bounded(&told.message);
        if told.started_at_ns > 0 {
            self.started_at_ns = told.started_at_ns;
        }
        self.phase = match told.phase.enum_value() {
            Ok(messages::PodPhase::PENDING) => Phase::Pending,
            Ok(messages::PodPhase::RUNNING) => Phase::Running,
            Ok(messages::PodPhase::SUCCEEDED) => Phase::Succeeded,
            Ok(messages::PodPhase::FAILED) => Phase::Failed,
            Err(_) => self.phase,
        };
        if self.phase.is_final() {
            self.finished_at_ns = told.finished_at_ns;
            self.exit_code = Some(self.result());
        }
        conditions::refresh(self, now_ns);
    }

    /// Ends the pod for a reason that the agent did not give: containers that ran end with 137, those that waited
    /// never start.
    pub fn fail(&mut self, reason: &str, message: &str, at_ns: i64) {
        if self.phase.is_final() {
            return;
        }
        self.phase = Phase::Failed;
        self.reason = reason.to_owned();
        self.message = message.to_owned();
        self.finished_at_ns = at_ns;
        for container in self.init_containers.iter_mut().chain(&mut self.containers) {
            container.started = false;
            container.ready = false;
            if container.state == ContainerState::Running {
                container.killed(message, at_ns);
            } else if container.state == ContainerState::Waiting {
                // What it waits for is over; Kubernetes goes on to show it as waiting.
                container.next_start_ns = 0;
            }
        }
        self.exit_code = Some(self.result().max(1));
        conditions::refresh(self, at_ns);
    }

    /// Makes a pod that has ended a failed one because it took too much.
    pub fn evict(&mut self, message: &str, now_ns: i64) {
        self.phase = Phase::Failed;
        self.reason = "Evicted".to_owned();
        self.message = message.to_owned();
        self.exit_code = Some(self.result().max(1));
        conditions::refresh(self, now_ns);
    }

    /// 0 for success, else the code of the first container that failed, else 1.
    fn result(&self) -> u8 {
        if self.phase == Phase::Succeeded {
            return 0;
        }
        self.all_containers()
            .filter_map(|c| c.exit.as_ref())
            .map(|exit| exit.code)
            .find(|code| *code != 0)
            .unwrap_or(1)
    }
}

fn update_containers(ours: &mut [ContainerStatus], told: &[messages::ContainerStatus]) {
    for container in ours {
        let Some(told) = told.iter().find(|t| t.name == container.name) else {
            continue;
        };
        container.state = match told.state.enum_value() {
            Ok(messages::ContainerState::WAITING) => ContainerState::Waiting,
            Ok(messages::ContainerState::STARTED) => ContainerState::Running,
            Ok(messages::ContainerState::TERMINATED) => ContainerState::Terminated,
            Err(_) => container.state,
        };
        container.reason = bounded(&told.reason);
        container.message = bounded(&told.message);
        container.attempt = told.attempt;
        container.restart_count = told.restart_count;
        container.started_at_ns = told.started_at_ns;
        container.next_start_ns = told.next_start_ns;
        container.exit = told.exit.as_ref().map(exit);
        container.last_exit = told.last_exit.as_ref().map(exit);
        container.started = told.started;
        container.ready = told.ready;
    }
}

/// An exit as the agent tells it, in bounds.
#[must_use]
pub fn exit(told: &messages::ExitStatus) -> Exit {
    Exit {
        code: u8::try_from(told.code).unwrap_or(255),
        signal: told.signal.min(64),
        oom_killed: told.oom_killed,
        started_at_ns: told.started_at_ns,
        finished_at_ns: told.finished_at_ns,
        reason: bounded(&told.reason),
        message: bounded(&told.message),
    }
}

/// A text of the agent, cut to the limit of a message, with control characters but line ends made harmless: it is
/// shown on terminals.
#[must_use]
pub fn bounded(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(limits::MESSAGE_BYTES));
    for c in text.chars() {
        let c = if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        };
        if out.len() + c.len_utf8() > limits::MESSAGE_BYTES {
            break;
        }
        out.push(c);
    }
    out
}

/// A status for tests and fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub mod example {
    use super::*;

    /// A pod whose containers `a` and `b` run.
    #[must_use]
    pub fn running() -> PodStatus {
        let container = |name: &str| ContainerStatus {
            name: name.into(),
            sidecar: false,
            image: "i".into(),
            image_digest: String::new(),
            state: ContainerState::Running,
            reason: String::new(),
            message: String::new(),
            attempt: 0,
            restart_count: 0,
            started_at_ns: 5,
            next_start_ns: 0,
            exit: None,
            last_exit: None,
            started: true,
            ready: true,
        };
        PodStatus {
            id: "0123456789ab".into(),
            name: "p".into(),
            namespace: "default".into(),
            phase: Phase::Running,
            reason: String::new(),
            message: String::new(),
            pod_ip: String::new(),
            created_at_ns: 1,
            started_at_ns: 2,
            finished_at_ns: 0,
            exit_code: None,
            init_containers: vec![],
            containers: vec![container("a"), container("b")],
            ephemeral: vec![],
            supervisor: None,
            vmm: None,
            boot_ns: 0,
            guest: BTreeMap::new(),
            abandoned: false,
            conditions: Vec::new(),
            readiness_gates: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::example::running;
    use super::*;

    fn told(name: &str, code: u32) -> messages::ContainerStatus {
        messages::ContainerStatus {
            name: name.into(),
            state: messages::ContainerState::TERMINATED.into(),
            exit: Some(messages::ExitStatus {
                code,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn status_of_a_failed_pod_has_the_first_failing_code() {
        let mut status = running();
        status.update(
            &messages::PodStatus {
                phase: messages::PodPhase::FAILED.into(),
                containers: vec![told("a", 0), told("b", 3), told("stranger", 9)],
                ..Default::default()
            },
            9,
        );
        assert_eq!(status.exit_code, Some(3));
        assert_eq!(status.containers.len(), 2);
    }

    #[test]
    fn status_that_is_final_does_not_change() {
        let mut status = running();
        status.fail("MachineFailed", "gone", 9);
        assert_eq!(status.exit_code, Some(137));
        assert_eq!(status.containers[0].state, ContainerState::Terminated);
        let before = status.clone();
        status.update(
            &messages::PodStatus {
                phase: messages::PodPhase::SUCCEEDED.into(),
                ..Default::default()
            },
            9,
        );
        assert_eq!(status, before);
    }

    #[test]
    fn pod_that_is_evicted_has_failed_even_if_its_containers_did_not() {
        let mut status = running();
        status.update(
            &messages::PodStatus {
                phase: messages::PodPhase::SUCCEEDED.into(),
                containers: vec![told("a", 0), told("b", 0)],
                ..Default::default()
            },
            9,
        );
        status.evict("too much", 9);
        assert_eq!((status.phase, status.exit_code), (Phase::Failed, Some(1)));
        assert_eq!(status.reason, "Evicted");
    }

    #[test]
    fn text_of_the_agent_is_cut_and_made_harmless() {
        let text = bounded(&format!("a\u{1b}[2J{}", "é".repeat(limits::MESSAGE_BYTES)));
        assert!(text.len() <= limits::MESSAGE_BYTES);
        assert!(text.starts_with("a\u{fffd}[2J"));
    }

    #[test]
    fn exit_code_out_of_range_is_255() {
        let told = messages::ExitStatus {
            code: 70_000,
            signal: 4000,
            ..Default::default()
        };
        assert_eq!(exit(&told).code, 255);
        assert_eq!(exit(&told).signal, 64);
    }
}
