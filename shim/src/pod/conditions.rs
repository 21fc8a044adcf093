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

/// Brings `status.conditions` up to date. A condition keeps its time as long as it does not change.
pub fn refresh(status: &mut PodStatus, now_ns: i64) {
    let made = [
        ("PodReadyToStartContainers", sandbox(status)),
        ("Initialized", initialized(status)),
        ("Ready", ready(status)),
        ("ContainersReady", ready(status)),
        ("PodScheduled", Made::holds()),
    ];
    for (kind, made) in made {
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
}

struct Made {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Made {
    fn holds() -> Self {
        Self {
            holds: true,
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
        Made::fails("", String::new())
    } else {
        Made::holds()
    }
}

fn initialized(status: &PodStatus) -> Made {
    if status.phase == Phase::Succeeded {
        return Made {
            reason: "PodCompleted",
            ..Made::holds()
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
        Made::holds()
    } else {
        Made::fails(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", missing.join(" ")),
        )
    }
}

fn ready(status: &PodStatus) -> Made {
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
        Made::holds()
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
