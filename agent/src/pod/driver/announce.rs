//! What the driver says: an event for each action that is news, and the words of a pod's end.

use vmpod_agent_protocol::messages::{Event, EventKind};

use super::{Task, container_id};
use crate::container::Containers;
use crate::pod::machine::{Action, EndReason, KillReason, RestartPolicy};
use crate::pod::status;

impl<C: Containers> Task<C> {
    pub(super) fn announce(&self, action: Action) {
        let events = self.containers.events();
        let of = |index: usize, attempt: u32, kind: EventKind| {
            let name = self
                .plans
                .get(index)
                .map(|plan| plan.name.clone())
                .unwrap_or_default();
            Event {
                kind: kind.into(),
                container_id: container_id(&name, attempt),
                container: name,
                attempt,
                ..Default::default()
            }
        };
        match action {
            Action::WantRootfs { index, attempt } => {
                events.push(of(index, attempt, EventKind::ROOTFS_WANTED));
            }
            Action::BackingOff { index, delay } => {
                let mut event = of(index, self.attempt(index), EventKind::CONTAINER_BACKOFF);
                event.message = format!(
                    "back-off {}s restarting failed container={}",
                    delay.as_secs(),
                    event.container
                );
                events.push(event);
            }
            Action::Phase(phase) => {
                events.push(Event {
                    kind: EventKind::POD_PHASE.into(),
                    phase: status::phase(phase).into(),
                    ..Default::default()
                });
            }
            Action::Finished => {
                let (reason, message) = self.end_words();
                events.push(Event {
                    kind: EventKind::POD_FINISHED.into(),
                    phase: status::phase(self.machine.phase()).into(),
                    message: if message.is_empty() { reason } else { message },
                    ..Default::default()
                });
            }
            Action::StartupPassed { index } => {
                events.push(of(
                    index,
                    self.attempt(index),
                    EventKind::CONTAINER_STARTUP_PASSED,
                ));
            }
            Action::Ready { index, ready } => {
                let kind = if ready {
                    EventKind::CONTAINER_READY
                } else {
                    EventKind::CONTAINER_NOT_READY
                };
                events.push(of(index, self.attempt(index), kind));
            }
            Action::Ending { index, reason } => {
                let mut event = of(index, self.attempt(index), EventKind::CONTAINER_KILLING);
                event.message = self.killing_words(&event.container, reason);
                events.push(event);
            }
            Action::Run { .. }
            | Action::PostStart { .. }
            | Action::Watch { .. }
            | Action::PreStop { .. }
            | Action::Stop { .. }
            | Action::Kill { .. } => {}
        }
    }

    /// PodStatus.reason and message.
    pub(super) fn end_words(&self) -> (String, String) {
        match self.machine.end_reason() {
            Some(EndReason::DeadlineExceeded) => (
                "DeadlineExceeded".into(),
                "Pod was active on the node longer than the specified deadline".into(),
            ),
            Some(EndReason::Stopped) => ("Stopped".into(), self.stop_reason.clone()),
            Some(EndReason::InitFailed | EndReason::Completed) | None => {
                (String::new(), String::new())
            }
        }
    }

    /// The kubelet's words.
    fn killing_words(&self, container: &str, reason: KillReason) -> String {
        let probe = match reason {
            KillReason::PodEnds => return format!("Stopping container {container}"),
            KillReason::PostStart => return "FailedPostStartHook".into(),
            KillReason::Startup => "startup",
            KillReason::Liveness => "liveness",
        };
        let then = match self.machine.restart_policy() {
            RestartPolicy::Never => "",
            RestartPolicy::Always | RestartPolicy::OnFailure => ", will be restarted",
        };
        format!("Container {container} failed {probe} probe{then}")
    }
}
