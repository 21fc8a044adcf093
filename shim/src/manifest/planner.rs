//! A Pod object to a plan: validation, defaults, references, size.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile, SecurityContext};

use super::documents::Objects;
use super::environment::{Sources, environment};
use super::host_names::HostNames;
use super::plan::{
    ContainerPlan, DnsPlan, HostPort, Limits, MountPlan, PodPlan, Propagation, Protocol,
    PullPolicy, Resources, RestartPolicy, SeccompPlan, SecurityPlan,
};
use super::problem::{Collector, Problems};
use super::sizing::machine_size;
use super::source::Document;
use super::volumes::Surroundings;
use super::{care, names, pull_secrets, quantity, support, validate, volume_devices, volumes};

/// Grace of pods that set none (Kubernetes API, PodSpec).
const DEFAULT_GRACE_SECONDS: u32 = 30;

/// What a plan takes from the host it is made for.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// CPUs of the host.
    pub cpus: u64,
    /// Name of the host: `spec.nodeName`.
    pub node_name: String,
    /// A fresh UUID, for a pod without `metadata.uid`.
    pub uid: String,
}

/// Makes the plan of one pod of `objects`.
///
/// # Errors
/// Everything that is wrong with the pod, at once.
pub fn plan(
    pod: &Pod,
    document: &Document,
    objects: &Objects,
    host: &HostFacts,
    file: &str,
) -> Result<PodPlan, Problems> {
    let mut collector = Collector::new(document);
    let mut notes = support::check(&document.value, &mut collector);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        collector.required("metadata.name");
    } else if let Err(why) = names::dns_subdomain(name) {
        collector.invalid("metadata.name", name, why);
    }
    validate::metadata(&pod.metadata, &mut collector);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Err(why) = names::dns_label(namespace) {
        collector.invalid("metadata.namespace", namespace, why);
    }
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    if pod.spec.is_none() {
        collector.required("spec");
    } else {
        validate::spec(spec, &mut collector);
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or(&host.uid);
    if !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        || uid.is_empty()
        || uid.len() > 64
    {
        collector.invalid(
            "metadata.uid",
            uid,
            "must be at most 64 letters, digits and '-'",
        );
    }
    let sources = Sources {
        pod,
        objects,
        node_name: &host.node_name,
        uid,
        namespace,
    };
    let mut containers = |list: &[Container], section: &str| -> Vec<ContainerPlan> {
        list.iter()
            .enumerate()
            .map(|(i, c)| {
                container(
                    c,
                    spec,
                    &format!("spec.{section}[{i}]"),
                    &sources,
                    &mut collector,
                )
            })
            .collect()
    };
    let init_containers = containers(
        spec.init_containers.as_deref().unwrap_or_default(),
        "initContainers",
    );
    let containers = containers(&spec.containers, "containers");
    let size = machine_size(&init_containers, &containers, host.cpus);
    let all: Vec<&ContainerPlan> = init_containers.iter().chain(&containers).collect();
    let around = Surroundings {
        objects,
        sources,
        containers: &all,
        size,
    };
    let volumes = volumes::volumes(spec, &around, &mut collector);
    let names = HostNames::of(spec, name, namespace, &mut collector);
    let pull_secrets = pull_secrets::pull_secrets(spec, objects, &mut notes, &mut collector);
    if !collector.problems.is_empty() {
        let mut problems = collector.problems;
        problems.sort_by_key(|p| p.line);
        return Err(Problems {
            file: file.to_owned(),
            problems,
        });
    }
    Ok(PodPlan {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: uid.to_owned(),
        hostname: names.hostname,
        host_names: names.in_hosts,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        requests: size.requests,
        restart_policy: match spec.restart_policy.as_deref() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        },
        share_process_namespace: spec.share_process_namespace == Some(true),
        user_namespace: spec.host_users == Some(false),
        termination_grace_seconds: spec
            .termination_grace_period_seconds
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(DEFAULT_GRACE_SECONDS),
        active_deadline_seconds: spec
            .active_deadline_seconds
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(0),
        sysctls: spec
            .security_context
            .iter()
            .flat_map(|s| s.sysctls.iter().flatten())
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        dns: dns(spec),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|a| (a.ip.clone(), a.hostnames.clone().unwrap_or_default()))
            .collect(),
        readiness_gates: spec
            .readiness_gates
            .iter()
            .flatten()
            .map(|gate| gate.condition_type.clone())
            .collect(),
        volumes,
        host_ports: host_ports(spec),
        init_containers,
        containers,
        pull_secrets,
        notes,
        object: object(pod, namespace, uid, &host.node_name),
    })
}

/// The Pod with the defaults that an API server fills in and `kubectl` shows.
fn object(pod: &Pod, namespace: &str, uid: &str, node_name: &str) -> serde_json::Value {
    let mut pod = pod.clone();
    pod.metadata.namespace = Some(namespace.to_owned());
    pod.metadata.uid = Some(uid.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.restart_policy.get_or_insert_with(|| "Always".into());
        spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
        spec.termination_grace_period_seconds
            .get_or_insert(i64::from(DEFAULT_GRACE_SECONDS));
        spec.node_name.get_or_insert_with(|| node_name.to_owned());
    }
    // A typed object is always written again.
    serde_json::to_value(&pod).unwrap_or_default()
}

fn dns(spec: &PodSpec) -> DnsPlan {
    let config = spec.dns_config.clone().unwrap_or_default();
    DnsPlan {
        from_host: spec.dns_policy.as_deref() != Some("None"),
        nameservers: config.nameservers.unwrap_or_default(),
        searches: config.searches.unwrap_or_default(),
        options: config
            .options
            .unwrap_or_default()
            .into_iter()
            .filter_map(|o| {
                let name = o.name?;
                Some(
                    o.value
                        .map_or(name.clone(), |value| format!("{name}:{value}")),
                )
            })
            .collect(),
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(port.host_port?).ok().filter(|p| *p != 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

fn container(
    c: &Container,
    spec: &PodSpec,
    path: &str,
    sources: &Sources<'_>,
    collector: &mut Collector<'_>,
) -> ContainerPlan {
    let (requests, limits) = resources(c);
    ContainerPlan {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        image_pull_policy: pull_policy(c.image_pull_policy.as_deref()),
        sidecar: c.restart_policy.as_deref() == Some("Always"),
        command: c.command.clone().filter(|c| !c.is_empty()),
        args: c.args.clone().filter(|a| !a.is_empty()),
        env: environment(c, path, (requests, limits), sources, collector),
        working_dir: c.working_dir.clone().filter(|d| !d.is_empty()),
        tty: c.tty == Some(true),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        termination_message_path: c
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".into()),
        message_from_logs: c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        stop_signal: stop_signal(c),
        care: care::care(c),
        mounts: mounts(c),
        devices: volume_devices::devices(c, spec, path, collector),
        requests,
        limits,
        security: security(c.security_context.as_ref(), spec),
    }
}

pub(super) fn pull_policy(policy: Option<&str>) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// 0: the image's, or SIGTERM.
fn stop_signal(c: &Container) -> u32 {
    c.lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .and_then(crate::oci::signal_number)
        .unwrap_or(0)
}

fn resources(c: &Container) -> (Resources, Limits) {
    let amount =
        |map: fn(&k8s_openapi::api::core::v1::ResourceRequirements) -> Option<&BTreeMap<_, _>>,
         name: &str| {
            let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity =
                c.resources.as_ref().and_then(map)?.get(name)?;
            if name == "cpu" {
                quantity::thousandths(&quantity.0).ok()
            } else {
                quantity::units(&quantity.0).ok()
            }
        };
    let limit = |name| amount(|r| r.limits.as_ref(), name);
    let request = |name| amount(|r| r.requests.as_ref(), name);
    let limits = Limits {
        cpu_millis: limit("cpu").filter(|v| *v > 0),
        memory_bytes: limit("memory").filter(|v| *v > 0),
    };
    let requests = Resources {
        cpu_millis: request("cpu").or(limits.cpu_millis).unwrap_or(0),
        memory_bytes: request("memory").or(limits.memory_bytes).unwrap_or(0),
    };
    (requests, limits)
}

fn mounts(c: &Container) -> Vec<MountPlan> {
    c.volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let expression = m.sub_path_expr.clone().filter(|e| !e.is_empty());
            MountPlan {
                volume: m.name.clone(),
                // A relative mount path is below the root (containerd and CRI-O make it absolute).
                mount_path: format!("/{}", m.mount_path.trim_start_matches('/')),
                expand_sub_path: expression.is_some(),
                sub_path: expression
                    .or_else(|| m.sub_path.clone())
                    .unwrap_or_default(),
                read_only: m.read_only == Some(true),
                recursive_read_only: matches!(
                    m.recursive_read_only.as_deref(),
                    Some("Enabled" | "IfPossible")
                ),
                propagation: match m.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
            }
        })
        .collect()
}

fn security(own: Option<&SecurityContext>, spec: &PodSpec) -> SecurityPlan {
    let empty = SecurityContext::default();
    let own = own.unwrap_or(&empty);
    let pod = spec.security_context.clone().unwrap_or_default();
    let id = |own: Option<i64>, pod: Option<i64>| own.or(pod).and_then(|v| u32::try_from(v).ok());
    let capabilities = |list: Option<&Vec<String>>| {
        list.into_iter()
            .flatten()
            .map(|c| names::normal_capability(c))
            .collect::<Vec<_>>()
    };
    let privileged = own.privileged == Some(true);
    let mut groups: Vec<u32> = pod
        .supplemental_groups
        .iter()
        .flatten()
        .chain(pod.fs_group.iter())
        .filter_map(|g| u32::try_from(*g).ok())
        .collect();
    groups.dedup();
    SecurityPlan {
        run_as_user: id(own.run_as_user, pod.run_as_user),
        run_as_group: id(own.run_as_group, pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root) == Some(true),
        supplemental_groups: groups,
        merge_image_groups: pod.supplemental_groups_policy.as_deref() != Some("Strict"),
        privileged,
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        add_capabilities: capabilities(own.capabilities.as_ref().and_then(|c| c.add.as_ref())),
        drop_capabilities: capabilities(own.capabilities.as_ref().and_then(|c| c.drop.as_ref())),
        seccomp: if privileged {
            SeccompPlan::Unconfined
        } else {
            seccomp(
                own.seccomp_profile
                    .as_ref()
                    .or(pod.seccomp_profile.as_ref()),
            )
        },
        unmasked_proc: privileged || own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

fn seccomp(profile: Option<&SeccompProfile>) -> SeccompPlan {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => SeccompPlan::RuntimeDefault,
        Some(("Localhost", Some(file))) => SeccompPlan::Localhost(file.into()),
        _ => SeccompPlan::Unconfined,
    }
}

#[cfg(test)]
pub(super) mod tests;
