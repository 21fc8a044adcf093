//! What a pod's machine and surroundings shall be, from the OCI configuration of its sandbox container, or of a container
//! that comes without a pod. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::bundle::OciBundle;
use super::fault::Fault;
use super::settings::Settings;
use crate::manifest::sizing::GUEST_OVERHEAD_BYTES;

/// Annotations of containerd's CRI plugin: what the pod's containers may use altogether (CRI, LinuxPodSandboxConfig).
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

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
}

fn text(value: Option<&Value>) -> Option<&str> {
    value?.as_str().filter(|text| !text.is_empty())
}

impl SandboxWish {
    /// What `bundle` asks for where `settings` hold. `host_cpus` bounds the vCPUs: more than the host has help nobody.
    ///
    /// # Errors
    /// The network of the host is no pod's.
    pub fn of(bundle: &OciBundle, settings: Settings, host_cpus: u64) -> Result<Self, Fault> {
        let settings = settings
            .heed(|name| bundle.annotation(name))
            .map_err(|error| Fault::invalid(error.to_string()))?;
        let linux = bundle.config.get("linux");
        let namespaces = linux
            .and_then(|linux| linux.get("namespaces"))
            .and_then(Value::as_array);
        let network = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| text(namespace.get("type")) == Some("network"));
        let Some(network) = network else {
            return Err(Fault::precondition(
                "the pod asks for the host's network (hostNetwork), which a machine does not share: it has interfaces of its own",
            ));
        };
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
        let memory = settings
            .own_memory_bytes
            .or_else(|| number(MEMORY, ["memory", "limit"]).map(i64::unsigned_abs))
            .unwrap_or(settings.memory_bytes)
            .saturating_add(GUEST_OVERHEAD_BYTES);
        let quota = number(CPU_QUOTA, ["cpu", "quota"]).map(i64::unsigned_abs);
        let period = number(CPU_PERIOD, ["cpu", "period"]).map_or(100_000, i64::unsigned_abs);
        let cpus = settings
            .own_cpus
            .or_else(|| quota.map(|quota| quota.div_ceil(period)))
            .unwrap_or(settings.cpus);
        Ok(Self {
            hostname: text(bundle.config.get("hostname"))
                .unwrap_or_default()
                .to_owned(),
            network: text(network.get("path")).map(PathBuf::from),
            sysctls: sysctls.collect(),
            shm: shm
                .and_then(|mount| text(mount.get("source")))
                .map(PathBuf::from),
            vcpus: u8::try_from(cpus.clamp(1, host_cpus.clamp(1, 64))).unwrap_or(64),
            memory_mib: memory.div_ceil(1 << 20).min(LARGEST_MIB),
            cgroup: text(linux.and_then(|linux| linux.get("cgroupsPath"))).map(str::to_owned),
            template: settings.template,
            kernel_parameters: settings.kernel_parameters,
        })
    }
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
    use crate::containerd::bundle::Role;
    use serde_json::json;

    fn wish(config: Value) -> Result<SandboxWish, Fault> {
        let bundle = OciBundle {
            path: "/b".into(),
            config: config.as_object().unwrap().clone(),
            role: Role::Sandbox,
        };
        SandboxWish::of(&bundle, Settings::default(), 8)
    }

    fn network() -> Value {
        json!([{"type": "network", "path": "/var/run/netns/x"}])
    }

    #[test]
    fn size_is_that_of_the_annotations_and_the_overhead() {
        let made = wish(json!({
            "annotations": {MEMORY: "104857600", CPU_QUOTA: "250000", CPU_PERIOD: "100000"},
            "linux": {"namespaces": network()},
        }))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (3, 164));
        let made = wish(json!({
            "annotations": {MEMORY: "0", CPU_QUOTA: "0"},
            "linux": {"namespaces": network(), "resources": {"cpu": {"shares": 2}}},
        }))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (2, 576));
        let made = wish(json!({"linux": {
            "namespaces": network(),
            "resources": {"memory": {"limit": 1 << 30}, "cpu": {"quota": 1_000_000}},
        }}))
        .unwrap();
        assert_eq!((made.vcpus, made.memory_mib), (8, 1088));
        let made = wish(json!({
            "annotations": {MEMORY: "9223372036854775807", CPU_PERIOD: "-1"},
            "linux": {"namespaces": network()},
        }))
        .unwrap();
        assert_eq!(made.memory_mib, LARGEST_MIB);
    }

    #[test]
    fn network_is_the_namespace_and_the_hosts_is_refused() {
        let made = wish(json!({
            "hostname": "h",
            "linux": {"namespaces": network(), "sysctl": {"net.core.somaxconn": "7"}, "cgroupsPath": "/a/b"},
            "mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/run/s/shm"}],
        }))
        .unwrap();
        assert_eq!(made.network.as_deref(), Some(Path::new("/var/run/netns/x")));
        assert_eq!(made.hostname, "h");
        assert_eq!(made.sysctls["net.core.somaxconn"], "7");
        assert_eq!(made.shm.as_deref(), Some(Path::new("/run/s/shm")));
        assert_eq!(made.cgroup.as_deref(), Some("/a/b"));
        let fault = wish(json!({"linux": {"namespaces": [{"type": "pid"}]}})).unwrap_err();
        assert!(fault.message.contains("hostNetwork"), "{fault}");
        let made = wish(json!({"linux": {"namespaces": [{"type": "network"}]}})).unwrap();
        assert_eq!(made.network, None);
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
