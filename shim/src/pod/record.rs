//! What the supervisor of a pod is told: plain data, written by the command that prepares the pod and read once by
//! the supervisor, which needs neither the manifest nor the image store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::id_ranges::IdRanges;
use serde::{Deserialize, Serialize};

use crate::manifest::care::CarePlan;
use crate::manifest::plan::{DevicePlan, HostPathType, HostPort, Resources, RestartPolicy};
use crate::manifest::qos::Qos;
use crate::network::Place;

/// Version of the files below a pod's directory. Raised when an older `vmpod` would misread them.
pub const RECORD_VERSION: u32 = 1;

/// What a pod holds of the host from the moment it is admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Id: twelve hexadecimal digits.
    pub id: String,
    /// Name in the manifest.
    pub name: String,
    /// Namespace in the manifest.
    pub namespace: String,
    /// What the pod takes of the host, the machine's overhead included.
    pub requests: Resources,
    /// Ports that it takes on the host.
    pub host_ports: Vec<HostPort>,
    /// Wall clock of the reservation, nanoseconds.
    pub created_at_ns: i64,
}

/// A pod as its supervisor runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Id: twelve hexadecimal digits.
    pub id: String,
    /// Name in the manifest.
    pub name: String,
    /// Namespace in the manifest.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Host name inside the pod.
    pub hostname: String,
    /// Names of the pod's address in its `/etc/hosts`.
    #[serde(default)]
    pub host_names: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Wall clock of the preparation, nanoseconds.
    pub created_at_ns: i64,
    /// The machine.
    pub machine: MachineRecord,
    /// What happens when a container ends.
    pub restart_policy: RestartPolicy,
    /// One process namespace for all containers.
    pub share_process_namespace: bool,
    /// The ids of the pod's own user namespace; `None`: its users are those of its machine.
    #[serde(default)]
    pub users: Option<IdRanges>,
    /// Seconds between the stop signal and the kill.
    pub termination_grace_seconds: u32,
    /// Seconds that the pod may run; 0: no bound.
    pub active_deadline_seconds: u32,
    /// sysctls of the pod, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Further lines of `/etc/hosts`: address and names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// Types of conditions that the pod's readiness waits for.
    #[serde(default)]
    pub readiness_gates: Vec<String>,
    /// Volumes of the shared tree.
    pub volumes: Vec<VolumeRecord>,
    /// Volumes in guest memory.
    pub memory_volumes: Vec<MemoryVolumeRecord>,
    /// Ports of the host.
    pub host_ports: Vec<HostPort>,
    /// The pod's place on the network; `None`: it has its loopback alone.
    pub network: Option<Place>,
    /// Init containers in order.
    pub init_containers: Vec<ContainerRecord>,
    /// Containers.
    pub containers: Vec<ContainerRecord>,
    /// Everything of the pod goes when it has ended.
    pub remove_when_done: bool,
    /// `status.qosClass`.
    #[serde(default)]
    pub qos: Qos,
    /// Files of ConfigMaps and Secrets that volumes follow while the pod runs.
    #[serde(default)]
    pub resources: Vec<PathBuf>,
    /// Containers that were added while the pod ran.
    #[serde(default)]
    pub ephemeral: Vec<EphemeralRecord>,
}

impl PodRecord {
    /// Init containers, containers, and those that were added later.
    pub fn every_container(&self) -> impl Iterator<Item = &ContainerRecord> {
        let added = self.ephemeral.iter().map(|added| &added.container);
        self.init_containers
            .iter()
            .chain(&self.containers)
            .chain(added)
    }
}

/// An ephemeral container: it shares what the pod's containers share, is never restarted, and decides nothing about the pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EphemeralRecord {
    /// The container.
    pub container: ContainerRecord,
    /// `targetContainerName`: the container whose processes it sees.
    pub target: Option<String>,
    /// Its place in `spec.ephemeralContainers`.
    pub object: serde_json::Value,
}

/// The machine of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The VMM program.
    pub vmm: PathBuf,
    /// Guest kernel.
    pub vmlinux: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Appended to the kernel's command line.
    pub extra_cmdline: String,
    /// Whether the VMM confines itself.
    pub jail: bool,
    /// Whether the machine goes on from a template of its shape, and leaves one where there is none.
    #[serde(default)]
    pub template: bool,
}

/// A volume of the shared tree, seen by the guest at `/run/vmpod/shared/volumes/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Name in the manifest.
    pub name: String,
    /// Nobody in the pod writes to it.
    pub read_only: bool,
    /// Group that owns it (`fsGroup`), for volumes of the pod's own.
    pub fs_group: Option<u32>,
    /// Where it comes from.
    pub source: VolumeSource,
    /// Paths below the volume that containers mount (`subPath`), made where they are missing.
    pub sub_paths: Vec<String>,
}

/// Where a volume of the shared tree comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VolumeSource {
    /// A path of the host.
    HostPath {
        /// The path.
        path: PathBuf,
        /// `hostPath.type`.
        type_: HostPathType,
    },
    /// A directory that lives as long as the pod.
    EmptyDir {
        /// Bytes after which the pod is ended; `None`: no bound.
        size_limit: Option<u64>,
    },
    /// Files that were written when the pod was prepared.
    Files,
    /// The root file system of an image.
    Image {
        /// Image as the manifest names it.
        reference: String,
        /// Digest of its manifest.
        digest: String,
        /// Directories of the unpacked layers, top-most first.
        layers: Vec<PathBuf>,
    },
}

/// A volume in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVolumeRecord {
    /// Where it is mounted in the guest.
    pub guest_path: String,
    /// Bytes; 0: half of the guest's memory.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Group; -1: none in particular.
    pub gid: i64,
}

/// A container as its supervisor runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Name in the manifest.
    pub name: String,
    /// Image as the manifest names it.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// Directories of the unpacked layers, top-most first.
    pub layers: Vec<PathBuf>,
    /// OCI runtime configuration with guest paths.
    pub oci_spec: serde_json::Value,
    /// Disks, which come into the configuration when the machine has them.
    #[serde(default)]
    pub devices: Vec<DevicePlan>,
    /// An init container that keeps running.
    pub sidecar: bool,
    /// A terminal.
    pub tty: bool,
    /// Standard input stays open for `attach`.
    pub stdin: bool,
    /// Standard input ends with the first client.
    pub stdin_once: bool,
    /// Where the termination message is found in the guest; empty: nowhere.
    pub termination_message_path: String,
    /// The end of the output is the message when the file is empty and the container failed.
    pub message_from_logs: bool,
    /// Signal that ends it; 0: SIGTERM.
    pub stop_signal: u32,
    /// Probes and lifecycle hooks.
    #[serde(default)]
    pub care: CarePlan,
}
