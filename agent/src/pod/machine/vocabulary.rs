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

/// What the machine is made from.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Roles in manifest order: init containers and sidecars first.
    pub roles: Vec<Role>,
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
    /// State.
    pub state: State,
    /// Attempt that the state is about, from 0.
    pub attempt: u32,
    pub(super) backoff: Backoff,
    /// Delay that the present wait is for, for words.
    pub delay: Duration,
    /// When it is killed if it still runs.
    pub(super) kill_at: Option<Time>,
    pub(super) stop_sent: bool,
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
