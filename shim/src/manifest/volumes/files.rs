//! Volumes made of objects: configMap, secret, downwardAPI and projected, as files with modes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret, Volume,
};

use super::{Surroundings, mode};
use crate::manifest::environment::{self, ResourceAmount};
use crate::manifest::names;
use crate::manifest::plan::{FileContent, VolumeKind};
use crate::manifest::problem::Collector;

const DEFAULT_FILE_MODE: i32 = 0o644;

type Files = BTreeMap<String, FileContent>;

/// The files of `volume` if it is made of objects. `Some(None)`: it is, and something is wrong with it.
pub(super) fn kind(
    volume: &Volume,
    path: &str,
    around: &Surroundings<'_>,
    collector: &mut Collector<'_>,
) -> Option<Option<VolumeKind>> {
    let mut made = Made::default();
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        let mode = default_mode(map.default_mode, &path, collector);
        let source = Source {
            path: &path,
            name_field: "name",
            name: &map.name,
            items: map.items.as_deref(),
            optional: map.optional,
            mode,
        };
        made.config_map(&source, around, collector);
    } else if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        let mode = default_mode(secret.default_mode, &path, collector);
        let source = Source {
            path: &path,
            name_field: "secretName",
            name: secret.secret_name.as_deref().unwrap_or_default(),
            items: secret.items.as_deref(),
            optional: secret.optional,
            mode,
        };
        made.secret(&source, around, collector);
    } else if let Some(downward) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        let mode = default_mode(downward.default_mode, &path, collector);
        let items = downward.items.as_deref().unwrap_or_default();
        made.downward(items, &path, mode, around, collector);
    } else if let Some(projected) = &volume.projected {
        made.projected(projected, &format!("{path}.projected"), around, collector);
    } else {
        return None;
    }
    Some((!made.broken).then_some(VolumeKind::Files { files: made.files }))
}

fn default_mode(given: Option<i32>, path: &str, collector: &mut Collector<'_>) -> u32 {
    mode(
        given.unwrap_or(DEFAULT_FILE_MODE),
        &format!("{path}.defaultMode"),
        collector,
    )
}

/// Keys of a configMap or secret, and which files they become.
struct Source<'a> {
    path: &'a str,
    name_field: &'a str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
}

#[derive(Default)]
struct Made {
    files: Files,
    broken: bool,
}

impl Made {
    fn config_map(
        &mut self,
        source: &Source<'_>,
        around: &Surroundings<'_>,
        collector: &mut Collector<'_>,
    ) {
        let content = around
            .objects
            .config_maps
            .get(source.name)
            .map(of_config_map);
        self.keys(content, source, collector);
    }

    fn secret(
        &mut self,
        source: &Source<'_>,
        around: &Surroundings<'_>,
        collector: &mut Collector<'_>,
    ) {
        let content = around.objects.secrets.get(source.name).map(of_secret);
        self.keys(content, source, collector);
    }

    fn keys(
        &mut self,
        content: Option<BTreeMap<String, Vec<u8>>>,
        source: &Source<'_>,
        collector: &mut Collector<'_>,
    ) {
        let optional = source.optional == Some(true);
        let items: Vec<(&KeyToPath, String, Option<u32>)> = source
            .items
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let path = format!("{}.items[{i}]", source.path);
                let mode = self.item(item, &path, source.mode, collector);
                (item, path, mode)
            })
            .collect();
        let name_field = format!("{}.{}", source.path, source.name_field);
        if source.name.is_empty() {
            collector.required(name_field);
            self.broken = true;
            return;
        }
        let mut content = match content {
            Some(content) => content,
            None if optional => return,
            None => {
                collector.not_found(name_field, source.name);
                self.broken = true;
                return;
            }
        };
        if items.is_empty() {
            for (key, bytes) in content {
                if names::relative_path(&key) {
                    let mode = source.mode;
                    self.add(key, FileContent { bytes, mode }, source.path, collector);
                }
            }
            return;
        }
        for (item, path, mode) in items {
            let Some(mode) = mode else { continue };
            match content.remove(&item.key) {
                Some(bytes) => {
                    self.add(
                        item.path.clone(),
                        FileContent { bytes, mode },
                        &path,
                        collector,
                    );
                }
                None if optional => {}
                None => collector.not_found(format!("{path}.key"), &item.key),
            }
        }
    }

    /// Checks which key becomes which file, and gives the file's mode. `None`: there can be none.
    fn item(
        &mut self,
        item: &KeyToPath,
        path: &str,
        default: u32,
        collector: &mut Collector<'_>,
    ) -> Option<u32> {
        let has_key = !item.key.is_empty();
        if !has_key {
            collector.required(format!("{path}.key"));
        }
        let has_path = file_path(&item.path, &format!("{path}.path"), collector);
        let mode = item
            .mode
            .map_or(default, |m| mode(m, &format!("{path}.mode"), collector));
        let good = has_key && has_path;
        self.broken |= !good;
        good.then_some(mode)
    }

    fn downward(
        &mut self,
        items: &[DownwardAPIVolumeFile],
        path: &str,
        default: u32,
        around: &Surroundings<'_>,
        collector: &mut Collector<'_>,
    ) {
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}.items[{i}]");
            let mode = item
                .mode
                .map_or(default, |m| mode(m, &format!("{path}.mode"), collector));
            let good = file_path(&item.path, &format!("{path}.path"), collector);
            match downward_text(item, &path, around, collector) {
                Some(text) if good => {
                    let bytes = text.into_bytes();
                    self.add(
                        item.path.clone(),
                        FileContent { bytes, mode },
                        &path,
                        collector,
                    );
                }
                _ => self.broken = true,
            }
        }
    }

    fn projected(
        &mut self,
        projected: &ProjectedVolumeSource,
        path: &str,
        around: &Surroundings<'_>,
        collector: &mut Collector<'_>,
    ) {
        let mode = default_mode(projected.default_mode, path, collector);
        for (i, source) in projected.sources.iter().flatten().enumerate() {
            let path = format!("{path}.sources[{i}]");
            let given = [
                source.config_map.is_some(),
                source.secret.is_some(),
                source.downward_api.is_some(),
                source.service_account_token.is_some(),
                source.cluster_trust_bundle.is_some(),
                source.pod_certificate.is_some(),
            ];
            if given.iter().filter(|there| **there).count() != 1 {
                collector.add(
                    path,
                    "Forbidden: may not specify more or less than 1 volume type",
                );
                self.broken = true;
                continue;
            }
            if let Some(map) = &source.config_map {
                let source = Source {
                    path: &format!("{path}.configMap"),
                    name_field: "name",
                    name: &map.name,
                    items: map.items.as_deref(),
                    optional: map.optional,
                    mode,
                };
                self.config_map(&source, around, collector);
            } else if let Some(secret) = &source.secret {
                let source = Source {
                    path: &format!("{path}.secret"),
                    name_field: "name",
                    name: &secret.name,
                    items: secret.items.as_deref(),
                    optional: secret.optional,
                    mode,
                };
                self.secret(&source, around, collector);
            } else if let Some(downward) = &source.downward_api {
                let items = downward.items.as_deref().unwrap_or_default();
                let path = format!("{path}.downwardAPI");
                self.downward(items, &path, mode, around, collector);
            }
            // The others are refused by the table of fields.
        }
    }

    fn add(
        &mut self,
        name: String,
        content: FileContent,
        path: &str,
        collector: &mut Collector<'_>,
    ) {
        if self.files.contains_key(&name) {
            collector.invalid(path, &name, "conflicting duplicate paths");
        }
        self.files.insert(name, content);
    }
}

fn of_config_map(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn of_secret(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    let text = secret
        .string_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    data.chain(text).collect()
}

fn file_path(name: &str, path: &str, collector: &mut Collector<'_>) -> bool {
    if name.is_empty() {
        collector.required(path);
        return false;
    }
    let good = names::relative_path(name) && !name.starts_with("..");
    if !good {
        collector.invalid(
            path,
            name,
            "must be a relative path that does not start with or contain '..'",
        );
    }
    good
}

/// The content of a downwardAPI file.
fn downward_text(
    item: &DownwardAPIVolumeFile,
    path: &str,
    around: &Surroundings<'_>,
    collector: &mut Collector<'_>,
) -> Option<String> {
    match (&item.field_ref, &item.resource_field_ref) {
        (Some(field), None) => {
            let text = environment::metadata_text(&field.field_path, &around.sources);
            if text.is_none() {
                collector.invalid(
                    format!("{path}.fieldRef.fieldPath"),
                    &field.field_path,
                    "is no field that downwardAPI volumes can take: metadata.name, metadata.namespace, metadata.uid, metadata.labels, metadata.annotations, metadata.labels['KEY'], metadata.annotations['KEY']",
                );
            }
            text
        }
        (None, Some(resource)) => {
            let path = format!("{path}.resourceFieldRef");
            let name = resource.container_name.as_deref().unwrap_or_default();
            let Some(container) = around.containers.iter().find(|c| c.name == name) else {
                if name.is_empty() {
                    collector.required(format!("{path}.containerName"));
                } else {
                    collector.not_found(format!("{path}.containerName"), name);
                }
                return None;
            };
            let divisor = resource.divisor.as_ref().map_or("0", |d| d.0.as_str());
            let amounts = (container.requests, container.limits);
            match environment::resource(&resource.resource, divisor, amounts) {
                Ok(ResourceAmount::Known(value)) => Some(value.to_string()),
                Ok(ResourceAmount::OfMachine(share)) => Some(
                    share
                        .amount(around.size.vcpus, around.size.memory_mib)
                        .to_string(),
                ),
                Err(why) => {
                    collector.invalid(format!("{path}.resource"), &resource.resource, why);
                    None
                }
            }
        }
        (Some(_), Some(_)) => {
            collector.invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
            None
        }
        (None, None) => {
            collector.add(
                path,
                "Required value: one of fieldRef and resourceFieldRef is required",
            );
            None
        }
    }
}
