//! The state machine of a pod (Kubernetes: Pod Lifecycle, Init Containers, Sidecar Containers).
//!
//! Pure: it is told what happened and what time it is, and answers with what to do. It never waits and knows neither
//! processes nor the protocol; `driver` does.

use std::time::Duration;

mod vocabulary;

use super::backoff::Backoff;
pub use vocabulary::{
    Action, EndReason, Input, Phase, PodSettings, RestartPolicy, Role, Slot, State, Time,
};

/// The machine.
#[derive(Clone, Debug)]
pub struct PodMachine {
    settings: PodSettings,
    slots: Vec<Slot>,
    phase: Phase,
    begun: bool,
    end: Option<EndReason>,
    grace_ends: Option<Time>,
    finished: bool,
}

impl PodMachine {
    /// A pod that has not begun.
    #[must_use]
    pub fn new(settings: PodSettings) -> Self {
        let slots = settings
            .roles
            .iter()
            .map(|role| Slot {
                role: *role,
                state: State::Waiting,
                attempt: 0,
                backoff: Backoff::default(),
                delay: Duration::ZERO,
                kill_at: None,
                stop_sent: false,
            })
            .collect();
        Self {
            settings,
            slots,
            phase: Phase::Pending,
            begun: false,
            end: None,
            grace_ends: None,
            finished: false,
        }
    }

    /// The containers, in manifest order.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why the pod is ending or has ended.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.end
    }

    /// Whether all is over.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// When [`Input::Timer`] is wanted next.
    #[must_use]
    pub fn next_timer(&self) -> Option<Time> {
        if !self.begun || self.finished {
            return None;
        }
        let starts = self.slots.iter().filter_map(|slot| match slot.state {
            State::Preparing { due, ready: true } => Some(due),
            _ => None,
        });
        let kills = self.slots.iter().filter_map(|slot| slot.kill_at);
        let deadline = self.settings.deadline.filter(|_| self.end.is_none());
        starts.chain(kills).chain(deadline).min()
    }

    /// Takes an input at time `now` and says what to do, in order.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match input {
            Input::Begin => self.begun = true,
            Input::RootfsReady { index, attempt } => self.rootfs_ready(index, attempt),
            Input::Started { index } => self.started(now, index),
            Input::Ended { index, success } => self.ended(now, index, success, &mut actions),
            Input::Stop { grace } => self.bring_down(now, EndReason::Stopped, grace),
            Input::Timer => {}
        }
        if self.begun {
            self.advance(now, &mut actions);
        }
        actions
    }

    fn rootfs_ready(&mut self, index: usize, attempt: u32) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.attempt == attempt
            && let State::Preparing { ready, .. } = &mut slot.state
        {
            *ready = true;
        }
    }

    fn started(&mut self, now: Time, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.state == State::Starting
        {
            slot.state = State::Running { since: now };
        }
    }

    fn ended(&mut self, now: Time, index: usize, success: bool, actions: &mut Vec<Action>) {
        let ending = self.end.is_some();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let ran = match slot.state {
            State::Running { since } => now.saturating_sub(since),
            State::Starting => Duration::ZERO,
            _ => return,
        };
        slot.state = State::Ended { success };
        slot.kill_at = None;
        let restart = !ending
            && match (slot.role, self.settings.restart_policy) {
                (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
                (Role::Init, RestartPolicy::Always | RestartPolicy::OnFailure)
                | (Role::Main, RestartPolicy::OnFailure) => !success,
                (_, RestartPolicy::Never) => false,
            };
        if restart {
            let delay = slot.backoff.delay(&self.settings.backoff, ran);
            slot.attempt = slot.attempt.saturating_add(1);
            slot.delay = delay;
            slot.state = State::Preparing {
                due: now.saturating_add(delay),
                ready: false,
            };
            if !delay.is_zero() {
                actions.push(Action::BackingOff { index, delay });
            }
            actions.push(Action::WantRootfs {
                index,
                attempt: slot.attempt,
            });
        } else if !success && slot.role == Role::Init {
            self.bring_down(now, EndReason::InitFailed, None);
        }
    }

    fn bring_down(&mut self, now: Time, reason: EndReason, grace: Option<Duration>) {
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
            for slot in &mut self.slots {
                slot.kill_at = slot.kill_at.map(|_| grace_ends);
            }
        }
    }

    /// Everything that follows from the present state.
    fn advance(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.end.is_none()
            && self
                .settings
                .deadline
                .is_some_and(|deadline| now >= deadline)
        {
            self.bring_down(now, EndReason::DeadlineExceeded, None);
        }
        if self.end.is_none() {
            self.advance_init(actions);
            self.start_what_is_due(now, actions);
            self.notice_completion(now);
        }
        self.notice_phase(actions);
        if self.end.is_some() {
            self.advance_end(now, actions);
        }
    }

    /// Lets the next init container or, after the last, all main containers begin.
    fn advance_init(&mut self, actions: &mut Vec<Action>) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else {
                return;
            };
            match (slot.role, slot.state) {
                (_, State::Waiting) => {
                    slot.state = State::Starting;
                    actions.push(Action::Run {
                        index,
                        attempt: slot.attempt,
                    });
                    if slot.role != Role::Main {
                        return;
                    }
                }
                (Role::Main, _) | (Role::Init, State::Ended { success: true }) => {}
                // A sidecar has started once: later starts do not hold the others up.
                (Role::Sidecar, State::Running { .. }) => {}
                (Role::Sidecar, _) if slot.attempt > 0 && self.later_began(index) => {}
                _ => return,
            }
        }
    }

    fn later_began(&self, index: usize) -> bool {
        self.slots
            .iter()
            .skip(index.saturating_add(1))
            .any(|slot| slot.state != State::Waiting)
    }

    fn start_what_is_due(&mut self, now: Time, actions: &mut Vec<Action>) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let State::Preparing { due, ready: true } = slot.state
                && now >= due
            {
                slot.state = State::Starting;
                actions.push(Action::Run {
                    index,
                    attempt: slot.attempt,
                });
            }
        }
    }

    fn main(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.role == Role::Main)
    }

    fn notice_completion(&mut self, now: Time) {
        if self
            .main()
            .all(|slot| matches!(slot.state, State::Ended { .. }))
        {
            self.bring_down(now, EndReason::Completed, None);
        }
    }

    fn notice_phase(&mut self, actions: &mut Vec<Action>) {
        let began = self
            .main()
            .any(|slot| !matches!(slot.state, State::Waiting | State::Starting));
        if self.phase == Phase::Pending && began {
            self.phase = Phase::Running;
            actions.push(Action::Phase(Phase::Running));
        }
    }

    /// Stops main (and init) containers together, then sidecars one by one from the last, then ends.
    fn advance_end(&mut self, now: Time, actions: &mut Vec<Action>) {
        let grace_ends = self.grace_ends.unwrap_or(now);
        let active = |slot: &Slot| matches!(slot.state, State::Starting | State::Running { .. });
        let others_active = self
            .slots
            .iter()
            .any(|slot| slot.role != Role::Sidecar && active(slot));
        let last_sidecar = self
            .slots
            .iter()
            .rposition(|slot| slot.role == Role::Sidecar && active(slot));
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let turn = match slot.role {
                Role::Sidecar => !others_active && last_sidecar == Some(index),
                _ => true,
            };
            // A container that is being created is told once it runs: a signal now would be lost.
            if !matches!(slot.state, State::Running { .. }) {
                continue;
            }
            if turn && !slot.stop_sent {
                slot.stop_sent = true;
                slot.kill_at = Some(grace_ends);
                if grace_ends > now {
                    actions.push(Action::Stop { index });
                }
            }
            // The grace is the pod's: when it is over, all that still runs is killed, in turn or not.
            if now >= grace_ends {
                slot.stop_sent = true;
                slot.kill_at = None;
                actions.push(Action::Kill { index });
            }
        }
        if now < grace_ends {
            // Sidecars that wait for their turn are killed with the others when the time is over.
            for slot in &mut self.slots {
                if matches!(slot.state, State::Running { .. }) && slot.kill_at.is_none() {
                    slot.kill_at = Some(grace_ends);
                }
            }
        }
        if !self.slots.iter().any(active) {
            self.finish(actions);
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        let succeeded = self
            .main()
            .all(|slot| slot.state == State::Ended { success: true });
        let forced = matches!(
            self.end,
            Some(EndReason::DeadlineExceeded | EndReason::InitFailed)
        );
        self.phase = if succeeded && !forced {
            Phase::Succeeded
        } else {
            Phase::Failed
        };
        self.finished = true;
        actions.push(Action::Phase(self.phase));
        actions.push(Action::Finished);
    }
}

#[cfg(test)]
mod tests;
