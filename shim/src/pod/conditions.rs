//! Conditions of a pod (Kubernetes API, PodCondition), made from its status in the kubelet's words. Pure.

use serde::{Deserialize, Serialize};

use super::status::{ContainerState, ContainerStatus, Phase, PodStatus};

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `type`.
    pub kind: String,
    /// `status`.
    pub holds: bool,
    /// `reason`; empty: none.
    pub reason: String,
    /// `message`; empty: none.
    pub message: String,
    /// `lastTransitionTime`, nanoseconds.
    pub since_ns: i64,
}

/// Those that vmpod makes itself.
const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Whether a condition of that type is made by vmpod, so that nobody else may set it.
#[must_use]
pub fn is_own(kind: &str) -> bool {
    OWN.contains(&kind)
}

/// Takes over a condition that somebody else has set; one of vmpod's own stays as it is.
pub fn set(status: &mut PodStatus, kind: &str, holds: bool, now_ns: i64) {
    if is_own(kind) {
        return;
    }
    put(status, kind, Made::plain(holds), now_ns);
    refresh(status, now_ns);
}

/// Brings `status.conditions` up to date. A condition keeps its time as long as it does not change.
pub fn refresh(status: &mut PodStatus, now_ns: i64) {
    let made = [
        sandbox(status),
        initialized(status),
        ready(status),
        containers_ready(status),
        Made::plain(true),
    ];
    for (kind, made) in OWN.into_iter().zip(made) {
        put(status, kind, made, now_ns);
    }
}

fn put(status: &mut PodStatus, kind: &str, made: Made, now_ns: i64) {
    let old = status.conditions.iter_mut().find(|c| c.kind == kind);
    let since_ns = match &old {
        Some(old) if old.holds == made.holds => old.since_ns,
        // It was there before anything else.
        None if kind == "PodScheduled" => status.created_at_ns,
        _ => now_ns,
    };
    let new = Condition {
        kind: kind.to_owned(),
        holds: made.holds,
        reason: made.reason.to_owned(),
        message: made.message,
        since_ns,
    };
    match old {
        Some(old) => *old = new,
        None => status.conditions.push(new),
    }
}

struct Made {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Made {
    fn plain(holds: bool) -> Self {
        Self {
            holds,
            reason: "",
            message: String::new(),
        }
    }

    fn fails(reason: &'static str, message: String) -> Self {
        Self {
            holds: false,
            reason,
            message,
        }
    }
}

/// The machine with the pod's network is there.
fn sandbox(status: &PodStatus) -> Made {
    if status.phase == Phase::Preparing || status.phase.is_final() {
        Made::plain(false)
    } else {
        Made::plain(true)
    }
}

fn initialized(status: &PodStatus) -> Made {
    if status.phase == Phase::Succeeded {
        return Made {
            reason: "PodCompleted",
            ..Made::plain(true)
        };
    }
    // Once the main containers have begun, it stays so whatever becomes of a sidecar.
    let begun = status
        .containers
        .iter()
        .any(|c| c.state != ContainerState::Waiting || c.restart_count > 0);
    let missing: Vec<&str> = status
        .init_containers
        .iter()
        .filter(|c| {
            if c.sidecar {
                !c.started
            } else {
                c.exit.as_ref().is_none_or(|exit| exit.code != 0)
            }
        })
        .map(|c| c.name.as_str())
        .collect();
    if begun || missing.is_empty() {
        Made::plain(true)
    } else {
        Made::fails(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", missing.join(" ")),
        )
    }
}

/// The containers are, and every readiness gate holds.
fn ready(status: &PodStatus) -> Made {
    let containers = containers_ready(status);
    if !containers.holds {
        return containers;
    }
    let closed: Vec<String> = status
        .readiness_gates
        .iter()
        .filter_map(|gate| {
            let condition = status.conditions.iter().find(|c| c.kind == *gate);
            match condition {
                Some(condition) if condition.holds => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate {gate:?} is not \"True\", but False"
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate {gate:?} does not exist."
                )),
            }
        })
        .collect();
    if closed.is_empty() {
        containers
    } else {
        Made::fails("ReadinessGatesNotReady", closed.join(", "))
    }
}

fn containers_ready(status: &PodStatus) -> Made {
    match status.phase {
        Phase::Succeeded => return Made::fails("PodCompleted", String::new()),
        Phase::Failed => return Made::fails("PodFailed", String::new()),
        Phase::Preparing | Phase::Pending | Phase::Running => {}
    }
    let unready: Vec<&str> = status
        .init_containers
        .iter()
        .filter(|c| c.sidecar)
        .chain(&status.containers)
        .filter(|c: &&ContainerStatus| !c.ready)
        .map(|c| c.name.as_str())
        .collect();
    if unready.is_empty() {
        Made::plain(true)
    } else {
        Made::fails(
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::example::running;
    use super::*;

    fn find<'s>(status: &'s PodStatus, kind: &str) -> &'s Condition {
        status.conditions.iter().find(|c| c.kind == kind).unwrap()
    }

    #[test]
    fn conditions_of_a_running_pod_hold_and_change_with_readiness() {
        let mut status = running();
        refresh(&mut status, 100);
        assert_eq!(status.conditions.len(), 5);
        assert!(status.conditions.iter().all(|c| c.holds), "{status:?}");
        assert_eq!(find(&status, "PodScheduled").since_ns, 1);
        status.containers[1].ready = false;
        refresh(&mut status, 200);
        let ready = find(&status, "Ready");
        assert_eq!(
            (ready.holds, ready.reason.as_str(), ready.since_ns),
            (false, "ContainersNotReady", 200)
        );
        assert_eq!(ready.message, "containers with unready status: [b]");
        assert_eq!(find(&status, "Initialized").since_ns, 100);
        refresh(&mut status, 300);
        assert_eq!(find(&status, "Ready").since_ns, 200, "no change");
    }

    #[test]
    fn readiness_waits_for_the_gates_and_the_containers_for_none() {
        let mut status = running();
        status.readiness_gates = vec!["a.example/fed".into(), "b.example/shod".into()];
        refresh(&mut status, 100);
        assert!(find(&status, "ContainersReady").holds);
        set(&mut status, "a.example/fed", false, 110);
        let ready = find(&status, "Ready");
        assert_eq!((ready.holds, ready.since_ns), (false, 100));
        assert_eq!(ready.reason, "ReadinessGatesNotReady");
        assert_eq!(
            ready.message,
            "the status of pod readiness gate \"a.example/fed\" is not \"True\", but False, \
             corresponding condition of pod readiness gate \"b.example/shod\" does not exist."
        );
        set(&mut status, "a.example/fed", true, 120);
        set(&mut status, "b.example/shod", true, 130);
        let ready = find(&status, "Ready");
        assert_eq!((ready.holds, ready.since_ns), (true, 130));
        set(&mut status, "Ready", false, 140);
        assert!(find(&status, "Ready").holds, "it is vmpod's own");
    }

    #[test]
    fn conditions_before_the_main_containers_name_what_is_missing() {
        let mut status = running();
        status.init_containers = vec![status.containers[0].clone()];
        status.init_containers[0].name = "i".into();
        for container in &mut status.containers {
            container.state = ContainerState::Waiting;
            container.ready = false;
        }
        status.phase = Phase::Pending;
        refresh(&mut status, 1);
        let initialized = find(&status, "Initialized");
        assert_eq!(initialized.reason, "ContainersNotInitialized");
        assert_eq!(
            initialized.message,
            "containers with incomplete status: [i]"
        );
        assert!(find(&status, "PodReadyToStartContainers").holds);
        // A sidecar need not end for the others to begin.
        status.init_containers[0].sidecar = true;
        refresh(&mut status, 2);
        assert!(find(&status, "Initialized").holds);
    }

    #[test]
    fn conditions_of_pods_that_have_ended_say_how() {
        let mut status = running();
        status.phase = Phase::Succeeded;
        refresh(&mut status, 1);
        assert_eq!(find(&status, "Ready").reason, "PodCompleted");
        assert!(find(&status, "Initialized").holds);
        status.phase = Phase::Failed;
        refresh(&mut status, 2);
        assert_eq!(find(&status, "ContainersReady").reason, "PodFailed");
        assert!(!find(&status, "PodReadyToStartContainers").holds);
    }
}
