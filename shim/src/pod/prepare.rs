//! From a plan and its images to a pod that a supervisor can run: reservation, address, composed containers, files of
//! configMaps and secrets, the record. Runs in the command that starts the pod; whatever fails takes everything back.

use std::path::{Path, PathBuf};

use super::clock;
use super::durable::{self, DurableError};
use super::guest_paths;
use super::id_ranges::IdRanges;
use super::journal::{Journal, JournalError, chain};
use super::record::{
    ContainerRecord, MachineRecord, MemoryVolumeRecord, PodRecord, RECORD_VERSION, VolumeRecord,
    VolumeSource,
};
use super::registry::{self, RegistryError, ReservedPod, Wish};
use super::roots::Roots;
use super::status::PodStatus;
use super::tree::{self, VolumeError};
use crate::host::bundle::{Bundle, PartMissing};
use crate::host::capacity::Capacity;
use crate::host::disk_room::{self, DiskFull};
use crate::images::{Image, UserError, resolve_user};
use crate::manifest::plan::{ContainerPlan, PodPlan, PullPolicy, VolumeKind};
use crate::manifest::qos::Qos;
use crate::network::{self, NetworkError};
use crate::oci::{self, ComposeError, Composition, ContainerUser, PodAddresses};

/// Directory of Localhost seccomp profiles, as the kubelet has it.
const SECCOMP_DIRECTORY: &str = "/var/lib/kubelet/seccomp";

/// A pod cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A part of vmpod is missing.
    #[error(transparent)]
    Bundle(#[from] PartMissing),
    /// No room.
    #[error(transparent)]
    Disk(#[from] DiskFull),
    /// Name, capacity or port.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A volume.
    #[error("volume {name:?}")]
    Volume {
        /// Name in the manifest.
        name: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// An image.
    #[error("container {container}: image {image:?}: {message}")]
    Image {
        /// Container.
        container: String,
        /// Image as written.
        image: String,
        /// The error with its causes.
        message: String,
    },
    /// The image of a volume.
    #[error("volume {volume}: image {image:?}: {message}")]
    VolumeImage {
        /// Volume.
        volume: String,
        /// Image as written.
        image: String,
        /// The error with its causes.
        message: String,
    },
    /// The user of a container.
    #[error("container {container}: image {image:?}")]
    User {
        /// Container.
        container: String,
        /// Image as written.
        image: String,
        /// Why.
        #[source]
        source: UserError,
    },
    /// The configuration of a container.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// An address.
    #[error("cannot set up the pod's network")]
    Network(#[from] NetworkError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The record.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// A composed configuration is not JSON: a mistake of vmpod.
    #[error("container {container}: its configuration cannot be written")]
    Spec {
        /// Container.
        container: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// How a pod is to be run, beside what its manifest says.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The parts of vmpod.
    pub bundle: Bundle,
    /// What the host can give.
    pub capacity: Capacity,
    /// Everything of the pod goes when it has ended.
    pub remove_when_done: bool,
    /// Subnet of the pods' network; `None`: the default.
    pub subnet: Option<String>,
    /// Whether the VMM confines itself.
    pub jail: bool,
    /// Whether the machine may go on from a template, and leave one.
    pub template: bool,
    /// Appended to the guest kernel's command line.
    pub extra_cmdline: String,
    /// Text of the manifest.
    pub source: String,
    /// Files of further ConfigMaps and Secrets, absolute.
    pub resources: Vec<PathBuf>,
}

/// Gets an image by the reference that the manifest has, from the store or from elsewhere.
pub type ImageSource<'a> =
    dyn FnMut(&str, PullPolicy) -> Result<Image, Box<dyn std::error::Error>> + 'a;

/// Prepares `plan`. `image` is asked for each container's image, and those of volumes, once the pod is admitted, and may
/// fetch it.
///
/// # Errors
/// What cannot be had; nothing is left behind then.
pub fn prepare(
    roots: &Roots,
    plan: &PodPlan,
    options: &PrepareOptions,
    image: &mut ImageSource<'_>,
) -> Result<(ReservedPod, PodRecord), PrepareError> {
    options.bundle.check()?;
    disk_room::check(&roots.state)?;
    for volume in &plan.volumes {
        if let VolumeKind::HostPath { path, type_ } = &volume.kind {
            tree::check_host_path(path, *type_).map_err(|source| PrepareError::Volume {
                name: volume.name.clone(),
                source,
            })?;
        }
    }
    let reserved = registry::reserve(
        roots,
        &options.capacity,
        Wish {
            name: &plan.name,
            namespace: &plan.namespace,
            requests: plan.requests,
            host_ports: &plan.host_ports,
        },
    )?;
    match fill(roots, plan, options, image, &reserved) {
        Ok(record) => Ok((reserved, record)),
        Err(error) => {
            if let Err(left) = reserved.cancel() {
                tracing::error!(error = chain(&left), "`vmpod gc` will try again");
            }
            Err(error)
        }
    }
}

fn fill(
    roots: &Roots,
    plan: &PodPlan,
    options: &PrepareOptions,
    image: &mut ImageSource<'_>,
    reserved: &ReservedPod,
) -> Result<PodRecord, PrepareError> {
    let mut images = Vec::new();
    for container in plan.all_containers() {
        let found = image(&container.image, container.image_pull_policy);
        images.push(found.map_err(|error| PrepareError::Image {
            container: container.name.clone(),
            image: container.image.clone(),
            message: chain(error.as_ref()),
        })?);
    }
    let id = &reserved.reservation.id;
    let mut journal = Journal::open(&reserved.paths.journal())?;
    let place = network::lease(
        &roots.network(),
        id,
        &plan.host_ports,
        options.subnet.as_deref(),
        &mut journal,
    )?;
    let addresses = PodAddresses {
        pod_ip: place.address.to_string(),
        host_ip: place.subnet.gateway().to_string(),
    };
    let mut records = Vec::new();
    for (container, image) in plan.all_containers().zip(&images) {
        records.push(compose(plan, container, image, &addresses)?);
    }
    let containers = records.split_off(plan.init_containers.len());
    let init_containers = records;

    let mut volumes = Vec::new();
    let mut memory_volumes = Vec::new();
    for volume in &plan.volumes {
        let source = match &volume.kind {
            VolumeKind::EmptyDirMemory { size_limit } => {
                memory_volumes.push(MemoryVolumeRecord {
                    guest_path: guest_paths::memory_volume(&volume.name),
                    size_bytes: size_limit.unwrap_or(0),
                    mode: if volume.fs_group.is_some() {
                        0o2777
                    } else {
                        0o777
                    },
                    gid: volume.fs_group.map_or(-1, i64::from),
                });
                continue;
            }
            VolumeKind::HostPath { path, type_ } => VolumeSource::HostPath {
                path: path.clone(),
                type_: *type_,
            },
            VolumeKind::EmptyDirDisk { size_limit } => VolumeSource::EmptyDir {
                size_limit: *size_limit,
            },
            VolumeKind::Files { files } => {
                tree::write_files(&reserved.paths.files(&volume.name), files, volume.fs_group)
                    .map_err(|source| PrepareError::Volume {
                        name: volume.name.clone(),
                        source,
                    })?;
                VolumeSource::Files
            }
            VolumeKind::Image {
                reference,
                pull_policy,
            } => {
                let found = image(reference, *pull_policy);
                let found = found.map_err(|error| PrepareError::VolumeImage {
                    volume: volume.name.clone(),
                    image: reference.clone(),
                    message: chain(error.as_ref()),
                })?;
                VolumeSource::Image {
                    reference: reference.clone(),
                    digest: found.digest.to_string(),
                    layers: found.layers.clone(),
                }
            }
        };
        volumes.push(VolumeRecord {
            name: volume.name.clone(),
            read_only: volume.read_only,
            fs_group: volume.fs_group,
            source,
            sub_paths: sub_paths(&volume.name, init_containers.iter().chain(&containers)),
        });
    }
    let record = PodRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        name: plan.name.clone(),
        namespace: plan.namespace.clone(),
        uid: plan.uid.clone(),
        hostname: plan.hostname.clone(),
        host_names: plan.host_names.clone(),
        labels: plan.labels.clone(),
        annotations: plan.annotations.clone(),
        created_at_ns: clock::now_ns(),
        machine: MachineRecord {
            vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            vmm: options.bundle.vmm.clone(),
            vmlinux: options.bundle.vmlinux.clone(),
            initramfs: options.bundle.initramfs.clone(),
            extra_cmdline: options.extra_cmdline.clone(),
            jail: options.jail,
            template: options.template,
        },
        restart_policy: plan.restart_policy,
        share_process_namespace: plan.share_process_namespace,
        users: plan.user_namespace.then(IdRanges::default),
        termination_grace_seconds: plan.termination_grace_seconds,
        active_deadline_seconds: plan.active_deadline_seconds,
        sysctls: plan.sysctls.clone(),
        resolv_conf: tree::resolv_conf(&plan.dns),
        host_aliases: plan.host_aliases.clone(),
        readiness_gates: plan.readiness_gates.clone(),
        volumes,
        memory_volumes,
        host_ports: plan.host_ports.clone(),
        network: Some(place),
        init_containers,
        containers,
        remove_when_done: options.remove_when_done,
        qos: Qos::of(plan),
        resources: options.resources.clone(),
        ephemeral: Vec::new(),
    };
    durable::write_bytes(&reserved.paths.source(), options.source.as_bytes(), 0o600)?;
    // For `inspect` alone: a pod runs without it.
    let object = serde_json::to_vec(&plan.object).unwrap_or_default();
    if let Err(error) = std::fs::write(reserved.paths.manifest(), object) {
        tracing::warn!(error = chain(&error), "cannot keep the pod's manifest");
    }
    durable::write_json(&reserved.paths.config(), &record)?;
    durable::write_json(&reserved.paths.status(), &PodStatus::preparing(&record))?;
    Ok(record)
}

/// Composes one container of `plan` from its image.
///
/// # Errors
/// Its user is not in the image, or the configuration cannot be made.
pub fn compose(
    plan: &PodPlan,
    container: &ContainerPlan,
    image: &Image,
    addresses: &PodAddresses,
) -> Result<ContainerRecord, PrepareError> {
    let wanted = oci::user_to_resolve(container, &image.config);
    let user = resolve_user(&image.layers, &wanted).map_err(|source| PrepareError::User {
        container: container.name.clone(),
        image: container.image.clone(),
        source,
    })?;
    let spec = oci::compose(Composition {
        plan,
        container,
        image: &image.config,
        user: &ContainerUser {
            uid: user.uid,
            gid: user.gid,
            additional_gids: user.additional_gids,
            home: Some(user.home),
        },
        addresses,
        seccomp_directory: Path::new(SECCOMP_DIRECTORY),
    })?;
    let oci_spec = serde_json::to_value(&spec).map_err(|source| PrepareError::Spec {
        container: container.name.clone(),
        source,
    })?;
    Ok(ContainerRecord {
        name: container.name.clone(),
        image: container.image.clone(),
        image_digest: image.digest.to_string(),
        layers: image.layers.clone(),
        oci_spec,
        devices: container.devices.clone(),
        sidecar: container.sidecar,
        tty: container.tty,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: guest_paths::termination_log(&container.name),
        message_from_logs: container.message_from_logs,
        stop_signal: if container.stop_signal == 0 {
            oci::stop_signal(&image.config).unwrap_or(0)
        } else {
            container.stop_signal
        },
        care: container.care.clone(),
    })
}

/// The paths below volume `name` that the composed containers mount.
fn sub_paths<'a>(name: &str, containers: impl Iterator<Item = &'a ContainerRecord>) -> Vec<String> {
    let prefix = format!("{}/", guest_paths::volume(name));
    let mut found: Vec<String> = containers
        .filter_map(|container| container.oci_spec.get("mounts")?.as_array())
        .flatten()
        .filter_map(|mount| {
            Some(
                mount
                    .get("source")?
                    .as_str()?
                    .strip_prefix(&prefix)?
                    .to_owned(),
            )
        })
        .filter(|path| !path.is_empty())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Manifest digests and layers of the images that pods on record run from: not to be removed.
#[must_use]
pub fn images_in_use(roots: &Roots) -> Vec<String> {
    let records: Vec<PathBuf> = std::fs::read_dir(roots.pods())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| roots.pod(&entry.file_name().to_string_lossy()).config())
        .collect();
    let mut found: Vec<String> = records
        .iter()
        .filter_map(|path| durable::read_json::<PodRecord>(path).ok())
        .flat_map(|record| {
            let of_volumes = record
                .volumes
                .into_iter()
                .filter_map(|volume| match volume.source {
                    VolumeSource::Image { digest, .. } => Some(digest),
                    _ => None,
                });
            let added = record.ephemeral.into_iter().map(|added| added.container);
            record
                .init_containers
                .into_iter()
                .chain(record.containers)
                .chain(added)
                .map(|container| container.image_digest)
                .chain(of_volumes)
                .collect::<Vec<_>>()
        })
        .collect();
    found.sort();
    found.dedup();
    found
}
