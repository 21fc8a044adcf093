//! Probes and hooks of running containers, carried out for the driver.

use std::time::Duration;

use vmpod_agent_protocol::limits::MESSAGE_BYTES;
use vmpod_agent_protocol::messages::{Event, EventKind};

use super::{Attempt, Report, Task, container_id};
use crate::container::Containers;
use crate::pod::machine::{Input, KillReason};
use crate::probe::{self, Kind, Place, Told};

/// Longer than any pod lives: what has no limit is given this, which clocks can still add.
pub(super) const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// After the start.
    PostStart,
    /// Before the stop signal.
    PreStop,
}

impl<C: Containers> Task<C> {
    /// Attempt that container `index` is in.
    pub(super) fn attempt(&self, index: usize) -> u32 {
        self.machine
            .slots()
            .get(index)
            .map_or(0, |slot| slot.attempt)
    }

    fn place(&self, index: usize) -> Option<Place<C>> {
        let plan = self.plans.get(index)?;
        Some(Place {
            containers: self.containers.clone(),
            container: container_id(&plan.name, self.attempt(index)),
            address: self.address,
        })
    }

    /// Begins the probes of a container that has started.
    pub(super) fn watch(&mut self, index: usize) {
        let attempt = Attempt {
            index,
            attempt: self.attempt(index),
        };
        let (Some(care), Some(place)) = (self.care.get(index), self.place(index)) else {
            return;
        };
        let probes = [
            (Kind::Startup, care.startup.clone()),
            (Kind::Readiness, care.readiness.clone()),
            (Kind::Liveness, care.liveness.clone()),
        ];
        if probes.iter().all(|(_, probe)| probe.is_none()) {
            return;
        }
        let watched = probe::watch(&place, probes, attempt, &self.tell);
        if let Some(running) = self.running.get_mut(index) {
            *running = Some(watched);
        }
    }

    /// The container is being ended: its postStart hook and the probes that could end it are over.
    pub(super) fn ending(&mut self, index: usize) {
        if let Some(Some(watched)) = self.running.get_mut(index) {
            watched.ending();
        }
        if let Some(hook) = self.hooks.get_mut(index).and_then(Option::take) {
            hook.abort();
        }
    }

    /// The container has ended: nothing is asked of it any more.
    pub(super) fn let_go(&mut self, index: usize) {
        self.ending(index);
        if let Some(running) = self.running.get_mut(index) {
            *running = None;
        }
    }

    pub(super) fn run_hook(&mut self, index: usize, hook: Hook, limit: Duration) {
        let attempt = Attempt {
            index,
            attempt: self.attempt(index),
        };
        let handler = self.care.get(index).and_then(|care| match hook {
            Hook::PostStart => care.post_start.clone(),
            Hook::PreStop => care.pre_stop.clone(),
        });
        let (Some(handler), Some(place)) = (handler, self.place(index)) else {
            return;
        };
        let reports = self.reports.clone();
        let task = tokio::spawn(async move {
            // So that the time of the whole is bounded, not only that of each step.
            let ran = tokio::time::timeout(limit, probe::run_hook(&place, &handler, limit));
            let result = ran.await.unwrap_or_else(|_| {
                Err(format!(
                    "did not end within the grace period of {}s",
                    limit.as_secs()
                ))
            });
            let _ = reports.send(Report::Hook {
                attempt,
                hook,
                result,
            });
        });
        if let Some(place) = self.hooks.get_mut(index) {
            *place = Some(task.abort_handle());
        }
    }

    pub(super) fn hook_ended(&mut self, at: Attempt, hook: Hook, result: Result<(), String>) {
        if at.attempt == self.attempt(at.index)
            && let Some(running) = self.hooks.get_mut(at.index)
        {
            *running = None;
        }
        let success = result.is_ok();
        let input = match hook {
            Hook::PostStart => Input::PostStarted {
                index: at.index,
                attempt: at.attempt,
                success,
            },
            Hook::PreStop => Input::PreStopped {
                index: at.index,
                attempt: at.attempt,
            },
        };
        match (hook, result) {
            (Hook::PostStart, Err(why)) => {
                let why = format!("PostStartHook failed: {why}");
                self.say(at, EventKind::POST_START_FAILED, &why);
            }
            (Hook::PreStop, Err(why)) => {
                let why = format!("PreStopHook failed: {why}");
                self.say(at, EventKind::PRE_STOP_FAILED, &why);
            }
            (_, Ok(())) => {}
        }
        self.feed(input);
        if hook == Hook::PostStart && success {
            // Last, so that the status that is read because of it says that the container runs.
            self.say(at, EventKind::POST_START_DONE, "");
        }
    }

    /// Takes in what a probe says.
    pub(super) fn hear(&mut self, at: Attempt, told: Told) {
        match told {
            Told::Failed(why) => {
                if at.attempt == self.attempt(at.index) {
                    self.say(at, EventKind::PROBE_FAILED, &why);
                }
            }
            Told::Word {
                kind,
                success,
                grace,
            } => {
                let (index, attempt) = (at.index, at.attempt);
                self.feed(match (kind, success) {
                    (Kind::Readiness, ready) => Input::Readiness {
                        index,
                        attempt,
                        ready,
                    },
                    (Kind::Startup, true) => Input::StartupPassed { index, attempt },
                    (Kind::Liveness, true) => return,
                    (Kind::Startup | Kind::Liveness, false) => Input::Unhealthy {
                        index,
                        attempt,
                        reason: if kind == Kind::Startup {
                            KillReason::Startup
                        } else {
                            KillReason::Liveness
                        },
                        grace,
                    },
                });
            }
        }
    }

    fn say(&self, at: Attempt, kind: EventKind, message: &str) {
        let name = self
            .plans
            .get(at.index)
            .map(|plan| plan.name.clone())
            .unwrap_or_default();
        self.containers.events().push(Event {
            kind: kind.into(),
            container_id: container_id(&name, at.attempt),
            container: name,
            attempt: at.attempt,
            message: message.chars().take(MESSAGE_BYTES / 4).collect(),
            ..Default::default()
        });
    }
}
