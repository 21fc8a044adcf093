//! Volumes of a pod: which kind each is, and the content of those that are made of objects.

mod files;

use k8s_openapi::api::core::v1::{PodSpec, Volume};

use super::documents::Objects;
use super::environment::Sources;
use super::plan::{ContainerPlan, HostPathType, VolumeKind, VolumePlan};
use super::planner::pull_policy;
use super::problem::Collector;
use super::quantity;
use super::sizing::MachineSize;

/// What the content of volumes may come from.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) objects: &'a Objects,
    pub(super) sources: Sources<'a>,
    pub(super) containers: &'a [&'a ContainerPlan],
    pub(super) size: MachineSize,
}

/// The volumes of a validated spec.
pub(super) fn volumes(
    spec: &PodSpec,
    around: &Surroundings<'_>,
    collector: &mut Collector<'_>,
) -> Vec<VolumePlan> {
    let fs_group = spec
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group)
        .and_then(|g| u32::try_from(g).ok());
    spec.volumes
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(i, volume)| {
            let kind = kind(volume, &format!("spec.volumes[{i}]"), around, collector)?;
            let takes_group =
                !matches!(kind, VolumeKind::HostPath { .. } | VolumeKind::Image { .. });
            Some(VolumePlan {
                name: volume.name.clone(),
                fs_group: fs_group.filter(|_| takes_group),
                // What is made of objects belongs to whoever holds the objects.
                read_only: matches!(kind, VolumeKind::Image { .. } | VolumeKind::Files { .. })
                    || read_only_everywhere(spec, &volume.name),
                kind,
            })
        })
        .collect()
}

fn read_only_everywhere(spec: &PodSpec, name: &str) -> bool {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .flat_map(|c| c.volume_mounts.iter().flatten())
        .filter(|m| m.name == name)
        .all(|m| m.read_only == Some(true))
}

fn kind(
    volume: &Volume,
    path: &str,
    around: &Surroundings<'_>,
    collector: &mut Collector<'_>,
) -> Option<VolumeKind> {
    if let Some(host) = &volume.host_path {
        return Some(VolumeKind::HostPath {
            path: host.path.clone().into(),
            type_: match host.type_.as_deref().unwrap_or_default() {
                "DirectoryOrCreate" => HostPathType::DirectoryOrCreate,
                "Directory" => HostPathType::Directory,
                "FileOrCreate" => HostPathType::FileOrCreate,
                "File" => HostPathType::File,
                "Socket" => HostPathType::Socket,
                "CharDevice" => HostPathType::CharDevice,
                "BlockDevice" => HostPathType::BlockDevice,
                _ => HostPathType::Unset,
            },
        });
    }
    if let Some(empty) = &volume.empty_dir {
        let size_limit = empty
            .size_limit
            .as_ref()
            .and_then(|q| quantity::units(&q.0).ok())
            .filter(|l| *l > 0);
        return Some(if empty.medium.as_deref() == Some("Memory") {
            VolumeKind::EmptyDirMemory { size_limit }
        } else {
            VolumeKind::EmptyDirDisk { size_limit }
        });
    }
    if let Some(image) = &volume.image {
        return Some(VolumeKind::Image {
            reference: image.reference.clone().unwrap_or_default(),
            pull_policy: pull_policy(image.pull_policy.as_deref()),
        });
    }
    files::kind(volume, path, around, collector).flatten()
}

fn mode(mode: i32, path: &str, collector: &mut Collector<'_>) -> u32 {
    match u32::try_from(mode) {
        Ok(bits) if bits <= 0o777 => bits,
        _ => {
            collector.invalid(
                path,
                mode,
                "must be a number between 0 and 0777 (octal), both inclusive",
            );
            0
        }
    }
}
