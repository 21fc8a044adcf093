//! What a pod's machine and surroundings shall be: from the OCI configuration of its sandbox container, or of a container
//! that comes without a pod, or from the CRI's own description of the pod. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::bundle::{OciBundle, Role};
use super::fault::Fault;
use super::guest_spec::POD_NAMESPACES;
use super::pod_sandbox_config::{NODE, PodSandboxConfig};
use super::settings::Settings;
use super::users;
use crate::manifest::plan::DnsPlan;
use crate::manifest::sizing::GUEST_OVERHEAD_BYTES;
use crate::pod::id_ranges::IdRanges;

/// Annotations of containerd's CRI plugin: what the pod's containers may use altogether (CRI, LinuxPodSandboxConfig).
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// sysctls that containerd's CRI plugin gives each pod that has a pause container, from 2.0 on: ports below 1024 and ICMP
/// without capabilities.
const UNPRIVILEGED: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Largest guest, in MiB: what the VMM takes.
const LARGEST_MIB: u64 = 1 << 20;

/// A sandbox as it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxWish {
    /// Host name.
    pub hostname: String,
    /// Network namespace whose interfaces the guest takes over; `None`: there is none but the guest's loopback.
    pub network: Option<PathBuf>,
    /// sysctls, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// Directory of the host that other runtimes would mount at /dev/shm: its size is taken over.
    pub shm: Option<PathBuf>,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_mib: u64,
    /// `linux.cgroupsPath`.
    pub cgroup: Option<String>,
    /// Whether the machine may go on from a template.
    pub template: bool,
    /// Appended to the guest kernel's command line.
    pub kernel_parameters: String,
    /// The ids of the pod's own user namespace; `None`: its users are those of its machine.
    pub users: Option<IdRanges>,
    /// What stands in the pod's `/etc/resolv.conf`, where the files of its `/etc` are the shim's to make.
    pub dns: Option<DnsPlan>,
}

fn text(value: Option<&Value>) -> Option<&str> {
    value?.as_str().filter(|text| !text.is_empty())
}

impl SandboxWish {
    /// What `bundle` asks for where `settings` hold. `host_cpus` bounds the vCPUs: more than the host has help nobody.
    ///
    /// # Errors
    /// A namespace of the host is no pod's.
    pub fn of(bundle: &OciBundle, settings: Settings, host_cpus: u64) -> Result<Self, Fault> {
        let settings = settings
            .heed(|name| bundle.annotation(name))
            .map_err(|error| Fault::invalid(error.to_string()))?;
        let linux = bundle.config.get("linux");
        let namespaces = linux
            .and_then(|linux| linux.get("namespaces"))
            .and_then(Value::as_array);
        let of_kind = |kind| {
            let mut all = namespaces.into_iter().flatten();
            all.find(|namespace| text(namespace.get("type")) == Some(kind))
        };
        for (kind, field) in POD_NAMESPACES {
            if of_kind(kind).is_none() {
                return Err(refused(field));
            }
        }
        let network = of_kind("network").and_then(|network| text(network.get("path")));
        let mounts = bundle.config.get("mounts").and_then(Value::as_array);
        let shm = mounts.into_iter().flatten().find(|mount| {
            text(mount.get("destination")) == Some("/dev/shm")
                && text(mount.get("type")) == Some("bind")
        });
        let sysctls = linux
            .and_then(|linux| linux.get("sysctl"))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        let resources = linux.and_then(|linux| linux.get("resources"));
        let number = |annotation: &str, path: [&str; 2]| -> Option<i64> {
            let told = bundle
                .annotation(annotation)
                .and_then(|text| text.parse().ok());
            let own = || resources?.get(path[0])?.get(path[1])?.as_i64();
            told.filter(|&told| told > 0)
                .or_else(own)
                .filter(|&number| number > 0)
        };
        let limits = Limits {
            memory: number(MEMORY, ["memory", "limit"]),
            quota: number(CPU_QUOTA, ["cpu", "quota"]),
            period: number(CPU_PERIOD, ["cpu", "period"]),
        };
        let (vcpus, memory_mib) = limits.machine(&settings, host_cpus);
        Ok(Self {
            hostname: text(bundle.config.get("hostname"))
                .unwrap_or_default()
                .to_owned(),
            network: network.map(PathBuf::from),
            sysctls: sysctls.collect(),
            shm: shm
                .and_then(|mount| text(mount.get("source")))
                .map(PathBuf::from),
            vcpus,
            memory_mib,
            cgroup: text(linux.and_then(|linux| linux.get("cgroupsPath"))).map(str::to_owned),
            template: settings.template,
            kernel_parameters: settings.kernel_parameters,
            users: match bundle.role {
                // Ids of another form are those of a namespace that the one container has for itself.
                Role::Single => users::of_config(&bundle.config).unwrap_or_default(),
                _ => users::of_config(&bundle.config)?,
            },
            dns: None,
        })
    }

    /// What the CRI's `config` of pod `id` asks for, whose network namespace is at `network`.
    ///
    /// # Errors
    /// A namespace of the host is no pod's.
    pub fn of_pod(
        id: &str,
        config: &PodSandboxConfig,
        network: &str,
        settings: Settings,
        host_cpus: u64,
    ) -> Result<Self, Fault> {
        let settings = settings
            .heed(|name| config.annotations.get(name).map(String::as_str))
            .map_err(|error| Fault::invalid(error.to_string()))?;
        let linux = config.linux.clone().unwrap_or_default();
        let modes = linux
            .security_context
            .and_then(|context| context.namespace_options)
            .unwrap_or_default();
        for (mode, field) in [
            (modes.network, "hostNetwork"),
            (modes.pid, "hostPID"),
            (modes.ipc, "hostIPC"),
        ] {
            if mode == NODE {
                return Err(refused(field));
            }
        }
        let users = users::of_pod(modes.userns_options.as_ref())?;
        let resources = linux.resources.unwrap_or_default();
        let positive = |number: i64| Some(number).filter(|&number| number > 0);
        let limits = Limits {
            memory: positive(resources.memory_limit_in_bytes),
            quota: positive(resources.cpu_quota),
            period: positive(resources.cpu_period),
        };
        let (vcpus, memory_mib) = limits.machine(&settings, host_cpus);
        let dns = config.dns_config.clone().unwrap_or_default();
        let nothing = dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty();
        Ok(Self {
            hostname: config.hostname.clone(),
            network: Some(PathBuf::from(network)).filter(|path| !path.as_os_str().is_empty()),
            sysctls: UNPRIVILEGED
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .chain(linux.sysctls)
                .collect(),
            shm: None,
            vcpus,
            memory_mib,
            cgroup: cgroups_path(&linux.cgroup_parent, id),
            template: settings.template,
            kernel_parameters: settings.kernel_parameters,
            users,
            dns: Some(DnsPlan {
                from_host: nothing,
                nameservers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            }),
        })
    }
}

/// Of a pod that asks for a namespace of the host by `field`.
fn refused(field: &str) -> Fault {
    Fault::precondition(format!(
        "the pod asks for a namespace of the host ({field}), which a machine does not share: it has its own"
    ))
}

/// What the pod's containers may use altogether; positive where there is a limit.
struct Limits {
    /// Bytes.
    memory: Option<i64>,
    /// Microseconds a period.
    quota: Option<i64>,
    /// Microseconds.
    period: Option<i64>,
}

impl Limits {
    /// Virtual CPUs and MiB of the machine for them.
    fn machine(&self, settings: &Settings, host_cpus: u64) -> (u8, u64) {
        let memory = settings
            .own_memory_bytes
            .or_else(|| self.memory.map(i64::unsigned_abs))
            .unwrap_or(settings.memory_bytes)
            .saturating_add(GUEST_OVERHEAD_BYTES);
        let period = self.period.map_or(100_000, i64::unsigned_abs);
        let cpus = settings
            .own_cpus
            .or_else(|| {
                self.quota
                    .map(|quota| quota.unsigned_abs().div_ceil(period))
            })
            .unwrap_or(settings.cpus);
        (
            u8::try_from(cpus.clamp(1, host_cpus.clamp(1, 64))).unwrap_or(64),
            memory.div_ceil(1 << 20).min(LARGEST_MIB),
        )
    }
}

/// `linux.cgroupsPath` of a container `id` below `parent`, in the form of the cgroup driver that `parent` shows: systemd's
/// slices, or paths.
fn cgroups_path(parent: &str, id: &str) -> Option<String> {
    if parent.is_empty() {
        return None;
    }
    let last = parent.trim_end_matches('/').rsplit('/').next()?;
    Some(if last.ends_with(".slice") {
        format!("{last}:cri-containerd:{id}")
    } else {
        format!("{}/{id}", parent.trim_end_matches('/'))
    })
}

/// The directory that `linux.cgroupsPath` means below the unified hierarchy at `hierarchy`: a path, or systemd's
/// `slice:prefix:name`, whose slices are named after all their parents (systemd.slice(5)).
#[must_use]
pub fn cgroup_directory(hierarchy: &Path, path: &str) -> Option<PathBuf> {
    let plain = |path: &str| -> Option<PathBuf> {
        let relative = path.trim_matches('/');
        let fine = !relative.is_empty()
            && relative
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        fine.then(|| PathBuf::from(relative))
    };
    let parts: Vec<&str> = path.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else {
        return plain(path).map(|path| hierarchy.join(path));
    };
    let stem = slice.strip_suffix(".slice")?;
    let mut directory = hierarchy.to_owned();
    let mut so_far = String::new();
    for part in stem.split('-').filter(|part| !part.is_empty()) {
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        directory.push(plain(&format!("{so_far}.slice"))?);
    }
    let scope = if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    if scope.contains('/') {
        return None;
    }
    directory.push(plain(&scope)?);
    Some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish(config: Value) -> Result<SandboxWish, Fault> {
        let bundle = OciBundle {
            path: "/b".into(),
            config: config.as_object().unwrap().clone(),
            role: Role::Sandbox,
        };
        SandboxWish::of(&bundle, Settings::default(), 8)
    }

    fn namespaces() -> Value {
        json!([
            {"type": "network", "path": "/var/run/netns/x"},
            {"type": "pid"},
            {"type": "ipc"},
        ])
    }

    #[test]
    fn size_is_that_of_the_annotations_and_the_overhead() {
        let made = wish(json!({
            "annotations": {MEMORY: "104857600", CPU_QUOTA: "250000", CPU_PERIOD: "100000"},
            "linux": {"namespaces": namespaces()},
        }))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (3, 164));
        let made = wish(json!({
            "annotations": {MEMORY: "0", CPU_QUOTA: "0"},
            "linux": {"namespaces": namespaces(), "resources": {"cpu": {"shares": 2}}},
        }))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (2, 576));
        let made = wish(json!({"linux": {
            "namespaces": namespaces(),
            "resources": {"memory": {"limit": 1 << 30}, "cpu": {"quota": 1_000_000}},
        }}))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (8, 1088));
        let made = wish(json!({
            "annotations": {MEMORY: "9223372036854775807", CPU_PERIOD: "-1"},
            "linux": {"namespaces": namespaces()},
        }))
        .unwrap();
        assert_eq!(made.memory_mib, LARGEST_MIB);
    }

    #[test]
    fn pod_of_the_cri_is_what_its_sandbox_container_would_be() {
        use crate::containerd::pod_sandbox_config as cri;
        let mut config = PodSandboxConfig {
            hostname: "h".into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods.slice/kubepods-x.slice".into(),
                security_context: Some(cri::SecurityContext {
                    namespace_options: Some(cri::NamespaceOption::default()),
                }),
                sysctls: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
                resources: Some(cri::Resources {
                    cpu_period: 100_000,
                    cpu_quota: 250_000,
                    memory_limit_in_bytes: 104_857_600,
                }),
            }),
            ..Default::default()
        };
        let of = |config: &PodSandboxConfig| {
            SandboxWish::of_pod("i", config, "/run/netns/x", Settings::default(), 8)
        };
        let made = of(&config).unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (3, 164));
        assert_eq!((&*made.hostname, made.sysctls.len()), ("h", 3));
        assert_eq!(made.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(made.network.as_deref(), Some(Path::new("/run/netns/x")));
        assert_eq!(
            made.cgroup.as_deref(),
            Some("kubepods-x.slice:cri-containerd:i")
        );
        assert!(made.dns.unwrap().from_host);
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.0.0.10".into()],
            ..Default::default()
        });
        let dns = of(&config).unwrap().dns.unwrap();
        assert_eq!((dns.from_host, &*dns.nameservers[0]), (false, "10.0.0.10"));
        for (field, set) in [
            (
                "hostNetwork",
                cri::NamespaceOption {
                    network: NODE,
                    ..Default::default()
                },
            ),
            (
                "hostPID",
                cri::NamespaceOption {
                    pid: NODE,
                    ..Default::default()
                },
            ),
            (
                "hostIPC",
                cri::NamespaceOption {
                    ipc: NODE,
                    ..Default::default()
                },
            ),
        ] {
            let mut config = config.clone();
            config.linux.as_mut().unwrap().security_context = Some(cri::SecurityContext {
                namespace_options: Some(set),
            });
            assert!(of(&config).unwrap_err().message.contains(field));
        }
        assert_eq!(cgroups_path("/a/b/", "i").as_deref(), Some("/a/b/i"));
        assert_eq!(cgroups_path("", "i"), None);
    }

    #[test]
    fn network_is_the_one_of_the_namespaces_path() {
        let made = wish(json!({
            "hostname": "h",
            "linux": {"namespaces": namespaces(), "sysctl": {"net.core.somaxconn": "7"}, "cgroupsPath": "/a/b"},
            "mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/run/s/shm"}],
        }))
        .unwrap();
        assert_eq!(made.network.as_deref(), Some(Path::new("/var/run/netns/x")));
        assert_eq!(made.hostname, "h");
        assert_eq!(made.sysctls["net.core.somaxconn"], "7");
        assert_eq!(made.shm.as_deref(), Some(Path::new("/run/s/shm")));
        assert_eq!(made.cgroup.as_deref(), Some("/a/b"));
        let made = wish(json!({
            "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "ipc"}]},
        }))
        .unwrap();
        assert_eq!(made.network, None);
    }

    #[test]
    fn sandbox_container_without_a_namespace_of_its_own_is_refused_by_the_pods_field() {
        for (at, field) in ["hostNetwork", "hostPID", "hostIPC"].iter().enumerate() {
            let mut fewer = namespaces();
            fewer.as_array_mut().unwrap().remove(at);
            let fault = wish(json!({"linux": {"namespaces": fewer}})).unwrap_err();
            assert!(fault.message.contains(field), "{fault}");
        }
    }

    #[test]
    fn cgroup_directory_is_a_path_or_systemds_slices() {
        let at = |path| cgroup_directory(Path::new("/c"), path);
        assert_eq!(at("/k8s.io/abc"), Some("/c/k8s.io/abc".into()));
        assert_eq!(
            at("kubepods-burstable-podx.slice:cri-containerd:abc"),
            Some(
                "/c/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-abc.scope"
                    .into()
            )
        );
        assert_eq!(
            at("system.slice::abc"),
            Some("/c/system.slice/abc.scope".into())
        );
        for bad in ["", "/", "/../x", "a//b", "x:y:z", "a.slice:b:../c"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }
}
