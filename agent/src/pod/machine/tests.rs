//! Lives of pods, told as inputs and the actions that must follow.

use proptest::prelude::*;

use super::*;
use crate::pod::backoff::BackoffPolicy;

fn settings(roles: &[Role], restart_policy: RestartPolicy) -> PodSettings {
    PodSettings {
        containers: roles.iter().map(|role| Traits::from(*role)).collect(),
        restart_policy,
        backoff: BackoffPolicy::default(),
        grace: Duration::from_secs(30),
        deadline: None,
    }
}

fn pod(roles: &[Role], restart_policy: RestartPolicy) -> PodMachine {
    PodMachine::new(settings(roles, restart_policy))
}

const fn at(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn run(index: usize, attempt: u32) -> Action {
    Action::Run { index, attempt }
}

const fn watch(index: usize) -> Action {
    Action::Watch { index }
}

/// The container is asked to end because the pod ends.
const fn ending(index: usize) -> Action {
    Action::Ending {
        index,
        reason: KillReason::PodEnds,
    }
}

fn ok(index: usize) -> Input {
    Input::Ended {
        index,
        success: true,
    }
}

fn fail(index: usize) -> Input {
    Input::Ended {
        index,
        success: false,
    }
}

use Input::{Begin, Started, Timer};
use Role::{Init, Main, Sidecar};

#[test]
fn pod_with_init_containers_runs_them_one_by_one() {
    let mut pod = pod(&[Init, Init, Main, Main], RestartPolicy::Never);
    assert_eq!(pod.handle(at(0), Begin), [run(0, 0)]);
    assert_eq!(pod.handle(at(1), Started { index: 0 }), [watch(0)]);
    assert_eq!(pod.handle(at(2), ok(0)), [run(1, 0)]);
    pod.handle(at(2), Started { index: 1 });
    assert_eq!(pod.phase(), Phase::Pending);
    assert_eq!(pod.handle(at(3), ok(1)), [run(2, 0), run(3, 0)]);
    assert_eq!(
        pod.handle(at(3), Started { index: 2 }),
        [watch(2), Action::Phase(Phase::Running)]
    );
    pod.handle(at(3), Started { index: 3 });
    assert_eq!(pod.handle(at(4), ok(2)), []);
    assert_eq!(
        pod.handle(at(5), ok(3)),
        [Action::Phase(Phase::Succeeded), Action::Finished]
    );
    assert_eq!(pod.end_reason(), Some(EndReason::Completed));
}

#[test]
fn pod_with_a_failed_init_container_and_never_fails() {
    let mut pod = pod(&[Init, Main], RestartPolicy::Never);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    assert_eq!(
        pod.handle(at(1), fail(0)),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
    assert_eq!(pod.slots()[1].state, State::Waiting);
}

#[test]
fn pod_with_a_failed_init_container_and_always_tries_again_with_backoff() {
    let mut pod = pod(&[Init, Main], RestartPolicy::Always);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    assert_eq!(
        pod.handle(at(1), fail(0)),
        [Action::WantRootfs {
            index: 0,
            attempt: 1
        }]
    );
    assert_eq!(
        pod.handle(
            at(1),
            Input::RootfsReady {
                index: 0,
                attempt: 1
            }
        ),
        [run(0, 1)]
    );
    pod.handle(at(1), Started { index: 0 });
    assert_eq!(
        pod.handle(at(2), fail(0)),
        [
            Action::BackingOff {
                index: 0,
                delay: at(10)
            },
            Action::WantRootfs {
                index: 0,
                attempt: 2
            }
        ]
    );
    assert_eq!(
        pod.handle(
            at(3),
            Input::RootfsReady {
                index: 0,
                attempt: 1
            }
        ),
        [],
        "of an older attempt"
    );
    assert_eq!(pod.next_timer(), None);
    assert_eq!(
        pod.handle(
            at(3),
            Input::RootfsReady {
                index: 0,
                attempt: 2
            }
        ),
        []
    );
    assert_eq!(pod.next_timer(), Some(at(12)));
    assert_eq!(pod.handle(at(12), Timer), [run(0, 2)]);
}

#[test]
fn pod_with_on_failure_restarts_only_what_failed() {
    let mut pod = pod(&[Main, Main], RestartPolicy::OnFailure);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    pod.handle(at(0), Started { index: 1 });
    assert_eq!(pod.handle(at(1), ok(0)), []);
    assert_eq!(
        pod.handle(at(1), fail(1)),
        [Action::WantRootfs {
            index: 1,
            attempt: 1
        }]
    );
    pod.handle(
        at(1),
        Input::RootfsReady {
            index: 1,
            attempt: 1,
        },
    );
    pod.handle(at(1), Started { index: 1 });
    assert_eq!(
        pod.handle(at(2), ok(1)),
        [Action::Phase(Phase::Succeeded), Action::Finished]
    );
}

#[test]
fn pod_with_always_restarts_what_succeeded() {
    let mut pod = pod(&[Main], RestartPolicy::Always);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    assert_eq!(
        pod.handle(at(1), ok(0)),
        [Action::WantRootfs {
            index: 0,
            attempt: 1
        }]
    );
    assert_eq!(pod.phase(), Phase::Running);
}

#[test]
fn pod_with_one_failed_container_and_never_fails_when_all_have_ended() {
    let mut pod = pod(&[Main, Main], RestartPolicy::Never);
    pod.handle(at(0), Begin);
    assert_eq!(
        pod.handle(at(1), fail(0)),
        [Action::Phase(Phase::Running)],
        "a start that failed"
    );
    pod.handle(at(1), Started { index: 1 });
    assert_eq!(
        pod.handle(at(9), ok(1)),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
}

#[test]
fn sidecars_start_in_order_are_restarted_and_end_last_in_reverse() {
    let mut pod = pod(&[Sidecar, Init, Sidecar, Main], RestartPolicy::Never);
    assert_eq!(pod.handle(at(0), Begin), [run(0, 0)]);
    assert_eq!(
        pod.handle(at(1), Started { index: 0 }),
        [watch(0), run(1, 0)]
    );
    assert_eq!(
        pod.handle(at(1), ok(0)),
        [Action::WantRootfs {
            index: 0,
            attempt: 1
        }]
    );
    pod.handle(at(1), Started { index: 1 });
    assert_eq!(
        pod.handle(at(2), ok(1)),
        [run(2, 0)],
        "a restarting sidecar does not hold up the rest"
    );
    pod.handle(
        at(2),
        Input::RootfsReady {
            index: 0,
            attempt: 1,
        },
    );
    pod.handle(at(2), Started { index: 0 });
    assert_eq!(
        pod.handle(at(3), Started { index: 2 }),
        [watch(2), run(3, 0)]
    );
    pod.handle(at(3), Started { index: 3 });
    assert_eq!(
        pod.handle(at(4), ok(3)),
        [ending(0), ending(2), Action::Stop { index: 2 }]
    );
    assert_eq!(pod.handle(at(5), fail(2)), [Action::Stop { index: 0 }]);
    assert_eq!(
        pod.handle(at(6), fail(0)),
        [Action::Phase(Phase::Succeeded), Action::Finished]
    );
}

#[test]
fn stop_sends_signals_then_kills_when_the_grace_is_over() {
    let mut pod = pod(&[Sidecar, Main, Main], RestartPolicy::Always);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    pod.handle(at(0), Started { index: 1 });
    pod.handle(at(0), Started { index: 2 });
    assert_eq!(
        pod.handle(at(5), Input::Stop { grace: Some(at(3)) }),
        [
            ending(0),
            ending(1),
            Action::Stop { index: 1 },
            ending(2),
            Action::Stop { index: 2 }
        ]
    );
    assert_eq!(pod.handle(at(6), ok(1)), [], "not restarted");
    assert_eq!(pod.next_timer(), Some(at(8)));
    assert_eq!(
        pod.handle(at(8), Timer),
        [Action::Stop { index: 0 }, Action::Kill { index: 2 }],
        "a sidecar whose turn never came has two seconds"
    );
    assert_eq!(pod.next_timer(), Some(at(10)));
    assert_eq!(pod.handle(at(10), Timer), [Action::Kill { index: 0 }]);
    pod.handle(at(8), fail(2));
    assert_eq!(
        pod.handle(at(8), fail(0)),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
}

#[test]
fn stop_of_a_container_that_is_being_created_waits_for_its_start() {
    let mut pod = pod(&[Main], RestartPolicy::Always);
    pod.handle(at(0), Begin);
    assert_eq!(pod.handle(at(1), Input::Stop { grace: None }), []);
    assert_eq!(
        pod.handle(at(2), Started { index: 0 }),
        [
            watch(0),
            Action::Phase(Phase::Running),
            ending(0),
            Action::Stop { index: 0 }
        ]
    );
}

#[test]
fn stop_with_no_grace_kills_at_once_and_a_second_stop_shortens_the_first() {
    let mut first = pod(&[Main], RestartPolicy::Always);
    first.handle(at(0), Begin);
    first.handle(at(0), Started { index: 0 });
    let mut second = first.clone();
    assert_eq!(
        first.handle(at(1), Input::Stop { grace: Some(at(0)) }),
        [ending(0), Action::Kill { index: 0 }]
    );
    assert_eq!(
        second.handle(at(1), Input::Stop { grace: None }),
        [ending(0), Action::Stop { index: 0 }]
    );
    assert_eq!(second.handle(at(2), Input::Stop { grace: Some(at(1)) }), []);
    assert_eq!(second.handle(at(3), Timer), [Action::Kill { index: 0 }]);
}

#[test]
fn stop_while_backing_off_ends_the_pod_at_once() {
    let mut pod = pod(&[Main], RestartPolicy::Always);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    pod.handle(at(1), fail(0));
    assert_eq!(
        pod.handle(at(2), Input::Stop { grace: None }),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
}

#[test]
fn deadline_brings_the_pod_down_as_failed() {
    let mut pod = PodMachine::new(PodSettings {
        deadline: Some(at(5)),
        ..settings(&[Main], RestartPolicy::Never)
    });
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    assert_eq!(pod.next_timer(), Some(at(5)));
    assert_eq!(
        pod.handle(at(5), Timer),
        [ending(0), Action::Stop { index: 0 }]
    );
    assert_eq!(
        pod.handle(at(6), ok(0)),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
    assert_eq!(pod.end_reason(), Some(EndReason::DeadlineExceeded));
}

/// A pod of one main container (and what comes before it) with these traits, running since 0.
fn with_traits(containers: &[Traits], restart_policy: RestartPolicy) -> PodMachine {
    PodMachine::new(PodSettings {
        containers: containers.to_vec(),
        ..settings(&[], restart_policy)
    })
}

fn unhealthy(index: usize, attempt: u32, reason: KillReason, grace: Option<Time>) -> Input {
    Input::Unhealthy {
        index,
        attempt,
        reason,
        grace,
    }
}

#[test]
fn sidecar_with_a_startup_probe_holds_up_the_rest_until_it_has_started() {
    let sidecar = Traits {
        startup_probe: true,
        ..Sidecar.into()
    };
    let mut pod = with_traits(&[sidecar, Main.into()], RestartPolicy::Never);
    pod.handle(at(0), Begin);
    assert_eq!(pod.handle(at(1), Started { index: 0 }), [watch(0)]);
    assert!(!pod.slots()[0].started && !pod.slots()[0].ready);
    let passed = Input::StartupPassed {
        index: 0,
        attempt: 0,
    };
    assert_eq!(
        pod.handle(at(5), passed),
        [
            Action::StartupPassed { index: 0 },
            Action::Ready {
                index: 0,
                ready: true
            },
            run(1, 0)
        ]
    );
    assert_eq!(pod.handle(at(6), passed), [], "once");
}

#[test]
fn container_that_is_unhealthy_is_ended_and_restarted_although_it_ends_well() {
    let mut pod = with_traits(&[Main.into()], RestartPolicy::OnFailure);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    let reason = KillReason::Liveness;
    assert_eq!(
        pod.handle(at(9), unhealthy(0, 1, reason, None)),
        [],
        "of another attempt"
    );
    assert_eq!(
        pod.handle(at(9), unhealthy(0, 0, reason, Some(at(5)))),
        [
            Action::Ending { index: 0, reason },
            Action::Stop { index: 0 }
        ]
    );
    assert_eq!(pod.next_timer(), Some(at(14)), "the probe's own grace");
    assert_eq!(
        pod.handle(at(10), unhealthy(0, 0, reason, None)),
        [],
        "it ends already"
    );
    assert_eq!(
        pod.handle(at(11), ok(0)),
        [Action::WantRootfs {
            index: 0,
            attempt: 1
        }]
    );
    assert!(!pod.slots()[0].ready);
}

#[test]
fn container_that_is_unhealthy_under_never_ends_the_pod() {
    let mut pod = with_traits(&[Main.into()], RestartPolicy::Never);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    pod.handle(at(1), unhealthy(0, 0, KillReason::Startup, None));
    assert_eq!(pod.handle(at(31), Timer), [Action::Kill { index: 0 }]);
    assert_eq!(
        pod.handle(at(31), fail(0)),
        [Action::Phase(Phase::Failed), Action::Finished]
    );
}

#[test]
fn readiness_counts_only_while_the_container_runs_and_has_started() {
    let traits = Traits {
        startup_probe: true,
        readiness_probe: true,
        ..Main.into()
    };
    let mut pod = with_traits(&[traits], RestartPolicy::Always);
    let ready = |ready| Input::Readiness {
        index: 0,
        attempt: 0,
        ready,
    };
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    assert_eq!(pod.handle(at(1), ready(true)), []);
    pod.handle(
        at(2),
        Input::StartupPassed {
            index: 0,
            attempt: 0,
        },
    );
    assert!(pod.slots()[0].started && !pod.slots()[0].ready);
    let says = |ready| [Action::Ready { index: 0, ready }];
    assert_eq!(pod.handle(at(3), ready(true)), says(true));
    assert_eq!(pod.handle(at(4), ready(false)), says(false));
    pod.handle(at(5), ready(true));
    pod.handle(at(6), fail(0));
    assert!(!pod.slots()[0].ready);
    assert_eq!(pod.handle(at(7), ready(true)), [], "late");
}

#[test]
fn post_start_hook_holds_up_the_next_container_and_its_failure_ends_its_own() {
    let hooked = Traits {
        post_start: true,
        ..Main.into()
    };
    let mut pod = with_traits(&[hooked, Main.into()], RestartPolicy::Always);
    assert_eq!(pod.handle(at(0), Begin), [run(0, 0)]);
    assert_eq!(
        pod.handle(at(1), Started { index: 0 }),
        [Action::PostStart { index: 0 }]
    );
    assert_eq!(pod.phase(), Phase::Pending);
    let through = |attempt, success| Input::PostStarted {
        index: 0,
        attempt,
        success,
    };
    let mut failing = pod.clone();
    assert_eq!(
        pod.handle(at(3), through(0, true)),
        [
            watch(0),
            Action::Ready {
                index: 0,
                ready: true
            },
            run(1, 0),
            Action::Phase(Phase::Running)
        ]
    );
    let reason = KillReason::PostStart;
    assert_eq!(
        failing.handle(at(3), through(0, false)),
        [
            Action::Ending { index: 0, reason },
            Action::Stop { index: 0 }
        ]
    );
    let actions = failing.handle(at(4), fail(0));
    assert!(actions.contains(&run(1, 0)), "{actions:?}");
    assert!(actions.contains(&Action::WantRootfs {
        index: 0,
        attempt: 1
    }));
    assert_eq!(failing.handle(at(5), through(0, true)), [], "late");
}

#[test]
fn pre_stop_hooks_run_at_once_and_take_from_the_grace() {
    let hooked = |role: Role| Traits {
        pre_stop: true,
        ..role.into()
    };
    let mut pod = with_traits(&[hooked(Sidecar), hooked(Main)], RestartPolicy::Never);
    pod.handle(at(0), Begin);
    pod.handle(at(0), Started { index: 0 });
    pod.handle(at(0), Started { index: 1 });
    let hook = |index| Action::PreStop {
        index,
        limit: at(10),
    };
    assert_eq!(
        pod.handle(
            at(1),
            Input::Stop {
                grace: Some(at(10))
            }
        ),
        [ending(0), hook(0), ending(1), hook(1)]
    );
    let through = |index| Input::PreStopped { index, attempt: 0 };
    assert_eq!(pod.handle(at(4), through(0)), [], "not its turn yet");
    let mut slow = pod.clone();
    assert_eq!(pod.handle(at(5), through(1)), [Action::Stop { index: 1 }]);
    assert_eq!(pod.handle(at(6), ok(1)), [Action::Stop { index: 0 }]);
    // A hook that takes all of the grace: two seconds are left all the same.
    assert_eq!(slow.next_timer(), Some(at(11)));
    assert_eq!(
        slow.handle(at(11), Timer),
        [Action::Stop { index: 0 }, Action::Stop { index: 1 }]
    );
    assert_eq!(slow.handle(at(12), through(1)), [], "late");
    assert_eq!(slow.next_timer(), Some(at(13)));
}

proptest! {
    /// Whatever comes in whatever order, no container runs twice at a time, init order holds, and a stop ends the pod.
    #[test]
    fn machine_keeps_its_invariants(
        policy in 0..3_u8,
        roles in prop::collection::vec(0..3_u8, 1..6),
        traits in prop::collection::vec(0..16_u8, 6..7),
        steps in prop::collection::vec((0..11_u8, 0..6_usize, any::<bool>(), 0..20_u64), 0..60),
    ) {
        let mut roles: Vec<Role> = roles.iter().map(|r| [Init, Sidecar, Main][usize::from(*r)]).collect();
        roles.sort_by_key(|r| *r == Main);
        roles.push(Main);
        let policy = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][usize::from(policy)];
        let containers: Vec<Traits> = roles
            .iter()
            .zip(&traits)
            .map(|(role, bits)| Traits {
                role: *role,
                post_start: bits & 1 != 0,
                pre_stop: bits & 2 != 0,
                startup_probe: bits & 4 != 0,
                readiness_probe: bits & 8 != 0,
            })
            .collect();
        let mut pod = with_traits(&containers, policy);
        let mut now = 0;
        let mut live = vec![false; roles.len()];
        let mut attempts = vec![None; roles.len()];
        let mut apply = |pod: &mut PodMachine, now: u64, input: Input, live: &mut Vec<bool>| {
            if let Input::Ended { index, .. } = input && index < live.len()
                && pod.slots()[index].active() {
                live[index] = false;
            }
            for action in pod.handle(at(now), input) {
                if let Action::Run { index, attempt } = action {
                    assert!(!live[index], "{index} runs twice");
                    assert!(attempts[index] < Some(attempt) , "attempt {attempt} of {index} twice");
                    attempts[index] = Some(attempt);
                    live[index] = true;
                    for (i, slot) in pod.slots().iter().enumerate().take(index) {
                        if slot.role == Init && i < index {
                            assert_eq!(slot.state, State::Ended { success: true }, "{i} before {index}");
                        }
                    }
                }
            }
        };
        apply(&mut pod, now, Begin, &mut live);
        for (kind, index, flag, dt) in steps {
            now += dt;
            let attempt = pod.slots().get(index).map_or(0, |s| s.attempt);
            let input = match kind {
                0 | 1 => Started { index },
                2 => Input::Ended { index, success: flag },
                3 => Input::RootfsReady { index, attempt },
                4 if flag && dt == 3 => Input::Stop { grace: Some(at(dt)) },
                5 => Input::PostStarted { index, attempt, success: flag },
                6 => Input::PreStopped { index, attempt },
                7 => Input::StartupPassed { index, attempt },
                8 => Input::Readiness { index, attempt, ready: flag },
                9 => Input::Unhealthy { index, attempt, reason: KillReason::Liveness, grace: flag.then_some(at(dt)) },
                _ => Timer,
            };
            apply(&mut pod, now, input, &mut live);
        }
        now += 1;
        apply(&mut pod, now, Input::Stop { grace: Some(at(1)) }, &mut live);
        for _ in 0..3 {
            now += 100;
            for index in 0..roles.len() {
                apply(&mut pod, now, Started { index }, &mut live);
            }
            apply(&mut pod, now, Timer, &mut live);
            for index in 0..roles.len() {
                apply(&mut pod, now, Input::Ended { index, success: false }, &mut live);
            }
        }
        prop_assert!(pod.finished());
        prop_assert!(live.iter().all(|l| !l));
    }
}
