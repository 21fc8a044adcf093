//! Checks of a Pod with a user namespace of its own (`hostUsers: false`).

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::manifest::problem::Collector;
use crate::pod::id_ranges::IDS;

/// Checks that `spec` asks for nothing that such a pod cannot have.
pub(super) fn users(spec: &PodSpec, collector: &mut Collector<'_>) {
    if spec.host_users != Some(false) {
        return;
    }
    let path = "spec.securityContext";
    if let Some(security) = &spec.security_context {
        for (field, id) in [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
            ("fsGroup", security.fs_group),
        ] {
            check(&format!("{path}.{field}"), id, collector);
        }
        for (i, group) in security.supplemental_groups.iter().flatten().enumerate() {
            check(
                &format!("{path}.supplementalGroups[{i}]"),
                Some(*group),
                collector,
            );
        }
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (section, list) in [("initContainers", init), ("containers", &spec.containers)] {
        for (i, c) in list.iter().enumerate() {
            container(c, &format!("spec.{section}[{i}]"), collector);
        }
    }
}

fn container(c: &Container, path: &str, collector: &mut Collector<'_>) {
    if let Some(security) = &c.security_context {
        for (field, id) in [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
        ] {
            check(&format!("{path}.securityContext.{field}"), id, collector);
        }
    }
    if c.volume_devices
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        collector.add(
            format!("{path}.volumeDevices"),
            "Forbidden: disks belong to root of the pod's machine, which no user of a pod with `hostUsers: false` is",
        );
    }
}

fn check(path: &str, id: Option<i64>, collector: &mut Collector<'_>) {
    if let Some(id) = id
        && id >= i64::from(IDS)
    {
        collector.invalid(
            path,
            id,
            "must be between 0 and 65535, inclusive, where `hostUsers` is false",
        );
    }
}
