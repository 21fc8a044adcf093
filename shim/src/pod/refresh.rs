//! Live updates: volumes made of objects follow their ConfigMaps, Secrets, labels and annotations while the pod runs.
//!
//! Called by `vmpod update`, which the pod's supervisor starts when a `--resource` file has changed. The Pod and the objects
//! of its own manifest are kept in the pod's directory; further objects are read again from the files that were named at its
//! start. Environment variables keep their values, as under Kubernetes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::durable::{self, DurableError};
use super::record::PodRecord;
use super::roots::PodPaths;
use super::tree::{self, VolumeError};
use crate::manifest::plan::VolumeKind;
use crate::manifest::source::MANIFEST_BYTES;
use crate::manifest::{self, HostFacts, Problems};

/// A pod's volumes cannot be brought up to date. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The pod's own files.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A resource file, or what the pod's volumes take from it.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The Pod on record is none: a mistake of vmpod.
    #[error("the Pod on record is not one")]
    NoPod,
    /// A volume.
    #[error("volume {name:?}")]
    Volume {
        /// Name in the manifest.
        name: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
}

/// Changes of a pod's metadata, key by key; `None` takes the key away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, Option<String>>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, Option<String>>,
}

impl Metadata {
    fn apply(&self, pod: &mut Pod) {
        let metadata = &mut pod.metadata;
        for (changes, of_pod) in [
            (&self.labels, &mut metadata.labels),
            (&self.annotations, &mut metadata.annotations),
        ] {
            for (key, value) in changes {
                let of_pod = of_pod.get_or_insert_default();
                match value {
                    Some(value) => of_pod.insert(key.clone(), value.clone()),
                    None => of_pod.remove(key),
                };
            }
        }
    }
}

/// How long readers in the guest may be on their way through the link to the old files.
const READERS: Duration = Duration::from_millis(500);

/// Brings the volumes of a pod up to date. Returns the names of those that have changed.
///
/// # Errors
/// When a resource file cannot be read or is wrong, or a key that the pod asks for is gone.
pub fn refresh(
    paths: &PodPaths,
    record: &PodRecord,
    changes: &Metadata,
    host: HostFacts,
) -> Result<Vec<String>, RefreshError> {
    // Two at a time would each take the other's directories away.
    let _turn = turn(&paths.run.join("refresh.lock"))?;
    let stored: serde_json::Value = durable::read_json(&paths.manifest())?;
    let mut pod: Pod = serde_json::from_value(stored).map_err(|_| RefreshError::NoPod)?;
    changes.apply(&mut pod);
    let text = serde_json::to_string(&pod).map_err(|_| RefreshError::NoPod)?;
    let read = manifest::objects(&text, "the pod on record")?;
    let Some((pod, document)) = read.pods.into_iter().next() else {
        return Err(RefreshError::NoPod);
    };
    let own = read_text(&paths.source())?;
    let mut objects = manifest::objects(&own, "the pod's manifest")?;
    for path in &record.resources {
        let file = path.display().to_string();
        objects.absorb(manifest::objects(&read_text(path)?, &file)?);
    }
    let host = HostFacts {
        uid: record.uid.clone(),
        node_name: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or(host.node_name),
        ..host
    };
    let plan = manifest::plan(&pod, &document, &objects, &host, "the pod")?;
    let mut changed: Vec<String> = Vec::new();
    for volume in plan.volumes {
        let VolumeKind::Files { files } = volume.kind else {
            continue;
        };
        let written = tree::write_files(&paths.files(&volume.name), &files, volume.fs_group);
        match written {
            Ok(true) => changed.push(volume.name),
            Ok(false) => {}
            Err(source) => {
                return Err(RefreshError::Volume {
                    name: volume.name,
                    source,
                });
            }
        }
    }
    if *changes != Metadata::default() {
        durable::write_json(&paths.manifest(), &plan.object)?;
    }
    if !changed.is_empty() {
        std::thread::sleep(READERS);
    }
    for name in &changed {
        tree::remove_old_files(&paths.files(name)).map_err(|source| RefreshError::Volume {
            name: name.clone(),
            source,
        })?;
    }
    Ok(changed)
}

fn turn(path: &Path) -> Result<File, RefreshError> {
    let failing = |what| {
        move |source| RefreshError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failing("open"))?;
    file.lock().map_err(failing("lock"))?;
    Ok(file)
}

fn read_text(path: &Path) -> Result<String, RefreshError> {
    let mut text = String::new();
    let bound = MANIFEST_BYTES as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(bound).read_to_string(&mut text))
        .map_err(|source| RefreshError::File {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}
