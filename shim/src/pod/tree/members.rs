//! Containers that come and go one by one (the CRI way), with what they mount of the host. Their root file systems come
//! as mounts that a snapshotter describes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::detached_mount::DetachedMount;
use super::snapshot_mount::{self, SnapshotMount};
use super::{SharedTree, TreeError, directory, file};
use crate::pod::id_ranges::IdRanges;
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
    /// What a container mounts in it is mounted on the host as well.
    pub shared: bool,
    /// Nobody in the pod writes to it; mounts below it stay as they are.
    pub read_only: bool,
    /// Nobody writes to what is mounted below it either.
    pub all_read_only: bool,
    /// Its files have the ids of the pod's user namespace; they may only be so where the tree has one.
    pub mapped: bool,
}

impl HostBind {
    /// Whether what is mounted below it may be written to although it itself may not.
    fn leaves_parts_writable(&self) -> bool {
        self.read_only && self.recursive && !self.all_read_only
    }
}

/// Places of those in `binds` whose sources are files.
#[must_use]
pub fn of_files(binds: &[HostBind]) -> Vec<usize> {
    let is_file = |bind: &HostBind| fs::metadata(&bind.source).is_ok_and(|found| found.is_file());
    let found = binds.iter().enumerate().filter(|(_, bind)| is_file(bind));
    found.map(|(number, _)| number).collect()
}

/// Places of those in `binds` that may not be written to themselves while something that is mounted below them may.
#[must_use]
pub fn with_writable_parts(binds: &[HostBind]) -> Vec<usize> {
    let found: Vec<(usize, &HostBind)> = binds
        .iter()
        .enumerate()
        .filter(|(_, bind)| bind.leaves_parts_writable())
        .collect();
    if found.is_empty() {
        return Vec::new();
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has_parts = |bind: &HostBind| {
        bind.source.canonicalize().is_ok_and(|source| {
            mounts_in(&mounts).any(|place| place != source && place.starts_with(&source))
        })
    };
    found
        .into_iter()
        .filter(|(_, bind)| has_parts(bind))
        .map(|(number, _)| number)
        .collect()
}

/// Mount points in the text of mountinfo (proc_pid_mountinfo(5)). Octal escapes stand for blanks and the like; a path with
/// one is compared up to it, which is enough to lie below another.
fn mounts_in(mountinfo: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter_map(|place| place.split('\\').next())
        .map(PathBuf::from)
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
    pub fn empty(paths: &PodPaths, users: Option<IdRanges>) -> Result<Self, TreeError> {
        let tree = Self::bare(paths, users)?;
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
                let failed = |source| TreeError::Make {
                    what: "bind the root file system",
                    path: path.clone(),
                    source,
                };
                let copy = DetachedMount::of(path, true).map_err(failed)?;
                copy.follow_host(true).map_err(failed)?;
                copy.attach(&target).map_err(failed)?;
            }
            RootSource::Mounts(mounts) => {
                for mount in mounts {
                    let scratch = self.paths.run.join("layers").join(id);
                    snapshot_mount::mount(mount, &target, self.users.as_ref(), &scratch)?;
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
        let failed = |source| TreeError::Make {
            what: "bind",
            path: bind.source.clone(),
            source,
        };
        let copy = DetachedMount::of(&bind.source, bind.recursive).map_err(failed)?;
        copy.follow_host(bind.follows_host).map_err(failed)?;
        if bind.read_only {
            copy.protect(bind.all_read_only).map_err(failed)?;
        }
        if bind.mapped {
            self.show(&copy).map_err(failed)?;
        }
        copy.attach(&target).map_err(failed)
    }

    fn show(&self, copy: &DetachedMount) -> io::Result<()> {
        match &self.users {
            Some(users) => copy.show_to(users),
            None => Err(io::Error::other(
                "it shall be mounted with ids of a user namespace, and the pod has none",
            )),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_bind_are_found_and_those_beside_it_are_not() {
        let text = "21 1 0:5 / /srv rw - ext4 x y\n22 21 0:6 / /srv/data/in\\040side rw - tmpfs t t\nbroken\n";
        let found: Vec<_> = mounts_in(text).collect();
        assert_eq!(found, [Path::new("/srv"), Path::new("/srv/data/in")]);
        let bind = HostBind {
            source: "/".into(),
            recursive: true,
            follows_host: false,
            shared: false,
            read_only: true,
            all_read_only: false,
            mapped: false,
        };
        // /proc is mounted below the root everywhere.
        let all = HostBind {
            all_read_only: true,
            ..bind.clone()
        };
        assert_eq!(with_writable_parts(&[all, bind]), [1]);
    }
}
