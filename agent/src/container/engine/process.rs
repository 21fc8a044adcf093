//! A process that the engine has made: its state, from waiting to ended.

use std::os::fd::OwnedFd;
use std::sync::{Mutex as PlainMutex, PoisonError};

use tokio::sync::{Mutex, watch};
use vmpod_agent_protocol::limits::MESSAGE_BYTES;
use vmpod_agent_protocol::messages::ExitStatus;

use super::super::api::{ContainerError, ProcessName};
use super::super::first_process::START_FAILED;
use super::super::link::{FromChild, ParentEnd};
use crate::clock;
use crate::process::{Exit, send_signal};
use crate::stdio::ProcessStreams;

/// Where a process is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage {
    /// Waits for its start.
    Created,
    /// Executes its program.
    Running,
    /// Is gone.
    Ended(Box<ExitStatus>),
}

/// A process that was made.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: ProcessName,
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) streams: ProcessStreams,
    /// Held while the process is being started, so that its end is reported after its start. `None`: was started.
    link: Mutex<Option<ParentEnd>>,
    stage: watch::Sender<Stage>,
    // Written by the start, read by the task that reports the end; never held across an await.
    started: PlainMutex<Started>,
}

#[derive(Clone, Debug, Default)]
struct Started {
    at_ns: i64,
    error: Option<String>,
}

impl Process {
    pub(super) fn new(
        name: ProcessName,
        pid: u32,
        pidfd: OwnedFd,
        link: ParentEnd,
        streams: ProcessStreams,
    ) -> Self {
        Process {
            name,
            pid,
            pidfd,
            streams,
            link: Mutex::new(Some(link)),
            stage: watch::Sender::new(Stage::Created),
            started: PlainMutex::default(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Ended(_))
    }

    /// Lets the process execute; returns after execve. `on_success` runs before anybody can learn of its end.
    pub(super) async fn start(&self, on_success: impl FnOnce()) -> Result<(), ContainerError> {
        let mut held = self.link.lock().await;
        let Some(link) = held.take() else {
            return Err(ContainerError::FailedPrecondition(format!(
                "{} was started before",
                self.name
            )));
        };
        if self.is_ended() {
            return Err(ContainerError::FailedPrecondition(format!(
                "{} has ended before it was started",
                self.name
            )));
        }
        self.started().at_ns = clock::realtime_ns();
        let answer = match link.go().await {
            Ok(()) => link.receive().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(FromChild::Closed) => {
                self.stage.send_if_modified(|stage| {
                    let waits = *stage == Stage::Created;
                    if waits {
                        *stage = Stage::Running;
                    }
                    waits
                });
                on_success();
                Ok(())
            }
            Ok(FromChild::Failed(text)) => {
                self.started().error = Some(text.clone());
                Err(ContainerError::Start(format!(
                    "start {}: {text}",
                    self.name
                )))
            }
            // Killed while it waited.
            Ok(_) | Err(_) => Err(ContainerError::FailedPrecondition(format!(
                "{} has ended before it was started",
                self.name
            ))),
        }
    }

    /// Records the end, once the start (if one is under way) is through.
    pub(super) async fn end(&self, exit: Exit, oom_killed: bool, message: String) -> ExitStatus {
        let _started = self.link.lock().await;
        let Started { at_ns, error } = self.started().clone();
        let failed = error.is_some();
        let status = ExitStatus {
            code: if failed {
                START_FAILED.unsigned_abs()
            } else {
                exit.code
            },
            signal: exit.signal,
            oom_killed: oom_killed && exit.code != 0 && !failed,
            started_at_ns: at_ns,
            finished_at_ns: exit.at_ns,
            reason: match (failed, oom_killed, exit.code) {
                (true, ..) => "StartError",
                (_, _, 0) => "Completed",
                (_, true, _) => "OOMKilled",
                _ => "Error",
            }
            .to_owned(),
            message: limited(error.unwrap_or(message)),
            ..Default::default()
        };
        self.stage
            .send_replace(Stage::Ended(Box::new(status.clone())));
        status
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let mut stage = self.stage.subscribe();
        let ended = stage
            .wait_for(|stage| matches!(stage, Stage::Ended(_)))
            .await
            .ok()?;
        match &*ended {
            Stage::Ended(status) => Some((**status).clone()),
            _ => None,
        }
    }

    pub(super) fn signal(&self, signal: u32) -> Result<(), ContainerError> {
        if self.is_ended() {
            return Err(ContainerError::NotFound(format!("{} has ended", self.name)));
        }
        let number = libc::c_int::try_from(signal).unwrap_or(-1);
        send_signal(&self.pidfd, number).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => ContainerError::NotFound(format!("{} has ended", self.name)),
            Some(libc::EINVAL) => {
                ContainerError::InvalidArgument(format!("{signal} is not a signal number"))
            }
            _ => {
                ContainerError::Internal(format!("send signal {signal} to {}: {error}", self.name))
            }
        })
    }

    fn started(&self) -> std::sync::MutexGuard<'_, Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a text, as much as a message may have.
fn limited(text: String) -> String {
    let mut start = text.len().saturating_sub(MESSAGE_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default().to_owned()
}
