//! Containers that come and go one by one (the CRI way), with what they mount of the host. Their root file systems come
//! as mounts that a snapshotter describes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};

use super::snapshot_mount::{self, SnapshotMount};
use super::{SharedTree, TreeError, directory, failing, file};
use crate::pod::roots::PodPaths;
use crate::pod::tree::remove_tree;

/// Something of the host that a container mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBind {
    /// Path on the host; symbolic links are followed, as other runtimes do.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// What the host mounts below it later appears as well.
    pub follows_host: bool,
    /// Nobody in the pod writes to it.
    pub read_only: bool,
}

/// Where a container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A directory of the host (`root.path` of the OCI configuration).
    Directory(PathBuf),
    /// Mounts, the last one of which is the root.
    Mounts(Vec<SnapshotMount>),
}

impl SharedTree {
    /// Makes a tree without containers and volumes.
    ///
    /// # Errors
    /// The first part that cannot be made.
    pub fn empty(paths: &PodPaths) -> Result<Self, TreeError> {
        let tree = Self::bare(paths)?;
        directory(&tree.skeleton.join("containers"), 0o755)?;
        Ok(tree)
    }

    /// Adds container `id` with its root file system and `binds`, which the guest finds by their numbers. On an error
    /// nothing of it is left.
    ///
    /// # Errors
    /// The part that cannot be mounted.
    pub fn add_member(
        &self,
        id: &str,
        root: &RootSource,
        binds: &[HostBind],
    ) -> Result<(), TreeError> {
        let made = self.mount_member(id, root, binds);
        if made.is_err() {
            self.remove_member(id);
        }
        made
    }

    fn mount_member(
        &self,
        id: &str,
        root: &RootSource,
        binds: &[HostBind],
    ) -> Result<(), TreeError> {
        let part = Path::new("containers").join(id);
        for made in [&part, &part.join("rootfs"), &part.join("mounts")] {
            directory(&self.skeleton.join(made), 0o755)?;
        }
        let target = self.shared.join(&part).join("rootfs");
        match root {
            RootSource::Directory(path) => {
                mount_bind_recursive(path, &target)
                    .map_err(failing("bind the root file system", path))?;
                follow_host(&target)?;
            }
            RootSource::Mounts(mounts) => {
                for mount in mounts {
                    snapshot_mount::mount(mount, &target)?;
                }
            }
        }
        for (number, bind) in binds.iter().enumerate() {
            let part = part.join("mounts").join(number.to_string());
            self.bind_member(&part, bind)?;
        }
        Ok(())
    }

    fn bind_member(&self, part: &Path, bind: &HostBind) -> Result<(), TreeError> {
        let place = self.skeleton.join(part);
        let found = fs::metadata(&bind.source).map_err(|source| TreeError::Make {
            what: "look at the source of a mount,",
            path: bind.source.clone(),
            source,
        })?;
        if found.is_dir() {
            directory(&place, 0o755)?;
        } else {
            file(&place, b"")?;
        }
        let target = self.shared.join(part);
        let bound = if bind.recursive {
            mount_bind_recursive(&bind.source, &target)
        } else {
            mount_bind(&bind.source, &target)
        };
        bound.map_err(failing("bind", &bind.source))?;
        if !bind.follows_host {
            mount_change(
                &target,
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .map_err(failing("set the propagation of", &target))?;
        }
        follow_host(&target)?;
        if bind.read_only {
            mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")
                .map_err(failing("write-protect", &target))?;
        }
        Ok(())
    }

    /// Takes container `id` away. What resists goes with the tree.
    pub fn remove_member(&self, id: &str) {
        let part = Path::new("containers").join(id);
        let detach = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let mounts = fs::read_dir(self.skeleton.join(&part).join("mounts"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| Path::new("mounts").join(entry.file_name()));
        for place in mounts.chain([PathBuf::from("rootfs")]) {
            let target = self.shared.join(&part).join(place);
            // Several mounts may lie upon each other.
            while unmount(&target, detach).is_ok() {}
        }
        let _ = remove_tree(&self.skeleton.join(&part));
    }
}

/// What is mounted on the host below the source appears below `target`; nothing goes back. The tree's own mounts still
/// reach the VMM.
fn follow_host(target: &Path) -> Result<(), TreeError> {
    mount_change(
        target,
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .and_then(|()| {
        mount_change(
            target,
            MountPropagationFlags::SHARED | MountPropagationFlags::REC,
        )
    })
    .map_err(failing("set the propagation of", target))
}

impl From<snapshot_mount::SnapshotError> for TreeError {
    fn from(error: snapshot_mount::SnapshotError) -> Self {
        let snapshot_mount::SnapshotError { what, path, source } = error;
        Self::Make { what, path, source }
    }
}

/// Whether `error` says that something is not there.
#[must_use]
pub fn is_missing(error: &TreeError) -> bool {
    matches!(error, TreeError::Make { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
