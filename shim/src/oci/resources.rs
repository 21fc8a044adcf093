//! cgroup limits, devices and the OOM score of a container.

use serde_json::{Value, json};

use crate::manifest::plan::{ContainerPlan, PodPlan};
use crate::manifest::qos::Qos;

/// Length of a CPU bandwidth period in microseconds: Kubernetes' and the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// cgroup v1 shares of one CPU, the unit in which OCI expresses weight.
const SHARES_PER_CPU: u64 = 1024;

/// Kubernetes' smallest CPU limit is a hundredth of a CPU; the kernel's smallest quota is a millisecond.
const MIN_QUOTA_US: u64 = 1000;

/// The `linux.resources` object.
pub(super) fn resources(container: &ContainerPlan) -> Value {
    let shares =
        (container.requests.cpu_millis.saturating_mul(SHARES_PER_CPU) / 1000).clamp(2, 262_144);
    let mut cpu = json!({ "shares": shares });
    if let (Some(limit), Some(cpu)) = (container.limits.cpu_millis, cpu.as_object_mut()) {
        let quota = limit.saturating_mul(CPU_PERIOD_US / 1000).max(MIN_QUOTA_US);
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(CPU_PERIOD_US));
    }
    let mut resources = json!({ "cpu": cpu, "devices": device_rules(container) });
    if let (Some(limit), Some(resources)) =
        (container.limits.memory_bytes, resources.as_object_mut())
    {
        resources.insert("memory".into(), json!({ "limit": limit }));
    }
    resources
}

/// Device access: everything in the guest for privileged containers, else runc's default set.
fn device_rules(container: &ContainerPlan) -> Value {
    if container.security.privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let character = |major: i64, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": access });
        if let (Some(minor), Some(rule)) = (minor, rule.as_object_mut()) {
            rule.insert("minor".into(), json!(minor));
        }
        rule
    };
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
        character(1, Some(3), "rwm"),
        character(1, Some(5), "rwm"),
        character(1, Some(7), "rwm"),
        character(1, Some(8), "rwm"),
        character(1, Some(9), "rwm"),
        character(5, Some(0), "rwm"),
        character(5, Some(2), "rwm"),
        character(136, None, "rwm"),
    ])
}

/// Devices of the guest that a privileged container finds in `/dev` beside the default ones.
pub(super) fn devices(container: &ContainerPlan) -> Value {
    if !container.security.privileged {
        return json!([]);
    }
    let node = |path: &str, kind: &str, major: i64, minor: i64| json!({ "path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o660, "uid": 0, "gid": 0 });
    let mut list = vec![
        node("/dev/kmsg", "c", 1, 11),
        node("/dev/fuse", "c", 10, 229),
        node("/dev/net/tun", "c", 10, 200),
        node("/dev/loop-control", "c", 10, 237),
    ];
    list.extend((0..8).map(|i| node(&format!("/dev/loop{i}"), "b", 7, i)));
    Value::Array(list)
}

/// Kubernetes' score by quality of service: guaranteed pods are killed last, best-effort pods first, the others by how
/// little of the machine they asked for.
pub(super) fn oom_score_adj(plan: &PodPlan, container: &ContainerPlan) -> i64 {
    match Qos::of(plan) {
        Qos::Guaranteed => return -997,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    let machine = plan.memory_mib.saturating_mul(1 << 20).max(1);
    let share = container.requests.memory_bytes.saturating_mul(1000) / machine;
    i64::try_from(1000_u64.saturating_sub(share))
        .unwrap_or(1000)
        .clamp(3, 999)
}
