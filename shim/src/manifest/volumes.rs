//! Volumes of a pod: which kind each is, and the content of those that are made of objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{KeyToPath, PodSpec, Volume};

use super::documents::Objects;
use super::names;
use super::plan::{FileContent, HostPathType, VolumeKind, VolumePlan};
use super::problem::Collector;
use super::quantity;

const DEFAULT_FILE_MODE: i32 = 0o644;

/// The volumes of a validated spec.
pub(super) fn volumes(
    spec: &PodSpec,
    objects: &Objects,
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
            let kind = kind(volume, &format!("spec.volumes[{i}]"), objects, collector)?;
            let takes_group = !matches!(kind, VolumeKind::HostPath { .. });
            Some(VolumePlan {
                name: volume.name.clone(),
                fs_group: fs_group.filter(|_| takes_group),
                read_only: read_only_everywhere(spec, &volume.name),
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
    objects: &Objects,
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
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        let content = match objects.config_maps.get(&map.name) {
            None if map.optional == Some(true) => BTreeMap::new(),
            None => {
                collector.not_found(format!("{path}.name"), &map.name);
                return None;
            }
            Some(object) => {
                let text = object
                    .data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = object
                    .binary_data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.0.clone()));
                text.chain(binary).collect()
            }
        };
        let files = files(
            content,
            &map.items,
            map.default_mode,
            map.optional,
            &path,
            collector,
        );
        return Some(VolumeKind::Files { files });
    }
    if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let content = match objects.secrets.get(name) {
            None if secret.optional == Some(true) => BTreeMap::new(),
            None => {
                collector.not_found(format!("{path}.secretName"), name);
                return None;
            }
            Some(object) => {
                let data = object
                    .data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.0.clone()));
                let text = object
                    .string_data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                data.chain(text).collect()
            }
        };
        let files = files(
            content,
            &secret.items,
            secret.default_mode,
            secret.optional,
            &path,
            collector,
        );
        return Some(VolumeKind::Files { files });
    }
    None
}

fn files(
    mut content: BTreeMap<String, Vec<u8>>,
    items: &Option<Vec<KeyToPath>>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    path: &str,
    collector: &mut Collector<'_>,
) -> BTreeMap<String, FileContent> {
    let default_mode = mode(
        default_mode.unwrap_or(DEFAULT_FILE_MODE),
        &format!("{path}.defaultMode"),
        collector,
    );
    let Some(items) = items.as_ref().filter(|items| !items.is_empty()) else {
        let named = |(key, bytes): (String, Vec<u8>)| {
            names::relative_path(&key).then_some((
                key,
                FileContent {
                    bytes,
                    mode: default_mode,
                },
            ))
        };
        return content.into_iter().filter_map(named).collect();
    };
    let mut files = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if item.path.is_empty() || !names::relative_path(&item.path) || item.path.starts_with("..")
        {
            collector.invalid(
                format!("{path}.path"),
                &item.path,
                "must be a relative path that does not start with or contain '..'",
            );
            continue;
        }
        let mode = item.mode.map_or(default_mode, |m| {
            mode(m, &format!("{path}.mode"), collector)
        });
        match content.remove(&item.key) {
            Some(bytes) => {
                files.insert(item.path.clone(), FileContent { bytes, mode });
            }
            None if optional == Some(true) => {}
            None => collector.not_found(format!("{path}.key"), &item.key),
        }
    }
    files
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
