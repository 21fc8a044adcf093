//! Checks of one container of a Pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use super::{Seen, ids, name, seccomp};
use crate::manifest::environment::VARIABLE_NAME;
use crate::manifest::names;
use crate::manifest::problem::Collector;
use crate::manifest::quantity;
use crate::manifest::volume_devices;

/// Checks a container; `volumes` are the pod's, `seen` what its other containers have taken.
pub(super) fn container(
    c: &Container,
    path: &str,
    volumes: &BTreeSet<String>,
    seen: &mut Seen,
    collector: &mut Collector<'_>,
) {
    name(&c.name, &format!("{path}.name"), &mut seen.names, collector);
    match c.image.as_deref() {
        None | Some("") => collector.required(format!("{path}.image")),
        Some(image) if image.trim() != image => {
            collector.invalid(
                format!("{path}.image"),
                image,
                "must not have leading or trailing whitespace",
            );
        }
        Some(_) => {}
    }
    if let Some(policy) = &c.image_pull_policy {
        collector.one_of(
            format!("{path}.imagePullPolicy"),
            policy,
            &["Always", "IfNotPresent", "Never"],
        );
    }
    if let Some(policy) = &c.termination_message_policy {
        collector.one_of(
            format!("{path}.terminationMessagePolicy"),
            policy,
            &["File", "FallbackToLogsOnError"],
        );
    }
    for (i, env) in c.env.iter().flatten().enumerate() {
        let field = format!("{path}.env[{i}]");
        if env.name.is_empty() {
            collector.required(format!("{field}.name"));
        } else if !names::environment_variable(&env.name) {
            collector.invalid(format!("{field}.name"), &env.name, VARIABLE_NAME);
        }
        if env.value_from.is_some() && env.value.as_deref().is_some_and(|v| !v.is_empty()) {
            collector.invalid(
                format!("{field}.valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            );
        }
    }
    ports(c, path, seen, collector);
    resources(c, path, collector);
    mounts(c, path, volumes, collector);
    volume_devices::check(c, path, volumes, collector);
    security(c, path, collector);
}

fn ports(c: &Container, path: &str, seen: &mut Seen, collector: &mut Collector<'_>) {
    let mut port_names = BTreeSet::new();
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let field = format!("{path}.ports[{i}]");
        let range = "must be between 1 and 65535, inclusive";
        if !(1..=65535).contains(&port.container_port) {
            collector.invalid(format!("{field}.containerPort"), port.container_port, range);
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            if let Err(why) = names::service_name(name) {
                collector.invalid(format!("{field}.name"), name, why);
            } else if !port_names.insert(name) {
                collector.duplicate(format!("{field}.name"), name);
            }
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        collector.one_of(
            format!("{field}.protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
        );
        let ip = port.host_ip.as_deref().unwrap_or_default();
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            collector.invalid(format!("{field}.hostIP"), ip, "must be a valid IP address");
        }
        if let Some(host_port) = port.host_port.filter(|p| *p != 0) {
            if !(1..=65535).contains(&host_port) {
                collector.invalid(format!("{field}.hostPort"), host_port, range);
            }
            if !seen
                .host_ports
                .insert((ip.to_owned(), host_port, protocol.to_owned()))
            {
                collector.duplicate(format!("{field}.hostPort"), &host_port.to_string());
            }
        }
    }
}

fn resources(c: &Container, path: &str, collector: &mut Collector<'_>) {
    let Some(resources) = &c.resources else {
        return;
    };
    for (kind, map) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        for (resource, value) in map.iter().flatten() {
            let field = format!("{path}.resources.{kind}.{resource}");
            match resource.as_str() {
                "cpu" | "memory" | "ephemeral-storage" => {}
                other if other.starts_with("hugepages-") || other.contains('/') => {
                    collector.add(
                        field.clone(),
                        "Forbidden: this host offers cpu and memory to pods, no extended resources",
                    );
                }
                other => collector.invalid(
                    field.clone(),
                    other,
                    "must be a standard resource for containers",
                ),
            }
            if let Err(why) = quantity::thousandths(&value.0) {
                collector.invalid(field, &value.0, &why.to_string());
            }
        }
    }
    for (resource, request) in resources.requests.iter().flatten() {
        let limit = resources.limits.as_ref().and_then(|l| l.get(resource));
        if let Some(limit) = limit
            && let (Ok(r), Ok(l)) = (
                quantity::thousandths(&request.0),
                quantity::thousandths(&limit.0),
            )
            && r > l
        {
            collector.invalid(
                format!("{path}.resources.requests.{resource}"),
                &request.0,
                &format!(
                    "must be less than or equal to {resource} limit of {}",
                    limit.0
                ),
            );
        }
    }
}

fn mounts(c: &Container, path: &str, volumes: &BTreeSet<String>, collector: &mut Collector<'_>) {
    let mut places = BTreeSet::new();
    let privileged = c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let field = format!("{path}.volumeMounts[{i}]");
        if mount.name.is_empty() {
            collector.required(format!("{field}.name"));
        } else if !volumes.contains(&mount.name) {
            collector.not_found(format!("{field}.name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            collector.required(format!("{field}.mountPath"));
        } else if mount.mount_path.contains(':') {
            collector.invalid(
                format!("{field}.mountPath"),
                &mount.mount_path,
                "must not contain ':'",
            );
        } else if !places.insert(mount.mount_path.clone()) {
            collector.invalid(
                format!("{field}.mountPath"),
                &mount.mount_path,
                "must be unique",
            );
        }
        if let Some(sub) = &mount.sub_path
            && !names::relative_path(sub)
        {
            collector.invalid(
                format!("{field}.subPath"),
                sub,
                "must be a relative path and not contain '..'",
            );
        }
        if mount.sub_path.as_deref().is_some_and(|s| !s.is_empty())
            && mount
                .sub_path_expr
                .as_deref()
                .is_some_and(|s| !s.is_empty())
        {
            collector.invalid(
                format!("{field}.subPathExpr"),
                "",
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        if let Some(recursive) = &mount.recursive_read_only {
            let field = format!("{field}.recursiveReadOnly");
            collector.one_of(&field, recursive, &["Disabled", "Enabled", "IfPossible"]);
            if recursive != "Disabled" && mount.read_only != Some(true) {
                collector.add(
                    &field,
                    "Forbidden: may only be specified when readOnly is true",
                );
            }
            let none = mount.mount_propagation.as_deref().unwrap_or("None") == "None";
            if recursive != "Disabled" && !none {
                collector.add(
                    &field,
                    "Forbidden: may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        if let Some(propagation) = &mount.mount_propagation {
            collector.one_of(
                format!("{field}.mountPropagation"),
                propagation,
                &["Bidirectional", "HostToContainer", "None"],
            );
            if propagation == "Bidirectional" && !privileged {
                collector.add(
                    format!("{field}.mountPropagation"),
                    "Forbidden: Bidirectional mount propagation is available only to privileged containers",
                );
            }
        }
    }
}

fn security(c: &Container, path: &str, collector: &mut Collector<'_>) {
    let Some(security) = &c.security_context else {
        return;
    };
    let path = format!("{path}.securityContext");
    ids(
        &path,
        [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
        ],
        collector,
    );
    if security.allow_privilege_escalation == Some(false) {
        let adds_admin = security
            .capabilities
            .iter()
            .flat_map(|c| c.add.iter().flatten())
            .any(|c| c == "CAP_SYS_ADMIN");
        if security.privileged == Some(true) {
            collector.invalid(
                &path,
                "",
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        } else if adds_admin {
            collector.invalid(&path, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    if let Some(mount) = &security.proc_mount {
        collector.one_of(format!("{path}.procMount"), mount, &["Default", "Unmasked"]);
    }
    if let Some(profile) = &security.seccomp_profile {
        seccomp(profile, &format!("{path}.seccompProfile"), collector);
    }
    for (kind, list) in security
        .capabilities
        .iter()
        .flat_map(|c| [("add", &c.add), ("drop", &c.drop)])
    {
        for (i, capability) in list.iter().flatten().enumerate() {
            if !names::capability(capability) {
                collector.invalid(
                    format!("{path}.capabilities.{kind}[{i}]"),
                    capability,
                    "is no capability that Linux knows (written as NET_ADMIN, or ALL)",
                );
            }
        }
    }
}
