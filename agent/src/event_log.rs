//! The numbered log of what happened in the guest, read by the host with `NextEvents`.
//!
//! Shared by the container engine and the pod driver, which push, and by the service, which polls. Keeps the newest
//! [`EVENTS_KEPT`] events; whoever asks for older ones is told that they are gone. Does not deliver twice or at most
//! once: the reader names the last number that it has seen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use vmpod_agent_protocol::limits::{EVENT_WAIT_MS, EVENTS_KEPT, EVENTS_PER_ANSWER};
use vmpod_agent_protocol::messages::{Event, EventKind, NextEventsResponse};

use crate::clock;

/// How long the news of a creation waits for that of the start, which most often follows at once: each answer costs the host
/// a round of work.
const CREATION_WAIT: Duration = Duration::from_millis(10);

/// A handle to the log; clones share one log.
#[derive(Clone, Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Shared by everything that pushes and by every waiting `NextEvents` call; never held across an await.
    kept: Mutex<Kept>,
    pushed: Notify,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    next_sequence: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}

impl EventLog {
    /// An empty log whose first event will have number 1.
    pub fn new() -> Self {
        EventLog {
            shared: Arc::new(Shared {
                kept: Mutex::new(Kept {
                    events: VecDeque::new(),
                    next_sequence: 1,
                }),
                pushed: Notify::new(),
            }),
        }
    }

    /// Appends an event and returns its number. `sequence` is set here; `at_ns` too unless the caller has set it.
    pub fn push(&self, mut event: Event) -> u64 {
        let sequence = {
            let mut kept = self.kept();
            let sequence = kept.next_sequence;
            kept.next_sequence = sequence.saturating_add(1);
            event.sequence = sequence;
            if event.at_ns == 0 {
                event.at_ns = clock::realtime_ns();
            }
            if kept.events.len() >= EVENTS_KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(event);
            sequence
        };
        self.shared.pushed.notify_waiters();
        sequence
    }

    /// Number of the newest event; 0 while there is none.
    pub fn last_sequence(&self) -> u64 {
        self.kept().next_sequence.saturating_sub(1)
    }

    /// Events after number `after`, at most [`EVENTS_PER_ANSWER`]. With none, waits up to `wait_ms` milliseconds
    /// (cut to [`EVENT_WAIT_MS`]) for one and may answer with none. Creations alone are told [`CREATION_WAIT`] later.
    pub async fn next(&self, after: u64, wait_ms: u32) -> NextEventsResponse {
        let deadline =
            Instant::now() + Duration::from_millis(u64::from(wait_ms.min(EVENT_WAIT_MS)));
        let mut company: Option<Instant> = None;
        loop {
            // Registered before the look, so that a push between the look and the wait is not missed.
            let pushed = self.shared.pushed.notified();
            tokio::pin!(pushed);
            pushed.as_mut().enable();
            let answer = self.look(after);
            if !answer.events.is_empty() {
                let until = *company.get_or_insert_with(|| Instant::now() + CREATION_WAIT);
                if !answer.events.iter().all(is_creation) || Instant::now() >= until {
                    return answer;
                }
                let _ = tokio::time::timeout_at(until, pushed).await;
                continue;
            }
            if tokio::time::timeout_at(deadline, pushed).await.is_err() {
                return self.look(after);
            }
        }
    }

    fn look(&self, after: u64) -> NextEventsResponse {
        let kept = self.kept();
        let first_kept = kept
            .events
            .front()
            .map_or(kept.next_sequence, |event| event.sequence);
        // Numbers are consecutive, so the position follows from the first one.
        let skip = usize::try_from(after.saturating_add(1).saturating_sub(first_kept))
            .unwrap_or(usize::MAX);
        NextEventsResponse {
            events: kept
                .events
                .iter()
                .skip(skip)
                .take(EVENTS_PER_ANSWER)
                .cloned()
                .collect(),
            first_kept,
            ..Default::default()
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_creation(event: &Event) -> bool {
    event.kind.enum_value_or(EventKind::UNKNOWN) == EventKind::CONTAINER_CREATED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        Event {
            container_id: id.into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn log_with_more_than_is_kept_says_what_is_lost() {
        let log = EventLog::new();
        for number in 0..EVENTS_KEPT + 10 {
            log.push(event(&number.to_string()));
        }
        let answer = log.next(0, 0).await;
        assert_eq!(answer.first_kept, 11);
        assert_eq!(answer.events.len(), EVENTS_PER_ANSWER);
        assert_eq!(answer.events[0].sequence, 11);
        let answer = log.next(20, 0).await;
        assert_eq!(answer.events[0].sequence, 21);
    }

    #[tokio::test]
    async fn wait_without_an_event_ends_empty() {
        let log = EventLog::new();
        let answer = log.next(0, 50).await;
        assert!(answer.events.is_empty());
        assert_eq!(answer.first_kept, 1);
    }

    #[tokio::test]
    async fn wait_is_ended_by_a_push() {
        let log = EventLog::new();
        log.push(event("a"));
        let other = log.clone();
        let waiting = tokio::spawn(async move { other.next(1, 20_000).await });
        tokio::task::yield_now().await;
        assert_eq!(log.push(event("b")), 2);
        let answer = waiting.await.unwrap();
        assert_eq!(answer.events.len(), 1);
        assert_eq!(answer.events[0].container_id, "b");
        assert!(answer.events[0].at_ns > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn creation_comes_with_the_start_that_follows_or_a_little_later_alone() {
        let of = |kind: EventKind| Event {
            kind: kind.into(),
            ..Default::default()
        };
        let log = EventLog::new();
        log.push(of(EventKind::CONTAINER_CREATED));
        let other = log.clone();
        let waiting = tokio::spawn(async move { other.next(0, 20_000).await });
        tokio::time::sleep(CREATION_WAIT / 2).await;
        log.push(of(EventKind::CONTAINER_STARTED));
        assert_eq!(waiting.await.unwrap().events.len(), 2);
        log.push(of(EventKind::CONTAINER_CREATED));
        let before = Instant::now();
        assert_eq!(log.next(2, 20_000).await.events.len(), 1);
        let took = before.elapsed();
        assert!(
            took >= CREATION_WAIT && took < 2 * CREATION_WAIT,
            "{took:?}"
        );
    }

    #[tokio::test]
    async fn look_far_ahead_of_the_log_is_empty() {
        let log = EventLog::new();
        log.push(event("a"));
        assert!(log.next(u64::MAX, 0).await.events.is_empty());
    }
}
