//! Live updates: volumes made of objects follow their ConfigMaps, Secrets, labels and annotations while the pod runs.
//!
//! Called by `vmpod update`, which the pod's supervisor starts when a `--resource` file has changed. The Pod and the objects
//! of its own manifest are kept in the pod's directory; further objects are read again from the files that were named at its
//! start. Environment variables keep their values, as under Kubernetes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::durable::{self, DurableError};
use super::process;
use super::record::PodRecord;
use super::replan::{ReplanError, replan};
use super::roots::PodPaths;
use super::tree::{self, VolumeError};
use crate::manifest::HostFacts;
use crate::manifest::plan::VolumeKind;

/// A pod's volumes cannot be brought up to date. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The pod cannot be planned again.
    #[error(transparent)]
    Plan(#[from] ReplanError),
    /// The pod's own files.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// Another update, for whose end this one waits.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
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
    let path = paths.run.join("refresh.lock");
    let _turn = process::lock(&path).map_err(|source| RefreshError::Lock { path, source })?;
    let plan = replan(paths, record, host, "the pod", |pod| changes.apply(pod))?;
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
