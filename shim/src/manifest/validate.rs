//! Checks of a Pod that the Kubernetes API server makes, with its words (`Required value`, `Invalid value`, ...).

mod care;
mod container;
mod dns;
mod metadata;
mod users;

pub(super) use metadata::metadata;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSpec, SeccompProfile, Volume};

use self::container::container;
use super::names;
use super::problem::Collector;
use super::quantity;

/// Checks names, references and ranges of `spec`.
pub(super) fn spec(spec: &PodSpec, collector: &mut Collector<'_>) {
    if spec.containers.is_empty() {
        collector.required("spec.containers");
    }
    pod_fields(spec, collector);
    users::users(spec, collector);
    let volumes = volumes(spec.volumes.as_deref().unwrap_or_default(), collector);
    let mut seen = Seen::default();
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{i}]");
        if let Some(policy) = &c.restart_policy {
            collector.one_of(format!("{path}.restartPolicy"), policy, &["Always"]);
        }
        container(c, &path, &volumes, &mut seen, collector);
        care::care(c, &path, c.restart_policy.is_none(), spec, collector);
    }
    for (i, c) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{i}]");
        if c.restart_policy.is_some() {
            collector.add(
                format!("{path}.restartPolicy"),
                "Forbidden: only init containers (sidecars) have a restart policy of their own here",
            );
        }
        container(c, &path, &volumes, &mut seen, collector);
        care::care(c, &path, false, spec, collector);
    }
}

#[derive(Default)]
struct Seen {
    names: BTreeSet<String>,
    host_ports: BTreeSet<(String, i32, String)>,
}

fn pod_fields(spec: &PodSpec, collector: &mut Collector<'_>) {
    if let Some(policy) = &spec.restart_policy {
        collector.one_of(
            "spec.restartPolicy",
            policy,
            &["Always", "OnFailure", "Never"],
        );
    }
    if let Some(os) = &spec.os {
        collector.one_of("spec.os.name", &os.name, &["linux"]);
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        collector.invalid(
            "spec.activeDeadlineSeconds",
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    if let Some(seconds) = spec.termination_grace_period_seconds
        && !(0..=i64::from(i32::MAX)).contains(&seconds)
    {
        collector.invalid(
            "spec.terminationGracePeriodSeconds",
            seconds,
            "must be between 0 and 2147483647, inclusive",
        );
    }
    for (path, name) in [
        ("spec.hostname", &spec.hostname),
        ("spec.subdomain", &spec.subdomain),
    ] {
        if let Some(name) = name
            && let Err(why) = names::dns_label(name)
        {
            collector.invalid(path, name, why);
        }
    }
    if let Some(name) = &spec.hostname_override
        && let Err(why) = names::dns_subdomain(name)
    {
        collector.invalid("spec.hostnameOverride", name, why);
    }
    dns::dns(spec, collector);
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        if let Err(why) = names::qualified(&gate.condition_type) {
            let path = format!("spec.readinessGates[{i}].conditionType");
            collector.invalid(path, &gate.condition_type, why);
        }
    }
    metadata::labels(&spec.node_selector, "spec.nodeSelector", collector);
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if alias.ip.parse::<std::net::IpAddr>().is_err() {
            collector.invalid(
                format!("spec.hostAliases[{i}].ip"),
                &alias.ip,
                "must be a valid IP address",
            );
        }
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            if let Err(why) = names::dns_subdomain(name) {
                collector.invalid(format!("spec.hostAliases[{i}].hostnames[{j}]"), name, why);
            }
        }
    }
    let Some(security) = &spec.security_context else {
        return;
    };
    let path = "spec.securityContext";
    ids(
        path,
        [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
            ("fsGroup", security.fs_group),
        ],
        collector,
    );
    for (i, group) in security.supplemental_groups.iter().flatten().enumerate() {
        if i32::try_from(*group).is_err() || *group < 0 {
            collector.invalid(
                format!("{path}.supplementalGroups[{i}]"),
                group,
                "must be between 0 and 2147483647, inclusive",
            );
        }
    }
    if let Some(policy) = &security.supplemental_groups_policy {
        collector.one_of(
            format!("{path}.supplementalGroupsPolicy"),
            policy,
            &["Merge", "Strict"],
        );
    }
    if let Some(policy) = &security.fs_group_change_policy {
        collector.one_of(
            format!("{path}.fsGroupChangePolicy"),
            policy,
            &["OnRootMismatch", "Always"],
        );
    }
    let mut sysctls = BTreeSet::new();
    for (i, sysctl) in security.sysctls.iter().flatten().enumerate() {
        let field = format!("{path}.sysctls[{i}].name");
        if sysctl.name.is_empty() {
            collector.required(field);
        } else if !names::sysctl(&sysctl.name) {
            collector.invalid(
                field,
                &sysctl.name,
                "must be a sysctl name such as net.core.somaxconn",
            );
        } else if !sysctls.insert(sysctl.name.replace('/', ".")) {
            collector.duplicate(field, &sysctl.name);
        }
    }
    if let Some(profile) = &security.seccomp_profile {
        seccomp(profile, &format!("{path}.seccompProfile"), collector);
    }
}

fn ids<const N: usize>(
    path: &str,
    fields: [(&str, Option<i64>); N],
    collector: &mut Collector<'_>,
) {
    for (field, value) in fields {
        if let Some(value) = value
            && (value < 0 || i32::try_from(value).is_err())
        {
            collector.invalid(
                format!("{path}.{field}"),
                value,
                "must be between 0 and 2147483647, inclusive",
            );
        }
    }
}

fn seccomp(profile: &SeccompProfile, path: &str, collector: &mut Collector<'_>) {
    collector.one_of(
        format!("{path}.type"),
        &profile.type_,
        &["Localhost", "RuntimeDefault", "Unconfined"],
    );
    match (&profile.localhost_profile, profile.type_ == "Localhost") {
        (None, true) => collector.required(format!("{path}.localhostProfile")),
        (Some(file), true) if file.is_empty() || !names::relative_path(file) => {
            collector.invalid(
                format!("{path}.localhostProfile"),
                file,
                "must be a relative path and not contain '..'",
            );
        }
        (Some(file), false) => {
            collector.invalid(
                format!("{path}.localhostProfile"),
                file,
                "can only be set when seccomp type is Localhost",
            );
        }
        _ => {}
    }
}

fn volumes(volumes: &[Volume], collector: &mut Collector<'_>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{i}]");
        name(&volume.name, &format!("{path}.name"), &mut seen, collector);
        let fields = serde_json::to_value(volume).unwrap_or_default();
        let fields = fields.as_object().into_iter().flatten();
        let mut types = fields.map(|(field, _)| field).filter(|f| *f != "name");
        if types.next().is_none() {
            collector.add(path.clone(), "Required value: must specify a volume type");
        }
        for further in types {
            collector.add(
                format!("{path}.{further}"),
                "Forbidden: may not specify more than 1 volume type",
            );
        }
        if let Some(host) = &volume.host_path {
            let field = format!("{path}.hostPath");
            if host.path.is_empty() {
                collector.required(format!("{field}.path"));
            } else if !host.path.starts_with('/') {
                collector.invalid(
                    format!("{field}.path"),
                    &host.path,
                    "must be an absolute path",
                );
            } else if host.path.split('/').any(|part| part == "..") {
                collector.invalid(format!("{field}.path"), &host.path, "must not contain '..'");
            }
            if let Some(type_) = host.type_.as_deref().filter(|t| !t.is_empty()) {
                let supported = [
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ];
                collector.one_of(format!("{field}.type"), type_, &supported);
            }
        }
        if let Some(empty) = &volume.empty_dir {
            if let Some(medium) = &empty.medium {
                collector.one_of(format!("{path}.emptyDir.medium"), medium, &["", "Memory"]);
            }
            if let Some(limit) = &empty.size_limit
                && let Err(why) = quantity::units(&limit.0)
            {
                collector.invalid(
                    format!("{path}.emptyDir.sizeLimit"),
                    &limit.0,
                    &why.to_string(),
                );
            }
        }
        if let Some(image) = &volume.image {
            if image.reference.as_deref().unwrap_or_default().is_empty() {
                collector.required(format!("{path}.image.reference"));
            }
            if let Some(policy) = &image.pull_policy {
                collector.one_of(
                    format!("{path}.image.pullPolicy"),
                    policy,
                    &["Always", "IfNotPresent", "Never"],
                );
            }
        }
    }
    seen
}

fn name(name: &str, path: &str, seen: &mut BTreeSet<String>, collector: &mut Collector<'_>) {
    if name.is_empty() {
        collector.required(path);
    } else if let Err(why) = names::dns_label(name) {
        collector.invalid(path, name, why);
    } else if !seen.insert(name.to_owned()) {
        collector.duplicate(path, name);
    }
}
