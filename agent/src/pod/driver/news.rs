//! A status that holds what events tell: the container engine tells of a start or an end before the driver knows of it, and the
//! host wants one answer with both.

use std::time::Duration;

use tokio::time::timeout;
use vmpod_agent_protocol::messages::{Event, EventKind, PodStatus};

use super::{PodDriver, Shared};
use crate::container::Containers;

/// How long a status may take to follow the events that it comes along with. They are the work of the same process, so that
/// this is for a machine that stands still.
const STATUS_WAIT: Duration = Duration::from_millis(200);

impl<C: Containers> PodDriver<C> {
    /// The status once all that these events tell is in it: the engine tells of a start or an end before the driver knows.
    /// None when there are no events or no pod, or when the driver takes more than [`STATUS_WAIT`].
    pub async fn status_after(&self, events: &[Event]) -> Option<PodStatus> {
        if events.is_empty() || self.lock().reports.is_none() {
            return None;
        }
        let waiting = async {
            loop {
                let published = self.published.notified();
                tokio::pin!(published);
                published.as_mut().enable();
                if let Some(status) = self.lock().status_with(events) {
                    return status;
                }
                published.await;
            }
        };
        timeout(STATUS_WAIT, waiting).await.ok()
    }
}

impl Shared {
    fn status_with(&self, events: &[Event]) -> Option<PodStatus> {
        let known = |event: &Event| {
            let place = self
                .wanted
                .iter()
                .position(|(name, _)| *name == event.container);
            place
                .and_then(|index| self.seen.get(index))
                .is_none_or(|seen| seen.knows(event))
        };
        events.iter().all(known).then(|| self.status.clone())
    }
}

/// What a status tells of the life of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Attempt that ran or runs last.
    pub attempt: u32,
    pub started: bool,
    pub ended: bool,
}

impl Seen {
    fn knows(self, event: &Event) -> bool {
        let there = match event.kind.enum_value_or(EventKind::UNKNOWN) {
            EventKind::CONTAINER_STARTED => self.started || self.ended,
            EventKind::CONTAINER_EXITED => self.ended,
            _ => return true,
        };
        self.attempt > event.attempt || (self.attempt == event.attempt && there)
    }
}
