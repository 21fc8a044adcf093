//! The states of a task and which operation is allowed in which (containerd, api/types/task: Status). Pure: knows no
//! containerd, no guest and no time but what it is given.

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 and the signal for a killed process.
    pub status: u32,
    /// Wall clock, nanoseconds.
    pub at_ns: i64,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskState {
    /// Made; its program does not run yet.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Over.
    Stopped(Exit),
}

impl TaskState {
    /// A word for messages, as `ctr task ls` has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }

    /// How it ended, when it has.
    #[must_use]
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

/// What is asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Let its program run.
    Start,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Make a further process beside it.
    Exec,
    /// Signal it.
    Kill,
    /// Change its limits.
    Update,
    /// Forget it.
    Delete,
}

/// Why an operation is not allowed; containerd's error kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not in the state for it (FailedPrecondition).
    State,
    /// It is not there any more (NotFound).
    Gone,
}

impl Operation {
    /// Whether it is allowed in `state`.
    ///
    /// # Errors
    /// The kind of the refusal.
    pub fn check(self, state: TaskState) -> Result<(), Refusal> {
        use TaskState::{Created, Paused, Running, Stopped};
        match (self, state) {
            (Self::Start, Created)
            | (Self::Pause, Running)
            | (Self::Resume, Paused)
            | (Self::Exec, Running | Paused)
            | (Self::Kill | Self::Update, Created | Running | Paused)
            // One that was never started is killed on the way.
            | (Self::Delete, Created | Stopped(_)) => Ok(()),
            // runc and with it containerd's clients expect "process already finished: not found".
            (Self::Kill, Stopped(_)) => Err(Refusal::Gone),
            _ => Err(Refusal::State),
        }
    }

    /// A word for messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Exec => "exec in",
            Self::Kill => "kill",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: TaskState = TaskState::Stopped(Exit {
        status: 0,
        at_ns: 1,
    });

    #[test]
    fn start_is_allowed_once() {
        assert_eq!(Operation::Start.check(TaskState::Created), Ok(()));
        for state in [TaskState::Running, TaskState::Paused, STOPPED] {
            assert_eq!(Operation::Start.check(state), Err(Refusal::State));
        }
    }

    #[test]
    fn kill_of_what_has_ended_is_not_found() {
        assert_eq!(Operation::Kill.check(STOPPED), Err(Refusal::Gone));
        for state in [TaskState::Created, TaskState::Running, TaskState::Paused] {
            assert_eq!(Operation::Kill.check(state), Ok(()));
        }
    }

    #[test]
    fn delete_of_what_runs_is_refused() {
        for state in [TaskState::Running, TaskState::Paused] {
            assert_eq!(Operation::Delete.check(state), Err(Refusal::State));
        }
        assert_eq!(Operation::Delete.check(STOPPED), Ok(()));
        assert_eq!(Operation::Delete.check(TaskState::Created), Ok(()));
    }

    #[test]
    fn pause_and_resume_take_turns() {
        assert_eq!(Operation::Pause.check(TaskState::Running), Ok(()));
        assert_eq!(
            Operation::Pause.check(TaskState::Paused),
            Err(Refusal::State)
        );
        assert_eq!(Operation::Resume.check(TaskState::Paused), Ok(()));
        assert_eq!(
            Operation::Resume.check(TaskState::Running),
            Err(Refusal::State)
        );
        assert_eq!(
            Operation::Exec.check(TaskState::Created),
            Err(Refusal::State)
        );
    }
}
