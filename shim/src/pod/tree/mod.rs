//! The pod's shared tree: what the guest sees at `/run/vmpod/shared`.
//!
//! Owned by the supervisor, in a mount namespace of its own: all mounts of the tree go with the supervisor and the
//! VMM, whoever kills them. Two directories make it up. The *skeleton* holds mount points and the pod's own files and is
//! written by the host alone; the *shared* directory is a read-only bind mount of it, on which root file systems and
//! volumes are mounted. A hostile guest can so write into volumes and root file systems, but cannot put a symbolic link
//! where the host will later resolve a path.

mod detached_mount;
mod etc_files;
mod files;
mod mapped_users;
mod members;
mod overlay;
mod removal;
mod snapshot_mount;
mod volumes;

pub(super) use detached_mount::DetachedMount;
pub use etc_files::{HostsFile, resolv_conf};
pub use files::{remove_old_files, write_files};
pub use members::{HostBind, RootSource, is_missing, of_files, with_writable_parts};
pub use removal::remove_tree;
pub use snapshot_mount::SnapshotMount;
pub use volumes::{VolumeError, check_host_path, disk_usage};

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use self::mapped_users::MappedUsers;
use super::id_ranges::IdRanges;
use super::record::{ContainerRecord, PodRecord};
use super::roots::PodPaths;

/// The shared tree cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A directory, file or mount.
    #[error("cannot {what} {}", path.display())]
    Make {
        /// What was tried.
        what: &'static str,
        /// On what.
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
    /// A root file system.
    #[error("cannot mount the root file system of container {container:?} from image {image:?}")]
    Overlay {
        /// Name in the manifest.
        container: String,
        /// Image as the manifest names it.
        image: String,
        /// Why.
        #[source]
        source: overlay::OverlayError,
    },
}

fn failing<'a, E: Into<io::Error>>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(E) -> TreeError + 'a {
    move |error| TreeError::Make {
        what,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// Gives the calling thread a mount namespace of its own, in which later mounts of the host appear and from which
/// nothing goes back. To be called before any other thread starts.
///
/// # Errors
/// When the process may not: it is not root.
pub fn enter_namespace() -> Result<(), TreeError> {
    let root = Path::new("/");
    super::host_mounts::remember().map_err(failing("keep hold of the mount namespace of", root))?;
    // SAFETY: CLONE_NEWNS unshares nothing that other code relies on (file descriptors stay shared).
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(failing("make a mount namespace for", root))?;
    mount_change(
        root,
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failing("detach from the host the mounts of", root))
}

/// The shared tree of a pod.
#[derive(Debug)]
pub struct SharedTree {
    paths: PodPaths,
    skeleton: PathBuf,
    shared: PathBuf,
    /// The pod's own user namespace, where it has one: files appear with its ids.
    users: Option<MappedUsers>,
}

impl SharedTree {
    /// Makes the tree with volumes and files; root file systems come one by one.
    ///
    /// # Errors
    /// The first part that cannot be made.
    pub fn create(
        paths: &PodPaths,
        record: &PodRecord,
        hosts: &HostsFile<'_>,
    ) -> Result<Self, TreeError> {
        let tree = Self::bare(paths, record.users)?;
        let skeleton = tree.skeleton.clone();
        for part in ["containers", "volumes"] {
            directory(&skeleton.join(part), 0o755)?;
        }
        tree.fill_etc(hosts, &record.resolv_conf)?;
        for container in record.init_containers.iter().chain(&record.containers) {
            tree.add_container(&container.name)?;
        }
        for volume in &record.volumes {
            volumes::mount(
                paths,
                volume,
                &skeleton.join("volumes"),
                &tree.shared.join("volumes"),
                tree.users.as_ref(),
            )
            .map_err(|source| TreeError::Volume {
                name: volume.name.clone(),
                source,
            })?;
        }
        Ok(tree)
    }

    /// Makes the pod's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
    ///
    /// # Errors
    /// The first that cannot be made.
    pub fn fill_etc(&self, hosts: &HostsFile<'_>, resolv_conf: &str) -> Result<(), TreeError> {
        let etc = self.skeleton.join("etc");
        directory(&etc, 0o755)?;
        file(&etc.join("hosts"), hosts.text().as_bytes())?;
        file(&etc.join("resolv.conf"), resolv_conf.as_bytes())?;
        file(
            &etc.join("hostname"),
            format!("{}\n", hosts.hostname).as_bytes(),
        )?;
        // Containers may change their /etc/hosts, as they may under Kubernetes.
        self.bind_writable("etc")
    }

    /// Makes the place of a container's own files.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn add_container(&self, name: &str) -> Result<(), TreeError> {
        let part = format!("containers/{name}");
        directory(&self.skeleton.join(&part), 0o755)?;
        self.bind_writable(&part)?;
        self.fresh_termination_log(name)
    }

    /// Skeleton and shared directory with nothing in them.
    fn bare(paths: &PodPaths, ids: Option<IdRanges>) -> Result<Self, TreeError> {
        let shared = paths.shared();
        let users = ids
            .map(MappedUsers::new)
            .transpose()
            .map_err(|source| TreeError::Make {
                what: "make a user namespace for the files of",
                path: shared.clone(),
                source,
            })?;
        let tree = Self {
            paths: paths.clone(),
            shared,
            skeleton: paths.run.join("skeleton"),
            users,
        };
        directory(&tree.skeleton, 0o755)?;
        directory(&tree.shared, 0o755)?;
        mount_bind(&tree.skeleton, &tree.shared).map_err(failing("bind", &tree.shared))?;
        // Shared, so that mounts made from now on reach the VMM's namespace.
        mount_change(&tree.shared, MountPropagationFlags::SHARED)
            .map_err(failing("share the mounts of", &tree.shared))?;
        mount_remount(
            &tree.shared,
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            "",
        )
        .map_err(failing("write-protect", &tree.shared))?;
        Ok(tree)
    }

    /// Mounts a fresh root file system for attempt `attempt` of `container`, and takes away the one of the attempt
    /// before with what was written to it.
    ///
    /// # Errors
    /// When a layer is missing or the overlay cannot be mounted.
    pub fn mount_rootfs(&self, container: &ContainerRecord, attempt: u32) -> Result<(), TreeError> {
        if let Some(before) = attempt.checked_sub(1) {
            self.unmount_rootfs(&container.name, before);
            self.fresh_termination_log(&container.name)?;
        }
        let part = format!("containers/{}.{attempt}", container.name);
        directory(&self.skeleton.join(&part), 0o755)?;
        directory(&self.skeleton.join(&part).join("rootfs"), 0o755)?;
        let writable = self.paths.writable(&container.name, attempt);
        overlay::mount(
            &container.layers,
            &writable,
            &self.shared.join(&part).join("rootfs"),
            self.users.as_ref(),
        )
        .map_err(|source| TreeError::Overlay {
            container: container.name.clone(),
            image: container.image.clone(),
            source,
        })
    }

    /// Takes away the root file system of an attempt that ended. What resists goes with the pod.
    fn unmount_rootfs(&self, container: &str, attempt: u32) {
        let part = format!("containers/{container}.{attempt}");
        let _ = unmount(
            self.shared.join(&part).join("rootfs"),
            UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
        );
        let _ = remove_tree(&self.paths.writable(container, attempt));
        let _ = remove_tree(&self.skeleton.join(&part));
    }

    /// An empty termination log that any user of the container may write to. The guest can have put anything in its
    /// place: it is removed by name, never opened.
    fn fresh_termination_log(&self, container: &str) -> Result<(), TreeError> {
        let path = self
            .skeleton
            .join("containers")
            .join(container)
            .join("termination-log");
        let _ = remove_tree(&path);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o666)))
            .map_err(|source| TreeError::Make {
                what: "make",
                path,
                source,
            })
    }

    fn bind_writable(&self, part: &str) -> Result<(), TreeError> {
        let target = self.shared.join(part);
        let source = self.skeleton.join(part);
        detached_mount::bind(&source, false, self.users.as_ref(), &target)
            .map_err(failing("bind", &target))?;
        mount_remount(
            &target,
            MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV,
            "",
        )
        .map_err(failing("set the mount flags of", &target))
    }

    /// Takes all mounts away. What is still used by a process that is about to go is detached.
    pub fn unmount(&self) {
        let _ = unmount(&self.shared, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

fn directory(path: &Path, mode: u32) -> Result<(), TreeError> {
    let made = match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| TreeError::Make {
            what: "make directory",
            path: path.to_owned(),
            source,
        })
}

fn file(path: &Path, content: &[u8]) -> Result<(), TreeError> {
    fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|source| TreeError::Make {
            what: "write",
            path: path.to_owned(),
            source,
        })
}

/// Whether an overlay with its writable layer below `state` can be mounted: tried, in a mount namespace that goes again.
///
/// # Errors
/// In words, when it cannot.
pub fn try_overlay(state: &Path) -> Result<(), String> {
    let own = !state.exists();
    let place = state.join(format!("overlay-check.{}", std::process::id()));
    let attempt = || -> Result<(), String> {
        let make = |path: &Path| {
            fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()))
        };
        let (lower, target) = (place.join("lower"), place.join("target"));
        make(&lower)?;
        make(&target)?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter_namespace().map_err(|e| super::journal::chain(&e))?;
                    overlay::mount(&[lower], &place.join("writable"), &target, None)
                        .map_err(|e| super::journal::chain(&e))
                })
                .join()
                .unwrap_or_else(|_| Err("the thread that tried it panicked".to_owned()))
        })
    };
    let result = attempt();
    let _ = remove_tree(&place);
    if own {
        let _ = fs::remove_dir(state);
    }
    result
}
