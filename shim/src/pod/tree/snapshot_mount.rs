//! A mount as a snapshotter describes it (containerd, api/types/mount.proto): type, source, options of mount(8). Made with
//! the new mount interface (fsopen(2)), so that the number of an overlay's layers is not bound by the page that mount(2)
//! takes.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::detached_mount::DetachedMount;
use super::mapped_users::MappedUsers;
use super::overlay::{self, MappedLayers};
use crate::pod::journal::chain;

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMount {
    /// File system type; `bind` for a directory of the host.
    pub kind: String,
    /// Device, directory or name.
    pub source: PathBuf,
    /// Options.
    pub options: Vec<String>,
}

/// It cannot be made.
#[derive(Debug)]
pub struct SnapshotError {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

/// Options about the mount rather than its file system, and what they set.
fn attribute(option: &str) -> Option<MountAttrFlags> {
    Some(match option {
        "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        "relatime" | "rw" | "suid" | "dev" | "exec" | "atime" | "rbind" | "bind" | "rprivate"
        | "private" | "rslave" | "slave" | "rshared" | "shared" => MountAttrFlags::empty(),
        _ => return None,
    })
}

/// Whether `option` says that files shall have the ids of a user namespace (containerd, core/mount): the pod's.
fn is_mapping(option: &str) -> bool {
    option.starts_with("uidmap=") || option.starts_with("gidmap=")
}

/// Makes `wanted` at `target`; with the ids of `users` where its options ask for ids, for which `scratch` may be made and is
/// removed again. Device files in it cannot be used on the host; in the guest they name the guest's devices.
pub(super) fn mount(
    wanted: &SnapshotMount,
    target: &Path,
    users: Option<&MappedUsers>,
    scratch: &Path,
) -> Result<(), SnapshotError> {
    let mapped = wanted.options.iter().any(|option| is_mapping(option));
    let users = match users {
        None if mapped => {
            return Err(SnapshotError {
                what: "mount with ids of a user namespace, which the pod does not have,",
                path: wanted.source.clone(),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        users => users.filter(|_| mapped),
    };
    let fail = |what| {
        move |errno: Errno| SnapshotError {
            what,
            path: wanted.source.clone(),
            source: errno.into(),
        }
    };
    let has = |name: &str| wanted.options.iter().any(|option| option == name);
    if wanted.kind == "bind" || has("bind") || has("rbind") {
        let failed = |source| SnapshotError {
            what: "bind the root file system",
            path: wanted.source.clone(),
            source,
        };
        let copy = DetachedMount::of(&wanted.source, has("rbind")).map_err(failed)?;
        copy.follow_host(false).map_err(failed)?;
        if has("ro") {
            copy.protect(false).map_err(failed)?;
        }
        if let Some(users) = users {
            copy.show_to(users).map_err(failed)?;
        }
        return copy.attach(target).map_err(failed);
    }
    let context = fsopen(wanted.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(fail("use the file system type of the root file system"))?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", wanted.source.as_path())
        .map_err(fail("name the source of the root file system"))?;
    let refused = fail("set an option of the root file system");
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    // Until the overlay has copies of its own.
    let mut layers_shown = None;
    for option in wanted.options.iter().filter(|option| !is_mapping(option)) {
        if let Some(flags) = attribute(option) {
            attributes |= flags;
            if option == "ro" && wanted.kind != "overlay" {
                // A device that is read-only itself can only be mounted so.
                fsconfig_set_flag(context, "ro").map_err(&refused)?;
            }
            continue;
        }
        let set = match option.split_once('=') {
            Some(("lowerdir", layers)) if wanted.kind == "overlay" => {
                let mut layers = split_layers(layers);
                if let Some(users) = users {
                    let shown = MappedLayers::of(&layers, scratch, users).map_err(|error| {
                        SnapshotError {
                            what: "mount with the ids of the pod the layers of the root file system",
                            path: wanted.source.clone(),
                            source: io::Error::other(chain(&error)),
                        }
                    })?;
                    layers.clone_from(&shown.places);
                    layers_shown = Some(shown);
                }
                overlay::set_lower(context, &layers)
            }
            Some((name, value)) => fsconfig_set_string(context, name, value),
            None => fsconfig_set_flag(context, option.as_str()),
        };
        set.map_err(|errno| SnapshotError {
            what: "set an option of the root file system,",
            path: PathBuf::from(option),
            source: errno.into(),
        })?;
    }
    fsconfig_create(context).map_err(fail("make the root file system"))?;
    let mounted = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(fail("mount the root file system"))?;
    drop(layers_shown);
    let mounted = DetachedMount::from(mounted);
    let failed = |source| SnapshotError {
        what: "place the root file system",
        path: wanted.source.clone(),
        source,
    };
    // An overlay shows the ids of its layers.
    if let Some(users) = users.filter(|_| wanted.kind != "overlay") {
        mounted.show_to(users).map_err(failed)?;
    }
    mounted.attach(target).map_err(failed)
}

/// Directories of a `lowerdir` option: separated by colons, which stand for themselves after a backslash.
fn split_layers(text: &str) -> Vec<PathBuf> {
    let mut layers = Vec::new();
    let mut layer = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => layer.extend(characters.next()),
            ':' => layers.push(PathBuf::from(std::mem::take(&mut layer))),
            other => layer.push(other),
        }
    }
    layers.push(layer.into());
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_colons_that_stand_alone() {
        assert_eq!(
            split_layers(r"/a:/b\:c:/d"),
            [Path::new("/a"), Path::new("/b:c"), Path::new("/d")]
        );
    }

    #[test]
    fn options_of_the_mount_are_told_from_those_of_the_file_system() {
        assert_eq!(attribute("ro"), Some(MountAttrFlags::MOUNT_ATTR_RDONLY));
        assert_eq!(attribute("rw"), Some(MountAttrFlags::empty()));
        assert_eq!(attribute("index=off"), None);
        assert_eq!(attribute("volatile"), None);
    }
}
