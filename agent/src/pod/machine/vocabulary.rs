//! The words of the pod's state machine: what it is made from, told and answers.

use std::time::Duration;

use crate::pod::backoff::{Backoff, BackoffPolicy};

/// Time since the pod began.
pub type Time = Duration;

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever ends.
    Always,
    /// Restart what fails.
    OnFailure,
    /// Restart nothing.
    Never,
}

/// What a container is to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to success before the next one.
    Init,
    /// Starts among the init containers, is restarted for ever, ends after the main containers.
    Sidecar,
    /// A main container.
    Main,
}

/// What the machine must know of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Role.
    pub role: Role,
    /// Has a postStart hook.
    pub post_start: bool,
    /// Has a preStop hook.
    pub pre_stop: bool,
    /// Counts as started only when its startup probe has succeeded.
    pub startup_probe: bool,
    /// Counts as ready only when its readiness probe has succeeded.
    pub readiness_probe: bool,
}

impl From<Role> for Traits {
    /// A container without hooks and probes.
    fn from(role: Role) -> Self {
        Self {
            role,
            post_start: false,
            pre_stop: false,
            startup_probe: false,
            readiness_probe: false,
        }
    }
}

/// What the machine is made from.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Containers in manifest order: init containers and sidecars first.
    pub containers: Vec<Traits>,
    /// Restart policy of init and main containers.
    pub restart_policy: RestartPolicy,
    /// Restart delays.
    pub backoff: BackoffPolicy,
    /// Time between the stop signal and the kill.
    pub grace: Duration,
    /// `activeDeadlineSeconds`.
    pub deadline: Option<Duration>,
}

/// Where a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not its turn yet.
    Waiting,
    /// A root file system is awaited; the start is due at this time.
    Preparing {
        /// Earliest start.
        due: Time,
        /// The root file system is there.
        ready: bool,
    },
    /// Being created.
    Starting,
    /// Its process runs; the end of its postStart hook is awaited.
    PostStart {
        /// Start.
        since: Time,
    },
    /// Runs since.
    Running {
        /// Start.
        since: Time,
    },
    /// Ended and not to be restarted (yet).
    Ended {
        /// Exit code 0.
        success: bool,
    },
}

/// One container.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Role.
    pub role: Role,
    pub(super) traits: Traits,
    /// State.
    pub state: State,
    /// Attempt that the state is about, from 0.
    pub attempt: u32,
    pub(super) backoff: Backoff,
    /// Delay that the present wait is for, for words.
    pub delay: Duration,
    /// Runs, and its startup probe has succeeded where there is one.
    pub started: bool,
    /// Started, and its readiness probe says so where there is one.
    pub ready: bool,
    pub(super) ending: Ending,
    /// A failed probe ended it: it is restarted although it may end with 0.
    pub(super) condemned: bool,
}

/// How far the end of a container has come that was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody asked.
    No,
    /// Its preStop hook runs.
    Hook { grace_ends: Time },
    /// A sidecar that waits for those that end before it.
    Turn { grace_ends: Time },
    /// Has its stop signal.
    Signalled { kill_at: Time },
    /// Was killed.
    Killed,
}

impl Slot {
    /// Whether its process runs, as far as is known.
    pub(super) fn runs(&self) -> bool {
        matches!(self.state, State::PostStart { .. } | State::Running { .. })
    }

    /// Whether it runs or is about to.
    pub(super) fn active(&self) -> bool {
        self.state == State::Starting || self.runs()
    }
}

/// Why a container is ended, as the event says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// The pod ends.
    PodEnds,
    /// Its startup probe failed as often as it may.
    Startup,
    /// Its liveness probe failed as often as it may.
    Liveness,
    /// Its postStart hook failed.
    PostStart,
}

/// Phase of the pod (PodStatus.phase).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Init containers are not through.
    Pending,
    /// Main containers run.
    Running,
    /// All ended with 0.
    Succeeded,
    /// At least one failed.
    Failed,
}

/// Why a pod is being brought down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its main containers have ended.
    Completed,
    /// An init container failed and is not restarted.
    InitFailed,
    /// The host asked.
    Stopped,
    /// `activeDeadlineSeconds` passed.
    DeadlineExceeded,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The pod begins.
    Begin,
    /// A root file system for this attempt is there.
    RootfsReady {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
    },
    /// The container runs.
    Started {
        /// Container.
        index: usize,
    },
    /// The container ended, or could not be started (`success` false).
    Ended {
        /// Container.
        index: usize,
        /// Exit code 0.
        success: bool,
    },
    /// The postStart hook is through.
    PostStarted {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
        /// Whether it succeeded.
        success: bool,
    },
    /// The preStop hook is through, whatever came of it.
    PreStopped {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
    },
    /// The startup probe has succeeded.
    StartupPassed {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
    },
    /// The readiness probe has changed its mind.
    Readiness {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
        /// Its word.
        ready: bool,
    },
    /// The startup or liveness probe has failed as often as it may.
    Unhealthy {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
        /// Which probe.
        reason: KillReason,
        /// The probe's grace; `None` is the pod's own.
        grace: Option<Duration>,
    },
    /// Bring the pod down.
    Stop {
        /// Grace; `None` is the pod's own.
        grace: Option<Duration>,
    },
    /// The time of `next_timer` has come.
    Timer,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the host for a root file system.
    WantRootfs {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
    },
    /// Create and start.
    Run {
        /// Container.
        index: usize,
        /// Attempt.
        attempt: u32,
    },
    /// Run the postStart hook.
    PostStart {
        /// Container.
        index: usize,
    },
    /// The container counts as running: begin its probes.
    Watch {
        /// Container.
        index: usize,
    },
    /// Say that the container is being ended; liveness and startup probes are over.
    Ending {
        /// Container.
        index: usize,
        /// Why.
        reason: KillReason,
    },
    /// Run the preStop hook.
    PreStop {
        /// Container.
        index: usize,
        /// Longest time that it may take.
        limit: Duration,
    },
    /// Say that the startup probe has succeeded.
    StartupPassed {
        /// Container.
        index: usize,
    },
    /// Say that the container has become ready, or is not any more.
    Ready {
        /// Container.
        index: usize,
        /// Which of the two.
        ready: bool,
    },
    /// Send the stop signal.
    Stop {
        /// Container.
        index: usize,
    },
    /// Kill.
    Kill {
        /// Container.
        index: usize,
    },
    /// Say that a restart waits.
    BackingOff {
        /// Container.
        index: usize,
        /// Delay.
        delay: Duration,
    },
    /// Say that the phase changed.
    Phase(Phase),
    /// Everything has ended; nothing follows.
    Finished,
}
