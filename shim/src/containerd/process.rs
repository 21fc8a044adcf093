//! A process that containerd knows: the first one of a container, one that was added to it, or a sandbox, which is none in
//! the guest. Its state, its streams, and who waits for its end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Mutex, MutexGuard, watch};

use super::fault::Fault;
use super::stdio::{ProcessStdio, StdioUris};
use super::task_state::{Exit, Operation, TaskState};

/// Guest process ids are told to containerd with this added: beyond what any host gives out (`PID_MAX_LIMIT`), so that
/// they never name a process of the host.
const GUEST_PIDS: u32 = 1 << 22;

/// The number by which containerd knows process `pid` of the guest.
#[must_use]
pub fn told_pid(pid: u32) -> u32 {
    GUEST_PIDS.saturating_add(pid)
}

/// The process of the guest that containerd knows as `pid`.
#[must_use]
pub fn guest_pid(pid: u32) -> Option<u32> {
    pid.checked_sub(GUEST_PIDS).filter(|&pid| pid > 0)
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Id of its container.
    pub container: String,
    /// Id of its own; empty for a container's first process.
    pub exec: String,
    /// Where its streams go.
    pub uris: StdioUris,
    pid: AtomicU32,
    state: watch::Sender<TaskState>,
    oom_told: AtomicBool,
    /// Held by whoever changes its state, so that events come in their order.
    stdio: Mutex<Option<ProcessStdio>>,
}

/// The right to change the state of a process, with its streams.
pub type Turn<'a> = MutexGuard<'a, Option<ProcessStdio>>;

impl Process {
    /// A process that was made and does not run yet.
    #[must_use]
    pub fn new(container: &str, exec: &str, uris: StdioUris) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            uris,
            pid: AtomicU32::new(0),
            state: watch::Sender::new(TaskState::Created),
            oom_told: AtomicBool::new(false),
            stdio: Mutex::new(None),
        }
    }

    /// What it is, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        if self.exec.is_empty() {
            format!("container {}", self.container)
        } else {
            format!("exec {} of container {}", self.exec, self.container)
        }
    }

    /// The number by which containerd knows it; 0: none yet.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Gives it its number.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> TaskState {
        *self.state.borrow()
    }

    /// Whether `operation` is allowed now.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, operation: Operation) -> Result<(), Fault> {
        let state = self.state();
        operation
            .check(state)
            .map_err(|why| Fault::refused(operation, &self.name(), state, why))
    }

    /// Waits for the right to change its state.
    pub async fn turn(&self) -> Turn<'_> {
        self.stdio.lock().await
    }

    /// Sets its state; one that has ended stays so. Returns whether it changed.
    pub fn set(&self, new: TaskState) -> bool {
        self.state.send_if_modified(|state| {
            let changes = state.exit().is_none() && *state != new;
            if changes {
                *state = new;
            }
            changes
        })
    }

    /// Whether an out-of-memory kill was told before; it counts as told from now on.
    pub fn oom_was_told(&self) -> bool {
        self.oom_told.swap(true, Ordering::Relaxed)
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let Some(exit) = state.borrow_and_update().exit() {
                return exit;
            }
            if state.changed().await.is_err() {
                // The sender is in `self`: it is there as long as this runs.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_pid_is_no_process_of_a_host() {
        assert_eq!(told_pid(7), 4_194_311);
        assert_eq!(guest_pid(told_pid(7)), Some(7));
        assert_eq!(guest_pid(1234), None);
        assert_eq!(guest_pid(GUEST_PIDS), None);
    }

    #[tokio::test]
    async fn process_that_has_ended_stays_so() {
        let process = Process::new("c", "", StdioUris::default());
        assert!(process.set(TaskState::Running));
        let exit = Exit {
            status: 3,
            at_ns: 5,
        };
        assert!(process.set(TaskState::Stopped(exit)));
        assert!(!process.set(TaskState::Running));
        assert_eq!(process.ended().await, exit);
        let fault = process.check(Operation::Kill).unwrap_err();
        assert_eq!(fault.message, "container c: process already finished");
    }
}
