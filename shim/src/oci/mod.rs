//! OCI runtime configurations, composed from a Pod's plan and its image's configuration.
//!
//! The paths in them are guest paths. Nothing here touches the host but the reading of a Localhost seccomp profile.

mod mounts;
mod process;
mod resources;
pub mod seccomp;
mod signal;

use std::path::Path;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::manifest::plan::{ContainerPlan, PodPlan};

pub use signal::{signal_number, stop_signal};

/// Who an image says its processes run as: `User` of its configuration, looked up in the image's own `/etc/passwd` and
/// `/etc/group`, or what the manifest asks for, looked up there as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups that `/etc/group` gives the user.
    pub additional_gids: Vec<u32>,
    /// Home directory, for `HOME`.
    pub home: Option<String>,
}

/// Addresses that environment variables may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAddresses {
    /// The pod's own.
    pub pod_ip: String,
    /// The host's on the pod's network.
    pub host_ip: String,
}

/// What a container is composed from.
#[derive(Clone, Copy, Debug)]
pub struct Composition<'a> {
    /// The pod.
    pub plan: &'a PodPlan,
    /// One of its containers.
    pub container: &'a ContainerPlan,
    /// Configuration of the container's image.
    pub image: &'a ImageConfiguration,
    /// The user it runs as: see [`user_to_resolve`].
    pub user: &'a ContainerUser,
    /// Addresses of the pod.
    pub addresses: &'a PodAddresses,
    /// Directory of Localhost seccomp profiles.
    pub seccomp_directory: &'a Path,
}

/// A container cannot be composed as the manifest and the image say.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// Neither manifest nor image names a command.
    #[error(
        "container {container}: no command: neither the manifest nor image {image} names one; set command"
    )]
    NoCommand {
        /// Container name.
        container: String,
        /// Image reference.
        image: String,
    },
    /// runAsNonRoot and user 0.
    #[error(
        "container {container}: runAsNonRoot is set and image {image} runs as user 0; set runAsUser, or use an image with a user of its own"
    )]
    Root {
        /// Container name.
        container: String,
        /// Image reference.
        image: String,
    },
    /// A `subPathExpr` that leads out of its volume.
    #[error(
        "container {container}: subPathExpr of volume {volume} expands to {path:?}; it must be a relative path without '..'"
    )]
    SubPath {
        /// Container name.
        container: String,
        /// Volume name.
        volume: String,
        /// What it expands to.
        path: String,
    },
    /// A seccomp profile could not be used.
    #[error("container {container}: cannot use its seccomp profile")]
    Seccomp {
        /// Container name.
        container: String,
        /// Why.
        #[source]
        source: seccomp::SeccompError,
    },
    /// The composed text is no OCI runtime configuration: a mistake of vmpod.
    #[error("container {container}: the composed runtime configuration is not valid")]
    Invalid {
        /// Container name.
        container: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What to look up in the image's `/etc/passwd`: the manifest's `runAsUser` and `runAsGroup`, else the image's `User`.
#[must_use]
pub fn user_to_resolve(container: &ContainerPlan, image: &ImageConfiguration) -> String {
    let of_image = image
        .config()
        .as_ref()
        .and_then(|c| c.user().clone())
        .unwrap_or_default();
    match (
        container.security.run_as_user,
        container.security.run_as_group,
    ) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, Some(group)) => {
            let user = of_image
                .split(':')
                .next()
                .filter(|u| !u.is_empty())
                .unwrap_or("0");
            format!("{user}:{group}")
        }
        (None, None) => of_image,
    }
}

/// Composes the OCI runtime configuration of one container. `root.path` is the root file system of attempt 0.
///
/// # Errors
/// No command, root where it is forbidden, a subPathExpr that leads out, an unusable seccomp profile.
pub fn compose(c: Composition<'_>) -> Result<Spec, ComposeError> {
    let name = || c.container.name.clone();
    if c.container.security.run_as_non_root && c.user.uid == 0 {
        return Err(ComposeError::Root {
            container: name(),
            image: c.container.image.clone(),
        });
    }
    let environment = process::environment(&c);
    let seccomp =
        seccomp::filter(&c.container.security, c.seccomp_directory).map_err(|source| {
            ComposeError::Seccomp {
                container: name(),
                source,
            }
        })?;
    let mut linux = json!({
        "namespaces": namespaces(c.plan),
        "resources": resources::resources(c.container),
        "devices": resources::devices(c.container),
        "maskedPaths": if c.container.security.unmasked_proc { Value::Array(vec![]) } else { json!(MASKED_PATHS) },
        "readonlyPaths": if c.container.security.unmasked_proc { Value::Array(vec![]) } else { json!(READ_ONLY_PATHS) },
    });
    if let (Some(filter), Some(linux)) = (seccomp, linux.as_object_mut()) {
        linux.insert("seccomp".into(), filter);
    }
    let spec = json!({
        "ociVersion": "1.2.0",
        "root": {
            "path": crate::pod::guest_paths::rootfs(&c.container.name, 0),
            "readonly": c.container.security.read_only_root,
        },
        "process": process::process(&c, &environment)?,
        "mounts": mounts::mounts(&c, &environment)?,
        "linux": linux,
    });
    serde_json::from_value(spec).map_err(|source| ComposeError::Invalid {
        container: name(),
        source,
    })
}

/// Network, IPC and UTS are the pod's, which is what the guest agent does with a namespace that is not named.
fn namespaces(plan: &PodPlan) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if !plan.share_process_namespace {
        list.push(json!({"type": "pid"}));
    }
    Value::Array(list)
}

/// What containerd masks in `/proc` and `/sys`.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What containerd makes read-only in `/proc`.
const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[cfg(test)]
mod tests;
