//! How containers end that are asked to: preStop hook, turn, stop signal, kill; and how a pod is brought down.
//!
//! As the kubelet does it: the hooks of all containers run at once, main containers have their signal when their hook is
//! through, sidecars one by one from the last when all others have ended. The grace counts from the beginning and takes
//! the hook in; whoever has used it up has two seconds still.

use std::time::Duration;

use super::vocabulary::Ending;
use super::{Action, EndReason, KillReason, PodMachine, Role, State, Time};

/// Time that a container has after its stop signal whatever its hook has taken (kubelet,
/// minimumGracePeriodInSeconds).
const SHORTEST_WINDOW: Duration = Duration::from_secs(2);

impl PodMachine {
    pub(super) fn bring_down(&mut self, now: Time, reason: EndReason, grace: Option<Duration>) {
        let grace_ends = now.saturating_add(grace.unwrap_or(self.settings.grace));
        if self.end.is_none() {
            self.end = Some(reason);
            self.grace_ends = Some(grace_ends);
            for slot in &mut self.slots {
                // What waits to be restarted will not be; what never ran stays waiting and did not succeed.
                if matches!(slot.state, State::Preparing { .. }) {
                    slot.state = State::Ended { success: false };
                }
            }
        } else if self.grace_ends.is_none_or(|old| grace_ends < old) {
            // A later stop may shorten the time, never lengthen it.
            self.grace_ends = Some(grace_ends);
        } else {
            return;
        }
        for slot in &mut self.slots {
            match &mut slot.ending {
                Ending::Hook { grace_ends: end }
                | Ending::Turn { grace_ends: end }
                | Ending::Signalled { kill_at: end } => *end = grace_ends.min(*end),
                Ending::No | Ending::Killed => {}
            }
        }
    }

    /// Begins to end a container that runs. Without grace it is killed at once.
    pub(super) fn begin_ending(
        &mut self,
        now: Time,
        index: usize,
        reason: KillReason,
        grace: Option<Duration>,
        actions: &mut Vec<Action>,
    ) {
        let grace = grace.unwrap_or(self.settings.grace);
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        actions.push(Action::Ending { index, reason });
        if grace.is_zero() {
            slot.ending = Ending::Killed;
            actions.push(Action::Kill { index });
        } else if slot.traits.pre_stop {
            slot.ending = Ending::Hook {
                grace_ends: now.saturating_add(grace),
            };
            actions.push(Action::PreStop {
                index,
                limit: grace,
            });
        } else {
            self.after_hook(now, index, now.saturating_add(grace), actions);
        }
    }

    /// The hook is through or there is none: a sidecar of an ending pod waits for its turn, others have their signal.
    fn after_hook(&mut self, now: Time, index: usize, grace_ends: Time, actions: &mut Vec<Action>) {
        let waits = self.end.is_some() && !self.turn_of(index) && now < grace_ends;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if waits {
            slot.ending = Ending::Turn { grace_ends };
        } else {
            slot.ending = Ending::Signalled {
                kill_at: grace_ends.max(now.saturating_add(SHORTEST_WINDOW)),
            };
            actions.push(Action::Stop { index });
        }
    }

    /// Whether nothing that still runs is to end before this container.
    fn turn_of(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else {
            return false;
        };
        slot.role != Role::Sidecar
            || !self
                .slots
                .iter()
                .enumerate()
                .any(|(i, other)| other.active() && (other.role != Role::Sidecar || i > index))
    }

    pub(super) fn pre_stopped(
        &mut self,
        now: Time,
        index: usize,
        attempt: u32,
        actions: &mut Vec<Action>,
    ) {
        if let Some(slot) = self.attempt_of(index, attempt)
            && slot.runs()
            && let Ending::Hook { grace_ends } = slot.ending
        {
            self.after_hook(now, index, grace_ends, actions);
        }
    }

    /// Lets every container that ends take its next step.
    pub(super) fn advance_endings(&mut self, now: Time, actions: &mut Vec<Action>) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get(index) else {
                return;
            };
            // A container that is being created is told once it runs: a signal now would be lost.
            if !slot.runs() {
                continue;
            }
            match slot.ending {
                Ending::No => {
                    if let (Some(_), Some(grace_ends)) = (self.end, self.grace_ends) {
                        let grace = grace_ends.saturating_sub(now);
                        let reason = KillReason::PodEnds;
                        self.begin_ending(now, index, reason, Some(grace), actions);
                    }
                }
                Ending::Hook { grace_ends } if now >= grace_ends => {
                    self.after_hook(now, index, grace_ends, actions);
                }
                Ending::Turn { grace_ends } if now >= grace_ends || self.turn_of(index) => {
                    self.after_hook(now, index, grace_ends, actions);
                }
                Ending::Signalled { kill_at } if now >= kill_at => {
                    if let Some(slot) = self.slots.get_mut(index) {
                        slot.ending = Ending::Killed;
                    }
                    actions.push(Action::Kill { index });
                }
                _ => {}
            }
        }
    }
}
