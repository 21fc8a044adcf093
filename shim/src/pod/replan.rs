//! The plan of a pod that runs, made once more from what is on record of it: after a change of its Pod, and with what its
//! resource files say now. Called by live updates and `vmpod debug`; writes nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::durable::{self, DurableError};
use super::record::PodRecord;
use super::roots::PodPaths;
use crate::manifest::plan::PodPlan;
use crate::manifest::source::MANIFEST_BYTES;
use crate::manifest::{self, HostFacts, Problems};

/// No plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum ReplanError {
    /// The pod's own files.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// The pod's manifest or a resource file.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// What the change, the manifest or a resource file asks for.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The Pod on record is none: a mistake of vmpod.
    #[error("the Pod on record is not one")]
    NoPod,
}

/// Plans the pod of `record` with `change` made to its Pod. It keeps its uid and node; `what` is what messages name.
///
/// # Errors
/// When a file cannot be read or is wrong, or the changed pod is.
pub fn replan(
    paths: &PodPaths,
    record: &PodRecord,
    host: HostFacts,
    what: &str,
    change: impl FnOnce(&mut Pod),
) -> Result<PodPlan, ReplanError> {
    let stored: serde_json::Value = durable::read_json(&paths.manifest())?;
    let mut pod: Pod = serde_json::from_value(stored).map_err(|_| ReplanError::NoPod)?;
    change(&mut pod);
    let text = serde_json::to_string(&pod).map_err(|_| ReplanError::NoPod)?;
    let read = manifest::objects(&text, what)?;
    let Some((pod, document)) = read.pods.into_iter().next() else {
        return Err(ReplanError::NoPod);
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
    Ok(manifest::plan(&pod, &document, &objects, &host, what)?)
}

fn read_text(path: &Path) -> Result<String, ReplanError> {
    let mut text = String::new();
    let bound = MANIFEST_BYTES as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(bound).read_to_string(&mut text))
        .map_err(|source| ReplanError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}
