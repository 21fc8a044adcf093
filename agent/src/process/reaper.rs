//! The one place that waits for children.
//!
//! A single task calls waitpid(-1) whenever SIGCHLD has come, and hands each exit to whoever registered the pid;
//! statuses of orphans that were re-parented to the agent are dropped. A child is made and registered under the lock
//! that the task takes around waitpid, so that it cannot be reaped before it is registered, however short it lives.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::clone::Child;
use crate::clock;

/// Exits that are reaped before other tasks get their turn.
const BATCH: usize = 128;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: u32,
    /// Signal that killed it; 0: none.
    pub signal: u32,
    /// Wall clock, nanoseconds since 1970, at which it was reaped.
    pub at_ns: i64,
}

impl Exit {
    /// From a status of waitpid(2), as of now; `None`: the process has only stopped or gone on.
    pub fn from_status(status: libc::c_int) -> Option<Exit> {
        let (code, signal) = if libc::WIFEXITED(status) {
            (libc::WEXITSTATUS(status).unsigned_abs(), 0)
        } else if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status).unsigned_abs();
            (128 + signal, signal)
        } else {
            return None;
        };
        Some(Exit {
            code,
            signal,
            at_ns: clock::realtime_ns(),
        })
    }
}

/// A handle to the reaping task.
#[derive(Clone, Debug)]
pub struct Reaper {
    // Shared by the reaping task and everyone who makes a process; never held across an await.
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<libc::pid_t, oneshot::Sender<Exit>>;

impl Reaper {
    /// Starts the task in the current runtime. There may be one in a process.
    pub fn start() -> io::Result<Reaper> {
        let signals = signal(SignalKind::child())?;
        let reaper = Reaper {
            waiting: Arc::default(),
        };
        tokio::spawn(reaper.clone().reap(signals));
        Ok(reaper)
    }

    /// Makes a process with `make` and registers it before it can be reaped.
    pub fn watch(
        &self,
        make: impl FnOnce() -> io::Result<Child>,
    ) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let mut waiting = self.waiting();
        let child = make()?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(child.pid, sender);
        Ok((child, receiver))
    }

    async fn reap(self, mut signals: Signal) {
        loop {
            let mut reaped = 0;
            while self.reap_one() {
                reaped += 1;
                if reaped % BATCH == 0 {
                    tokio::task::yield_now().await;
                }
            }
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// Reaps one child if one has ended.
    fn reap_one(&self) -> bool {
        let mut waiting = self.waiting();
        let mut status = 0;
        // SAFETY: waitpid writes one integer, which outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return pid < 0 && Errno::last() == Errno::EINTR;
        }
        let Some(exit) = Exit::from_status(status) else {
            return true;
        };
        if let Some(sender) = waiting.remove(&pid) {
            // Whoever registered may have lost interest.
            let _ = sender.send(exit);
        }
        true
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
