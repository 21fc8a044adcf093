//! The tasks that make a container's probes: one for each, from the container's start until they are dropped.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::attempt::{Outcome, Place, attempt};
use super::tally::Tally;
use super::{Kind, Probe};
use crate::container::Containers;

/// What a probe has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The attempts in a row have reached their threshold and this is a change.
    Word {
        /// Which probe.
        kind: Kind,
        /// What it says.
        success: bool,
        /// Grace of the kill that follows; `None`: the pod's own.
        grace: Option<Duration>,
    },
    /// An attempt failed, in the words of the kubelet's event.
    Failed(String),
}

/// The probes of a running container. They end when this is dropped.
#[derive(Debug)]
pub struct Watched {
    started: watch::Sender<bool>,
    tasks: Vec<(Kind, JoinHandle<()>)>,
}

impl Watched {
    /// Lets readiness and liveness probes begin.
    pub fn startup_passed(&self) {
        self.started.send_replace(true);
    }

    /// Ends startup and liveness probes: the container is being ended, and whether it is ready still counts.
    pub fn ending(&mut self) {
        self.tasks.retain(|(kind, task)| {
            let stays = *kind == Kind::Readiness;
            if !stays {
                task.abort();
            }
            stays
        });
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for (_, task) in &self.tasks {
            task.abort();
        }
    }
}

/// Begins to watch a container that has just started. What its probes say goes to `tell`, with `tag` beside it.
pub fn watch<C: Containers, T: Clone + Send + 'static>(
    place: &Place<C>,
    probes: [(Kind, Option<Probe>); 3],
    tag: T,
    tell: &mpsc::UnboundedSender<(T, Told)>,
) -> Watched {
    let has_startup = probes
        .iter()
        .any(|(kind, probe)| *kind == Kind::Startup && probe.is_some());
    let started = watch::Sender::new(!has_startup);
    let began = Instant::now();
    let tasks = probes
        .into_iter()
        .filter_map(|(kind, probe)| {
            let task = Task {
                kind,
                probe: probe?,
                place: place.clone(),
                tag: tag.clone(),
                tell: tell.clone(),
            };
            Some((kind, tokio::spawn(task.run(began, started.subscribe()))))
        })
        .collect();
    Watched { started, tasks }
}

struct Task<C, T> {
    kind: Kind,
    probe: Probe,
    place: Place<C>,
    tag: T,
    tell: mpsc::UnboundedSender<(T, Told)>,
}

impl<C: Containers, T: Clone> Task<C, T> {
    async fn run(self, began: Instant, mut started: watch::Receiver<bool>) {
        if self.kind != Kind::Startup && started.wait_for(|started| *started).await.is_err() {
            return;
        }
        let mut next = began + self.probe.initial_delay;
        let mut tally = Tally::new(self.probe.success_threshold, self.probe.failure_threshold);
        // Until its probe says otherwise a container is not ready, and alive.
        let mut word = self.kind == Kind::Liveness;
        let mut errors = 0_u32;
        let mut said_last = String::new();
        loop {
            sleep_until(next).await;
            let outcome = attempt(&self.place, &self.probe.handler, self.probe.timeout).await;
            let title = self.kind.title();
            let said = match outcome {
                Outcome::Success => tally.count(true),
                Outcome::Failure(why) => {
                    let said = tally.count(false);
                    // Beyond the threshold only another reason is news.
                    if tally.is_news() || why != said_last {
                        self.tell(Told::Failed(format!("{title} probe failed: {why}")));
                    }
                    said_last = why;
                    said
                }
                Outcome::Error(why) => {
                    errors = errors.saturating_add(1);
                    if errors <= self.probe.failure_threshold {
                        self.tell(Told::Failed(format!("{title} probe errored: {why}")));
                    }
                    None
                }
            };
            if let Some(success) = said {
                let changed = success != word || (self.kind == Kind::Startup && !success);
                word = success;
                if changed {
                    self.tell(Told::Word {
                        kind: self.kind,
                        success,
                        grace: self.probe.grace,
                    });
                }
                // A startup probe is over with its first word, a liveness probe when the container is to end.
                if self.kind == Kind::Startup || (self.kind == Kind::Liveness && !success) {
                    return;
                }
            }
            // An attempt that took longer than the period is not made up for.
            next = Instant::now().max(next + self.probe.period);
        }
    }

    fn tell(&self, what: Told) {
        // Nobody listens when the pod has ended.
        let _ = self.tell.send((self.tag.clone(), what));
    }
}
