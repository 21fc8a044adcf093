//! What a Pod asks of the host, with every default filled in: plain data, no Kubernetes types, no I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::care::CarePlan;

/// A validated pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPlan {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`; `default` when absent.
    pub namespace: String,
    /// `metadata.uid`; made by the planner when absent.
    pub uid: String,
    /// `spec.hostname`, else the name cut to 63 bytes.
    pub hostname: String,
    /// Names of the pod's address in its `/etc/hosts`: the full one first, where there is a `spec.subdomain`.
    pub host_names: Vec<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Virtual CPUs of the machine.
    pub vcpus: u8,
    /// Memory of the machine in MiB, the guest's own needs included.
    pub memory_mib: u64,
    /// What the pod takes of the host for admission: effective requests plus the machine's overhead.
    pub requests: Resources,
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// `spec.shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `spec.hostUsers` is false: the pod has a user namespace of its own.
    pub user_namespace: bool,
    /// `spec.terminationGracePeriodSeconds`.
    pub termination_grace_seconds: u32,
    /// `spec.activeDeadlineSeconds`; 0 for none.
    pub active_deadline_seconds: u32,
    /// `spec.securityContext.sysctls`.
    pub sysctls: BTreeMap<String, String>,
    /// `spec.dnsPolicy` and `spec.dnsConfig`.
    pub dns: DnsPlan,
    /// `spec.hostAliases`: address and its names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// `spec.readinessGates`: types of conditions.
    pub readiness_gates: Vec<String>,
    /// `spec.volumes`, in manifest order.
    pub volumes: Vec<VolumePlan>,
    /// Every `hostPort` of every container.
    pub host_ports: Vec<HostPort>,
    /// `spec.initContainers`, in order; sidecars among them.
    pub init_containers: Vec<ContainerPlan>,
    /// `spec.containers`, in order.
    pub containers: Vec<ContainerPlan>,
    /// Docker configurations of `spec.imagePullSecrets`: the secret's name and its text.
    #[serde(skip)]
    pub pull_secrets: Vec<(String, Vec<u8>)>,
    /// Sentences for the user about fields that are accepted and have no effect here.
    pub notes: Vec<String>,
    /// The Pod object with its defaults, for `inspect`.
    #[serde(skip)]
    pub object: serde_json::Value,
}

impl PodPlan {
    /// All containers, init containers first.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.init_containers.iter().chain(&self.containers)
    }
}

/// An amount of CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever ends.
    Always,
    /// Restart what fails.
    OnFailure,
    /// Never restart.
    Never,
}

/// Where the pod's `/etc/resolv.conf` comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsPlan {
    /// Start from the host's file (`dnsPolicy` Default, ClusterFirst, ClusterFirstWithHostNet) or from nothing (None).
    pub from_host: bool,
    /// `dnsConfig.nameservers`.
    pub nameservers: Vec<String>,
    /// `dnsConfig.searches`.
    pub searches: Vec<String>,
    /// `dnsConfig.options` as they stand in the file, such as `ndots:5`.
    pub options: Vec<String>,
}

/// A volume of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// Name in the manifest, a DNS label.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
    /// Group that owns it (`spec.securityContext.fsGroup`), for volumes that take one.
    pub fs_group: Option<u32>,
    /// Every container mounts it read-only.
    pub read_only: bool,
}

/// Kinds of volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// A file or directory of the host.
    HostPath {
        /// Absolute path on the host.
        path: PathBuf,
        /// `hostPath.type`.
        type_: HostPathType,
    },
    /// A directory on the host that lives as long as the pod.
    EmptyDirDisk {
        /// `emptyDir.sizeLimit` in bytes.
        size_limit: Option<u64>,
    },
    /// A tmpfs in the guest, shared by the pod's containers.
    EmptyDirMemory {
        /// `emptyDir.sizeLimit` in bytes.
        size_limit: Option<u64>,
    },
    /// Files with known content (configMap, secret, downwardAPI, projected): the host writes an atomic `..data` tree.
    Files {
        /// Relative path to content.
        files: BTreeMap<String, FileContent>,
    },
    /// The root file system of an image, read-only.
    Image {
        /// Image reference as written.
        reference: String,
        /// When it is pulled.
        pull_policy: PullPolicy,
    },
}

/// A file of a [`VolumeKind::Files`] volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// `hostPath.type` (Kubernetes API, HostPathVolumeSource).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathType {
    /// No check.
    Unset,
    /// An empty directory is made when nothing is there, mode 0755.
    DirectoryOrCreate,
    /// A directory must exist.
    Directory,
    /// An empty file is made when nothing is there, mode 0644; its directory must exist.
    FileOrCreate,
    /// A file must exist.
    File,
    /// A Unix socket must exist.
    Socket,
    /// A character device must exist.
    CharDevice,
    /// A block device must exist.
    BlockDevice,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `hostIP`; absent means every address.
    pub host_ip: Option<IpAddr>,
    /// `hostPort`.
    pub host_port: u16,
    /// `containerPort`.
    pub container_port: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Pull on every start.
    Always,
    /// Pull when the store does not hold the image.
    IfNotPresent,
    /// Never pull.
    Never,
}

/// A container of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Name in the manifest, a DNS label.
    pub name: String,
    /// Image reference as written.
    pub image: String,
    /// When the image is pulled. An absent policy without registry at hand behaves as IfNotPresent.
    pub image_pull_policy: PullPolicy,
    /// An init container with `restartPolicy: Always`.
    pub sidecar: bool,
    /// `command`: replaces the image's entrypoint. `$(VAR)` is not yet expanded.
    pub command: Option<Vec<String>>,
    /// `args`: replaces the image's command. `$(VAR)` is not yet expanded.
    pub args: Option<Vec<String>>,
    /// `envFrom` and `env`, in order; later entries win over earlier ones and over the image's.
    pub env: Vec<EnvPlan>,
    /// `workingDir`.
    pub working_dir: Option<String>,
    /// `tty`.
    pub tty: bool,
    /// `stdin`.
    pub stdin: bool,
    /// `stdinOnce`.
    pub stdin_once: bool,
    /// `terminationMessagePath`, absolute in the container.
    pub termination_message_path: String,
    /// `terminationMessagePolicy` is FallbackToLogsOnError.
    pub message_from_logs: bool,
    /// Signal that asks it to end; 0 means the image's, else SIGTERM.
    pub stop_signal: u32,
    /// Probes and lifecycle hooks.
    pub care: CarePlan,
    /// `volumeMounts`.
    pub mounts: Vec<MountPlan>,
    /// `volumeDevices`.
    pub devices: Vec<DevicePlan>,
    /// `resources.requests`, with limits where a request is absent.
    pub requests: Resources,
    /// `resources.limits`; absent entries have no limit.
    pub limits: Limits,
    /// `securityContext`, merged with the pod's.
    pub security: SecurityPlan,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvPlan {
    /// Name.
    pub name: String,
    /// Value.
    pub value: EnvValue,
}

/// Value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// As it stands.
    Literal(String),
    /// `$(VAR)` of variables above it is expanded, `$$` is `$`.
    Template(String),
    /// `status.podIP`, known when the pod has its network.
    PodIp,
    /// `status.hostIP`: the host's address on the pod's network.
    HostIp,
    /// A limit that the container does not have: what its machine has.
    Machine(MachineShare),
}

/// CPU or memory of a machine in units of a divisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineShare {
    /// Thousandths of a CPU.
    CpuMillis {
        /// Not zero.
        divisor: u64,
    },
    /// Bytes.
    MemoryBytes {
        /// Not zero.
        divisor: u64,
    },
}

impl MachineShare {
    /// The number for a machine of this size, rounded up.
    #[must_use]
    pub fn amount(self, vcpus: u8, memory_mib: u64) -> u64 {
        match self {
            Self::CpuMillis { divisor } => {
                (u64::from(vcpus).saturating_mul(1000)).div_ceil(divisor.max(1))
            }
            Self::MemoryBytes { divisor } => {
                memory_mib.saturating_mul(1 << 20).div_ceil(divisor.max(1))
            }
        }
    }
}

/// Limits of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Path in the volume, relative, without `..`; empty for the whole.
    pub sub_path: String,
    /// `sub_path` is a `subPathExpr`: `$(VAR)` is still to be expanded.
    pub expand_sub_path: bool,
    /// Mounted read-only.
    pub read_only: bool,
    /// What is mounted below it in the volume is read-only as well.
    pub recursive_read_only: bool,
    /// `mountPropagation`.
    pub propagation: Propagation,
}

/// A block device or a file of the host that a container has as a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub path: String,
}

/// `mountPropagation` (Kubernetes API, VolumeMount).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None: private.
    None,
    /// HostToContainer: slave.
    HostToContainer,
    /// Bidirectional: shared; privileged containers only.
    Bidirectional,
}

/// Who a container is and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityPlan {
    /// `runAsUser`; absent means the image's.
    pub run_as_user: Option<u32>,
    /// `runAsGroup`.
    pub run_as_group: Option<u32>,
    /// `runAsNonRoot`: refuse to start as user 0.
    pub run_as_non_root: bool,
    /// `supplementalGroups` and `fsGroup`.
    pub supplemental_groups: Vec<u32>,
    /// Merge the groups that the image's /etc/group gives the user (`supplementalGroupsPolicy: Merge`).
    pub merge_image_groups: bool,
    /// `privileged`: inside the guest only.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: false` sets no_new_privs.
    pub no_new_privileges: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `capabilities.add`, without `CAP_`, upper case; `ALL` possible.
    pub add_capabilities: Vec<String>,
    /// `capabilities.drop`, without `CAP_`, upper case; `ALL` possible.
    pub drop_capabilities: Vec<String>,
    /// `seccompProfile`.
    pub seccomp: SeccompPlan,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}

/// `seccompProfile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompPlan {
    /// No filter.
    Unconfined,
    /// vmpod's own default filter.
    RuntimeDefault,
    /// A profile file of the host, in the JSON form that containerd and Docker read.
    Localhost(PathBuf),
}
