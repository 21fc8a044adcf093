//! `volumeDevices`: block devices and files of the host, attached to the machine before its pod starts. The containers'
//! configurations get the numbers that the guest's kernel gives out.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Pod;
use crate::pod::agent::{Agent, AgentError};
use crate::pod::vmm::{Vmm, VmmError};

/// Permission bits of a disk in a container, as block devices have them.
const MODE: u32 = 0o660;

/// A disk is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open {} for a container's volumeDevices", path.display())]
    Open {
        /// Path on the host.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is neither a block device nor a file: volumeDevices needs one", path.display())]
    Kind {
        /// Path on the host.
        path: PathBuf,
    },
    /// The VMM refuses.
    #[error("cannot attach {} to the pod's machine", path.display())]
    Attach {
        /// Path on the host.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: VmmError,
    },
    /// The guest does not find it.
    #[error("the guest cannot use {}", path.display())]
    Find {
        /// Path on the host.
        path: PathBuf,
        /// The agent's answer.
        #[source]
        source: AgentError,
    },
}

/// Attaches each disk that containers of `pod` have, once, and completes their configurations.
pub(super) async fn attach(pod: &mut Pod, vmm: &mut Vmm, agent: &Agent) -> Result<(), DiskError> {
    let record = &mut pod.record;
    let mut known: BTreeMap<PathBuf, (u32, u32)> = BTreeMap::new();
    let containers = record
        .init_containers
        .iter_mut()
        .chain(&mut record.containers);
    for container in containers {
        for disk in &container.devices {
            let numbers = match known.get(&disk.source) {
                Some(numbers) => *numbers,
                None => {
                    let serial = format!("disk{}", known.len());
                    let numbers = attach_one(&disk.source, serial, vmm, agent).await?;
                    known.insert(disk.source.clone(), numbers);
                    numbers
                }
            };
            complete(&mut container.oci_spec, &disk.path, numbers);
        }
    }
    Ok(())
}

async fn attach_one(
    path: &Path,
    serial: String,
    vmm: &mut Vmm,
    agent: &Agent,
) -> Result<(u32, u32), DiskError> {
    let (file, read_only) = open(path)?;
    let place = vmm
        .attach_block(&file, &serial, read_only)
        .await
        .map_err(|source| DiskError::Attach {
            path: path.to_owned(),
            source,
        })?;
    agent
        .attach_block(&place, serial)
        .await
        .map_err(|source| DiskError::Find {
            path: path.to_owned(),
            source,
        })
}

/// Opens a disk for writing where that may be, and says whether it may not.
fn open(path: &Path) -> Result<(File, bool), DiskError> {
    let failed = |source| DiskError::Open {
        path: path.to_owned(),
        source,
    };
    // Looked at first: the opening of another kind of file may wait, or do something.
    let found = std::fs::metadata(path).map_err(failed)?.file_type();
    if !found.is_block_device() && !found.is_file() {
        return Err(DiskError::Kind {
            path: path.to_owned(),
        });
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok((file, false)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok((File::open(path).map_err(failed)?, true))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Gives a container the block device of those numbers, and the right to use it.
fn complete(spec: &mut Value, path: &str, (major, minor): (u32, u32)) {
    let device = json!({
        "path": path, "type": "b", "major": major, "minor": minor, "fileMode": MODE, "uid": 0, "gid": 0,
    });
    let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "rwm"});
    for (list, entry) in [
        ("/linux/devices", device),
        ("/linux/resources/devices", rule),
    ] {
        push(spec, list, entry);
    }
}

/// Appends `entry` to the list at `pointer`, which is made where it is not.
fn push(spec: &mut Value, pointer: &str, entry: Value) {
    let mut place = spec;
    for name in pointer.trim_start_matches('/').split('/') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
    }
    match place.as_array_mut() {
        Some(list) => list.push(entry),
        None => *place = json!([entry]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_gets_the_device_and_the_rule() {
        let mut spec = json!({"linux": {"resources": {"devices": [{"allow": false}]}}});
        complete(&mut spec, "/dev/x", (254, 16));
        assert_eq!(spec["linux"]["devices"][0]["minor"], 16);
        assert_eq!(spec["linux"]["resources"]["devices"][1]["access"], "rwm");
        let mut empty = json!({});
        complete(&mut empty, "/dev/x", (254, 0));
        assert_eq!(empty["linux"]["devices"][0]["path"], "/dev/x");
    }

    #[test]
    fn disk_is_a_file_or_a_block_device_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(directory.path()),
            Err(DiskError::Kind { .. })
        ));
        assert!(matches!(
            open(Path::new("/dev/null")),
            Err(DiskError::Kind { .. })
        ));
        assert!(matches!(
            open(&directory.path().join("none")),
            Err(DiskError::Open { .. })
        ));
        let file = directory.path().join("disk");
        std::fs::write(&file, [0; 512]).unwrap();
        assert!(!open(&file).unwrap().1);
    }
}
