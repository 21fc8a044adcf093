//! One attempt of one container: a task that creates, starts and waits, and reports to the driver.

use tokio::sync::mpsc;
use vmpod_agent_protocol::limits::MESSAGE_BYTES;
use vmpod_agent_protocol::messages::{Event, EventKind, ExitStatus};

use super::Report;
use crate::clock;
use crate::container::{ContainerError, Containers, CreateContainer, PodLabel, ProcessName};

/// Exit code of a container that could not be started, as Kubernetes reports it.
const START_ERROR_CODE: u32 = 128;

/// One attempt of one container, from its creation to its end.
pub(super) struct Life<C> {
    pub(super) containers: C,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    pub(super) index: usize,
    pub(super) message_from_logs: bool,
    pub(super) rootfs_error: Option<String>,
}

impl<C: Containers> Life<C> {
    pub(super) async fn run(self, request: CreateContainer) {
        let id = request.id.clone();
        let exit = self.live(request).await;
        let _ = self.reports.send(Report::Ended {
            index: self.index,
            exit,
        });
        // Only now, so that an exec or a reader finds the container until its end is known.
        let _ = self.containers.delete(&ProcessName::container(id)).await;
    }

    async fn live(&self, request: CreateContainer) -> ExitStatus {
        let process = ProcessName::container(request.id.clone());
        let label = request.label.clone();
        if let Some(error) = &self.rootfs_error {
            return self.not_created(&process, label, "ContainerCreateError", error);
        }
        let pid = match self.containers.create(request).await {
            Ok(pid) => pid,
            Err(error) => {
                let reason = match error {
                    ContainerError::Start(_) => "StartError",
                    _ => "ContainerCreateError",
                };
                return self.not_created(&process, label, reason, &error.to_string());
            }
        };
        let started = self.containers.start(&process).await;
        if started.is_ok() {
            let _ = self.reports.send(Report::Started {
                index: self.index,
                pid,
            });
        }
        match (self.containers.wait(&process).await, started) {
            (Ok(mut exit), started) => {
                if let Err(error) = started
                    && exit.message.is_empty()
                {
                    exit.message = error.to_string();
                }
                if self.message_from_logs && exit.code != 0 && exit.message.is_empty() {
                    exit.message =
                        String::from_utf8_lossy(&self.containers.output_tail(&process.container))
                            .into_owned();
                }
                exit
            }
            (Err(error), _) => not_started("ContainerStatusUnknown", &error.to_string()),
        }
    }

    /// The engine knows nothing of a container that it could not create, so its end is announced here.
    fn not_created(
        &self,
        process: &ProcessName,
        label: Option<PodLabel>,
        reason: &str,
        message: &str,
    ) -> ExitStatus {
        let exit = not_started(reason, message);
        let label = label.unwrap_or(PodLabel {
            container: String::new(),
            attempt: 0,
        });
        self.containers.events().push(Event {
            kind: EventKind::CONTAINER_EXITED.into(),
            container_id: process.container.clone(),
            container: label.container,
            attempt: label.attempt,
            exit: Some(exit.clone()).into(),
            message: exit.message.clone(),
            ..Default::default()
        });
        exit
    }
}

fn not_started(reason: &str, message: &str) -> ExitStatus {
    let now = clock::realtime_ns();
    ExitStatus {
        code: START_ERROR_CODE,
        reason: reason.into(),
        message: message.chars().take(MESSAGE_BYTES / 4).collect(),
        started_at_ns: 0,
        finished_at_ns: now,
        ..Default::default()
    }
}
