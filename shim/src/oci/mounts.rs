//! The `mounts` list: what every container has, the pod's files, and the volumes.

use serde_json::{Value, json};
use vmpod_agent_protocol::mount_option;

use super::process::Environment;
use super::{ComposeError, Composition};
use crate::manifest::plan::{MountPlan, Propagation, VolumeKind};
use crate::pod::guest_paths;

/// The mounts, parents before children.
pub(super) fn mounts(
    c: &Composition<'_>,
    environment: &Environment,
) -> Result<Value, ComposeError> {
    let privileged = c.container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
    ];
    let taken = |path: &str| {
        c.container
            .mounts
            .iter()
            .any(|m| m.mount_path.trim_end_matches('/') == path)
    };
    let termination_log = (
        c.container.termination_message_path.as_str(),
        guest_paths::termination_log(&c.container.name),
    );
    for (destination, source) in guest_paths::etc().into_iter().chain([termination_log]) {
        if !taken(destination) {
            list.push(bind(
                destination,
                &source,
                ["rbind", "rprivate", "rw", mount_option::FILE]
                    .map(str::to_owned)
                    .to_vec(),
            ));
        }
    }
    let mut volumes = c
        .container
        .mounts
        .iter()
        .map(|m| volume(c, m, environment))
        .collect::<Result<Vec<_>, _>>()?;
    // Kubernetes sorts mounts so that a volume inside another volume's mount path is not hidden by it.
    volumes.sort_by_key(|m| {
        m["destination"]
            .as_str()
            .map(|d| d.trim_end_matches('/').matches('/').count())
    });
    list.extend(volumes);
    Ok(Value::Array(list))
}

fn bind(destination: &str, source: &str, options: Vec<String>) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn volume(
    c: &Composition<'_>,
    mount: &MountPlan,
    environment: &Environment,
) -> Result<Value, ComposeError> {
    let in_memory = c
        .plan
        .volumes
        .iter()
        .any(|v| v.name == mount.volume && matches!(v.kind, VolumeKind::EmptyDirMemory { .. }));
    let source = if in_memory {
        guest_paths::memory_volume(&mount.volume)
    } else {
        guest_paths::volume(&mount.volume)
    };
    let mut options = vec!["rbind".to_owned()];
    options.push(
        match mount.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        }
        .to_owned(),
    );
    options.push(if mount.read_only { "ro" } else { "rw" }.to_owned());
    if mount.recursive_read_only {
        options.push("rro".to_owned());
    }
    let sub_path = if mount.expand_sub_path {
        environment.expand(&mount.sub_path)
    } else {
        mount.sub_path.clone()
    };
    if sub_path.starts_with('/')
        || sub_path.split('/').any(|part| part == "..")
        || sub_path.contains('\0')
    {
        return Err(ComposeError::SubPath {
            container: c.container.name.clone(),
            volume: mount.volume.clone(),
            path: sub_path,
        });
    }
    if !sub_path.is_empty() {
        options.push(format!("{}{sub_path}", mount_option::SUB_PATH));
    }
    Ok(bind(&mount.mount_path, &source, options))
}
