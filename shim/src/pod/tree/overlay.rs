//! A container's root file system: the image's layers below, a writable directory of the pod above.
//!
//! Layers are handed to the kernel one by one (fsconfig(2), `lowerdir+`, Linux 6.5), so that their number is not bound by
//! the page that mount(2) takes; an older kernel gets them in one string while that fits.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::detached_mount::DetachedMount;
use super::mapped_users::MappedUsers;

/// Longest value that fsconfig(2) takes for a string.
const OPTION_BYTES: usize = 255;

/// A root file system cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// No layers.
    #[error("the image has no layers")]
    NoLayers,
    /// A layer is gone from the store.
    #[error("layer {} is not in the image store; pull the image again", path.display())]
    LayerMissing {
        /// The directory.
        path: PathBuf,
    },
    /// A layer cannot be shown with the ids of the pod.
    #[error("cannot mount layer {} with the ids of the pod", path.display())]
    Layer {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The writable directory.
    #[error("cannot make directory {}", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The mount.
    #[error("the kernel refused {what} (writable layer in {}; its file system must support overlayfs: ext4, xfs, btrfs and tmpfs do, overlay, NFS and 9p do not)", writable.display())]
    Mount {
        /// Which step.
        what: &'static str,
        /// The writable directory.
        writable: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Mounts `layers` (top-most first) with the writable directory `writable` at `target`; where the pod has `users` of its own,
/// with their ids.
///
/// # Errors
/// When a layer is missing, the directory cannot be made or the kernel refuses.
pub fn mount(
    layers: &[PathBuf],
    writable: &Path,
    target: &Path,
    users: Option<&MappedUsers>,
) -> Result<(), OverlayError> {
    if layers.is_empty() {
        return Err(OverlayError::NoLayers);
    }
    for layer in layers {
        if !layer.is_dir() {
            return Err(OverlayError::LayerMissing {
                path: layer.clone(),
            });
        }
    }
    let upper = writable.join("upper");
    let work = writable.join("work");
    for path in [&upper, &work] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .map_err(|source| OverlayError::Writable {
                path: path.clone(),
                source,
            })?;
    }
    let mapped = users
        .map(|users| {
            let (uid, gid) = users.root();
            // What is written later comes with the pod's ids by itself.
            chown(&upper, Some(uid), Some(gid)).map_err(|source| OverlayError::Writable {
                path: upper.clone(),
                source,
            })?;
            MappedLayers::of(layers, &writable.join("layers"), users)
        })
        .transpose()?;
    let layers = mapped.as_ref().map_or(layers, |mapped| &mapped.places);
    let fail = |what| {
        move |errno: Errno| OverlayError::Mount {
            what,
            writable: writable.to_owned(),
            source: errno.into(),
        }
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("overlayfs"))?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", "vmpod").map_err(fail("the overlay's name"))?;
    set_lower(context, layers).map_err(fail("the layers"))?;
    fsconfig_set_string(context, "upperdir", upper.as_path()).map_err(fail("the upper layer"))?;
    fsconfig_set_string(context, "workdir", work.as_path()).map_err(fail("the work directory"))?;
    // Nobody reads the writable layer after a crash: no sync is worth its time.
    let _ = fsconfig_set_flag(context, "volatile");
    fsconfig_create(context).map_err(fail("the overlay"))?;
    let mounted = fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
    .map_err(fail("the overlay's mount"))?;
    move_mount(
        mounted.as_fd(),
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(fail("the overlay's place"))
}

/// Read-only mounts of layers that show their files with other ids, for as long as it takes to make an overlay of them: it
/// keeps copies of its own.
#[derive(Debug)]
pub(super) struct MappedLayers {
    /// In the order of the layers.
    pub(super) places: Vec<PathBuf>,
    /// The directory that they are in.
    below: PathBuf,
}

impl MappedLayers {
    pub(super) fn of(
        layers: &[PathBuf],
        below: &Path,
        users: &MappedUsers,
    ) -> Result<Self, OverlayError> {
        let mut mapped = Self {
            places: Vec::new(),
            below: below.to_owned(),
        };
        for (number, layer) in layers.iter().enumerate() {
            let place = below.join(number.to_string());
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&place)
                .map_err(|source| OverlayError::Writable {
                    path: place.clone(),
                    source,
                })?;
            let failed = |source| OverlayError::Layer {
                path: layer.clone(),
                source,
            };
            let copy = DetachedMount::of(layer, false).map_err(failed)?;
            // Nothing that clears the pod's directory away can reach the store through it.
            copy.protect(false).map_err(failed)?;
            copy.show_to(users).map_err(failed)?;
            copy.attach(&place).map_err(failed)?;
            mapped.places.push(place);
        }
        Ok(mapped)
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        for place in &self.places {
            let _ = unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            let _ = fs::remove_dir(place);
        }
        let _ = fs::remove_dir(&self.below);
    }
}

/// Sets the lower layers, top-most first.
pub(super) fn set_lower(
    context: rustix::fd::BorrowedFd<'_>,
    layers: &[PathBuf],
) -> Result<(), Errno> {
    for (number, layer) in layers.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", layer.as_path()) {
            Ok(()) => {}
            Err(Errno::INVAL) if number == 0 => return set_lower_joined(context, layers),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_lower_joined(context: rustix::fd::BorrowedFd<'_>, layers: &[PathBuf]) -> Result<(), Errno> {
    let mut joined = Vec::new();
    for layer in layers {
        if !joined.is_empty() {
            joined.push(b':');
        }
        for &byte in layer.as_os_str().as_encoded_bytes() {
            if matches!(byte, b':' | b'\\' | b',') {
                joined.push(b'\\');
            }
            joined.push(byte);
        }
    }
    if joined.len() > OPTION_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    fsconfig_set_string(context, "lowerdir", joined.as_slice())
}
