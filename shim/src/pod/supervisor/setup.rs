//! What a pod needs of the host before its machine starts: mount namespace, cgroup, ports, network, shared tree. Runs
//! before there is any other thread. Each part is in the journal before it exists.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::statfs;

use super::{Pod, StartError};
use crate::manifest::plan::HostPort;
use crate::network::{self, HeldPorts, PodNetwork};
use crate::pod::cgroup::{self, Limits};
use crate::pod::guest_paths;
use crate::pod::host_mounts::HostMounts;
use crate::pod::journal::{Entry, Journal};
use crate::pod::record::{PodRecord, VolumeSource};
use crate::pod::tree::{self, HostsFile, SharedTree};

/// Magic number of tmpfs (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Tasks of a VMM: one a vCPU, one a device, and room.
const VMM_TASKS: u32 = 64;

/// Memory of the VMM beside the guest's: its own, and a part of the page cache of files that it serves.
const VMM_MEMORY: u64 = 256 << 20;

/// What was made.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) journal: Journal,
    pub(super) cgroup: Option<std::fs::File>,
    pub(super) network: Option<PodNetwork>,
    pub(super) tree: SharedTree,
    /// What containers mount on the host; `None`: they have no volume for that. Shared with whoever follows the agent; never held
    /// across an await.
    pub(super) mounts: Option<Arc<Mutex<HostMounts>>>,
    /// Held until the end.
    pub(super) ports: HeldPorts,
}

pub(super) fn setup(pod: &mut Pod, mut journal: Journal) -> Result<Prepared, StartError> {
    tree::enter_namespace()?;
    let cgroup = make_cgroup(pod, &mut journal)?;
    let record = &pod.record;
    let ports = network::hold(&record.host_ports)?;
    let network = match &record.network {
        Some(place) => Some(network::attach(
            &pod.roots.network(),
            &record.id,
            place,
            &mut journal,
        )?),
        None => {
            refuse_ports_without_network(&record.host_ports)?;
            None
        }
    };
    let address = record.network.as_ref().map(|place| place.address);
    let tree = SharedTree::create(
        &pod.paths,
        record,
        &HostsFile {
            address: address.map(Into::into),
            hostname: &record.hostname,
            names: &record.host_names,
            aliases: &record.host_aliases,
        },
    )?;
    for container in record.init_containers.iter().chain(&record.containers) {
        tree.mount_rootfs(container, 0)?;
    }
    let mut mounts = None;
    for (name, path) in shared_volumes(record) {
        mounts
            .get_or_insert_with(|| HostMounts::new(&pod.paths))
            .share(format!("volumes/{name}"), path)?;
    }
    if let Some(address) = address {
        pod.status.pod_ip = address.to_string();
    }
    Ok(Prepared {
        journal,
        cgroup,
        network,
        tree,
        mounts: mounts.map(|mounts| Arc::new(Mutex::new(mounts))),
        ports,
    })
}

/// Names and paths of the host's directories that a container mounts with mountPropagation Bidirectional. Not those of a pod
/// with a user namespace, whose mounts never go where there is more power.
fn shared_volumes(record: &PodRecord) -> impl Iterator<Item = (&str, &Path)> {
    let shared = |name: &str| {
        let place = guest_paths::volume(name);
        let containers = record.init_containers.iter().chain(&record.containers);
        containers
            .filter_map(|container| container.oci_spec.get("mounts")?.as_array())
            .flatten()
            .filter(|mount| {
                let source = mount.get("source").and_then(serde_json::Value::as_str);
                source.is_some_and(|source| Path::new(source).starts_with(&place))
            })
            .filter_map(|mount| mount.get("options")?.as_array())
            .flatten()
            .any(|option| option == "rshared")
    };
    let volumes = record.volumes.iter().filter(|_| record.users.is_none());
    volumes.filter_map(move |volume| match &volume.source {
        VolumeSource::HostPath { path, .. } if shared(&volume.name) => {
            Some((&*volume.name, &**path))
        }
        _ => None,
    })
}

fn refuse_ports_without_network(ports: &[HostPort]) -> Result<(), StartError> {
    if ports.is_empty() {
        return Ok(());
    }
    Err(StartError::System {
        what: "serve host ports",
        source: io::Error::other("the pod has no network"),
    })
}

fn make_cgroup(pod: &Pod, journal: &mut Journal) -> Result<Option<std::fs::File>, StartError> {
    let Some(path) = cgroup::path_of(&pod.record.id) else {
        return Ok(None);
    };
    journal.record(&Entry::Cgroup { path: path.clone() })?;
    cgroup::create(
        &path,
        Limits {
            memory_bytes: memory_bound(pod),
            pids: VMM_TASKS + u32::from(pod.record.machine.vcpus),
        },
    )?;
    Ok(Some(cgroup::open_members(&path)?))
}

/// Bound of the VMM's memory. Files on a tmpfs count as memory of whoever writes them and cannot be reclaimed: a pod that
/// writes to one is not bounded here but by the size of the tmpfs.
fn memory_bound(pod: &Pod) -> Option<u64> {
    let on_tmpfs = |path: &Path| statfs(path).is_ok_and(|found| found.f_type == TMPFS_MAGIC);
    let host_paths = pod
        .record
        .volumes
        .iter()
        .filter_map(|volume| match &volume.source {
            VolumeSource::HostPath { path, .. } => Some(path.as_path()),
            _ => None,
        });
    if on_tmpfs(&pod.paths.state) || host_paths.into_iter().any(on_tmpfs) {
        return None;
    }
    pod.record
        .machine
        .memory_mib
        .checked_mul(1 << 20)?
        .checked_add(VMM_MEMORY)
}
