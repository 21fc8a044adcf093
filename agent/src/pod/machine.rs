//! The state machine of a pod (Kubernetes: Pod Lifecycle, Init Containers, Sidecar Containers).
//!
//! Pure: it is told what happened and what time it is, and answers with what to do. It never waits and knows neither
//! processes nor the protocol; `driver` does.

use std::time::Duration;

mod ending;
mod vocabulary;

use super::backoff::Backoff;
use vocabulary::Ending;
pub use vocabulary::{
    Action, EndReason, Input, KillReason, Phase, PodSettings, RestartPolicy, Role, Slot, State,
    Time, Traits,
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
            .containers
            .iter()
            .map(|traits| Slot {
                role: traits.role,
                traits: *traits,
                state: State::Waiting,
                attempt: 0,
                backoff: Backoff::default(),
                delay: Duration::ZERO,
                started: false,
                ready: false,
                ending: Ending::No,
                condemned: false,
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

    /// `spec.restartPolicy`.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        self.settings.restart_policy
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
        let kills = self.slots.iter().filter_map(|slot| match slot.ending {
            _ if !slot.runs() => None,
            Ending::Hook { grace_ends } | Ending::Turn { grace_ends } => Some(grace_ends),
            Ending::Signalled { kill_at } => Some(kill_at),
            Ending::No | Ending::Killed => None,
        });
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
            Input::Started { index } => self.started(now, index, &mut actions),
            Input::PostStarted {
                index,
                attempt,
                success,
            } => self.post_started(now, index, attempt, success, &mut actions),
            Input::PreStopped { index, attempt } => {
                self.pre_stopped(now, index, attempt, &mut actions);
            }
            Input::StartupPassed { index, attempt } => {
                self.startup_passed(index, attempt, &mut actions);
            }
            Input::Readiness {
                index,
                attempt,
                ready,
            } => self.readiness(index, attempt, ready, &mut actions),
            Input::Unhealthy {
                index,
                attempt,
                reason,
                grace,
            } => self.unhealthy(now, index, attempt, reason, grace, &mut actions),
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

    fn started(&mut self, now: Time, index: usize, actions: &mut Vec<Action>) {
        let ending = self.end.is_some();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.state != State::Starting {
            return;
        }
        if slot.traits.post_start && !ending {
            slot.state = State::PostStart { since: now };
            actions.push(Action::PostStart { index });
        } else {
            Self::running(slot, index, now, actions);
        }
    }

    fn post_started(
        &mut self,
        now: Time,
        index: usize,
        attempt: u32,
        success: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.attempt_of(index, attempt) else {
            return;
        };
        let State::PostStart { since } = slot.state else {
            return;
        };
        if success {
            Self::running(slot, index, since, actions);
        } else if slot.ending == Ending::No {
            self.begin_ending(now, index, KillReason::PostStart, None, actions);
        }
    }

    /// The container counts as running from now on.
    fn running(slot: &mut Slot, index: usize, since: Time, actions: &mut Vec<Action>) {
        slot.state = State::Running { since };
        actions.push(Action::Watch { index });
        if !slot.traits.startup_probe {
            Self::count_as_started(slot, index, actions);
        }
    }

    fn count_as_started(slot: &mut Slot, index: usize, actions: &mut Vec<Action>) {
        slot.started = true;
        if !slot.traits.readiness_probe {
            slot.ready = true;
            // Of a container without hooks and probes its start has said so.
            if slot.traits.startup_probe || slot.traits.post_start {
                actions.push(Action::Ready { index, ready: true });
            }
        }
    }

    fn startup_passed(&mut self, index: usize, attempt: u32, actions: &mut Vec<Action>) {
        if let Some(slot) = self.attempt_of(index, attempt)
            && matches!(slot.state, State::Running { .. })
            && !slot.started
        {
            actions.push(Action::StartupPassed { index });
            Self::count_as_started(slot, index, actions);
        }
    }

    fn readiness(&mut self, index: usize, attempt: u32, ready: bool, actions: &mut Vec<Action>) {
        if let Some(slot) = self.attempt_of(index, attempt)
            && matches!(slot.state, State::Running { .. })
            && slot.started
            && slot.ready != ready
        {
            slot.ready = ready;
            actions.push(Action::Ready { index, ready });
        }
    }

    fn unhealthy(
        &mut self,
        now: Time,
        index: usize,
        attempt: u32,
        reason: KillReason,
        grace: Option<Duration>,
        actions: &mut Vec<Action>,
    ) {
        if let Some(slot) = self.attempt_of(index, attempt)
            && matches!(slot.state, State::Running { .. })
            && slot.ending == Ending::No
        {
            slot.condemned = true;
            self.begin_ending(now, index, reason, grace, actions);
        }
    }

    /// The slot, if this attempt of it is the present one: hooks and probes may answer late.
    fn attempt_of(&mut self, index: usize, attempt: u32) -> Option<&mut Slot> {
        self.slots
            .get_mut(index)
            .filter(|slot| slot.attempt == attempt)
    }

    fn ended(&mut self, now: Time, index: usize, success: bool, actions: &mut Vec<Action>) {
        let ending = self.end.is_some();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let ran = match slot.state {
            State::Running { since } | State::PostStart { since } => now.saturating_sub(since),
            State::Starting => Duration::ZERO,
            _ => return,
        };
        slot.state = State::Ended { success };
        slot.ending = Ending::No;
        slot.started = false;
        slot.ready = false;
        // What a failed probe ended is restarted although it ended well, unless nothing is restarted.
        let success = success && !std::mem::take(&mut slot.condemned);
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
        self.advance_endings(now, actions);
        if self.end.is_some() && !self.slots.iter().any(Slot::active) {
            self.finish(actions);
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
                    if slot.role != Role::Main || slot.traits.post_start {
                        return;
                    }
                }
                // A postStart hook holds up the containers after it, as the kubelet starts one after the other.
                (Role::Main, State::Starting | State::PostStart { .. })
                    if slot.traits.post_start && slot.attempt == 0 =>
                {
                    return;
                }
                (Role::Main, _) | (Role::Init, State::Ended { success: true }) => {}
                // A sidecar has started once: later starts do not hold the others up.
                (Role::Sidecar, State::Running { .. }) if slot.started => {}
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
        let began = self.main().any(|slot| {
            !matches!(
                slot.state,
                State::Waiting | State::Starting | State::PostStart { .. }
            )
        });
        if self.phase == Phase::Pending && began {
            self.phase = Phase::Running;
            actions.push(Action::Phase(Phase::Running));
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
