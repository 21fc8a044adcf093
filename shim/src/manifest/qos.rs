//! Quality of service of a pod (Kubernetes API, PodStatus.qosClass).

use serde::{Deserialize, Serialize};

use super::plan::{ContainerPlan, PodPlan};

/// How a pod's memory and CPU are promised to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    /// Every container has limits for both, and asks for as much.
    Guaranteed,
    /// Something in between.
    #[default]
    Burstable,
    /// No container asks for anything.
    BestEffort,
}

impl Qos {
    /// The class of a pod; init containers count.
    #[must_use]
    pub fn of(plan: &PodPlan) -> Self {
        let guaranteed = |c: &ContainerPlan| {
            c.limits.cpu_millis == Some(c.requests.cpu_millis)
                && c.limits.memory_bytes == Some(c.requests.memory_bytes)
        };
        let best_effort = |c: &ContainerPlan| {
            c.requests.cpu_millis == 0
                && c.requests.memory_bytes == 0
                && c.limits.cpu_millis.is_none()
                && c.limits.memory_bytes.is_none()
        };
        if plan.all_containers().all(guaranteed) {
            Self::Guaranteed
        } else if plan.all_containers().all(best_effort) {
            Self::BestEffort
        } else {
            Self::Burstable
        }
    }
}
