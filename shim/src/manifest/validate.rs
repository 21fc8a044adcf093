//! Checks of a Pod that the Kubernetes API server makes, with its words (`Required value`, `Invalid value`, ...).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile, Volume};

use super::names;
use super::problem::Collector;
use super::quantity;

/// Checks names, references and ranges of `spec`.
pub(super) fn spec(spec: &PodSpec, collector: &mut Collector<'_>) {
    if spec.containers.is_empty() {
        collector.required("spec.containers");
    }
    pod_fields(spec, collector);
    let volumes = volumes(spec.volumes.as_deref().unwrap_or_default(), collector);
    let mut seen = Seen::default();
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{i}]");
        if let Some(policy) = &c.restart_policy {
            collector.one_of(format!("{path}.restartPolicy"), policy, &["Always"]);
        }
        container(c, &path, &volumes, &mut seen, collector);
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
    if let Some(policy) = &spec.dns_policy {
        let supported = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
        collector.one_of("spec.dnsPolicy", policy, &supported);
        let servers = spec
            .dns_config
            .as_ref()
            .and_then(|d| d.nameservers.as_ref());
        if policy == "None" && servers.is_none_or(Vec::is_empty) {
            collector.add(
                "spec.dnsConfig.nameservers",
                "Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    for (i, server) in spec
        .dns_config
        .iter()
        .flat_map(|d| d.nameservers.iter().flatten())
        .enumerate()
    {
        if server.parse::<std::net::IpAddr>().is_err() {
            collector.invalid(
                format!("spec.dnsConfig.nameservers[{i}]"),
                server,
                "must be a valid IP address",
            );
        }
    }
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
    for (i, sysctl) in security.sysctls.iter().flatten().enumerate() {
        if !names::sysctl(&sysctl.name) {
            collector.invalid(
                format!("{path}.sysctls[{i}].name"),
                &sysctl.name,
                "must be a sysctl name such as net.core.somaxconn",
            );
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
        let sources = serde_json::to_value(volume)
            .ok()
            .and_then(|v| {
                v.as_object()
                    .map(|o| o.len() - usize::from(o.contains_key("name")))
            })
            .unwrap_or(0);
        match sources {
            0 => collector.add(path.clone(), "Required value: must specify a volume type"),
            1 => {}
            _ => collector.add(
                path.clone(),
                "Forbidden: may not specify more than 1 volume type",
            ),
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
        if let Some(map) = &volume.config_map
            && map.name.is_empty()
        {
            collector.required(format!("{path}.configMap.name"));
        }
        if let Some(secret) = &volume.secret
            && secret.secret_name.as_deref().unwrap_or_default().is_empty()
        {
            collector.required(format!("{path}.secret.secretName"));
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

fn container(
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
            collector.invalid(
                format!("{field}.name"),
                &env.name,
                "must be printable ASCII characters other than '='",
            );
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
    security(c, path, collector);
}

fn ports(c: &Container, path: &str, seen: &mut Seen, collector: &mut Collector<'_>) {
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let field = format!("{path}.ports[{i}]");
        let range = "must be between 1 and 65535, inclusive";
        if !(1..=65535).contains(&port.container_port) {
            collector.invalid(format!("{field}.containerPort"), port.container_port, range);
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
