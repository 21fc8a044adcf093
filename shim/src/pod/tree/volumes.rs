//! Volumes of the shared tree: paths of the host, directories of the pod, files with known content.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change, mount_remount};

use super::detached_mount;
use super::mapped_users::MappedUsers;
use super::overlay;
use crate::manifest::plan::HostPathType;
use crate::pod::record::{VolumeRecord, VolumeSource};
use crate::pod::roots::PodPaths;

/// A volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A hostPath that should be there is not.
    #[error("hostPath {}: {expected}, and there is nothing at this path", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
        /// What the type asks for.
        expected: &'static str,
    },
    /// A hostPath is something else.
    #[error("hostPath {}: {expected}, and the path is {found}", path.display())]
    WrongType {
        /// The path.
        path: PathBuf,
        /// What the type asks for.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A `subPath` leads out of the volume.
    #[error(
        "subPath {sub_path:?} leads out of the volume or through something that is no directory"
    )]
    SubPath {
        /// The path.
        sub_path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file name that could leave the volume.
    #[error("file name {name:?} is not a relative path without `..`")]
    FileName {
        /// The name.
        name: String,
    },
    /// An image.
    #[error("cannot mount its image")]
    Image {
        /// Why.
        #[source]
        source: Box<overlay::OverlayError>,
    },
    /// Something else.
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
}

pub(super) fn failing<'a, E: Into<io::Error>>(
    what: &'static str,
    path: &'a Path,
) -> impl Fn(E) -> VolumeError + 'a {
    move |error| VolumeError::Make {
        what,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// Checks a hostPath against its type (Kubernetes API, HostPathVolumeSource) without changing anything. Symbolic links
/// are followed, as Kubernetes does.
///
/// # Errors
/// When the path is missing where it must be there, or is something else.
pub fn check_host_path(path: &Path, type_: HostPathType) -> Result<(), VolumeError> {
    let expected = match type_ {
        HostPathType::Unset => "any path will do",
        HostPathType::DirectoryOrCreate | HostPathType::Directory => {
            "its type asks for a directory"
        }
        HostPathType::FileOrCreate | HostPathType::File => "its type asks for a file",
        HostPathType::Socket => "its type asks for a Unix socket",
        HostPathType::CharDevice => "its type asks for a character device",
        HostPathType::BlockDevice => "its type asks for a block device",
    };
    let found = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match type_ {
                HostPathType::Unset
                | HostPathType::DirectoryOrCreate
                | HostPathType::FileOrCreate => Ok(()),
                _ => Err(VolumeError::Missing {
                    path: path.to_owned(),
                    expected,
                }),
            };
        }
        Err(error) => return Err(failing("look at", path)(error)),
    };
    let right = match type_ {
        HostPathType::Unset => true,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => found.is_dir(),
        HostPathType::FileOrCreate | HostPathType::File => found.is_file(),
        HostPathType::Socket => found.is_socket(),
        HostPathType::CharDevice => found.is_char_device(),
        HostPathType::BlockDevice => found.is_block_device(),
    };
    if right {
        return Ok(());
    }
    Err(VolumeError::WrongType {
        path: path.to_owned(),
        expected,
        found: if found.is_dir() {
            "a directory"
        } else if found.is_file() {
            "a file"
        } else if found.is_socket() {
            "a Unix socket"
        } else if found.is_char_device() {
            "a character device"
        } else if found.is_block_device() {
            "a block device"
        } else if found.is_fifo() {
            "a named pipe"
        } else {
            "something else"
        },
    })
}

/// Makes the source of `volume` where it is to be made, and mounts it at `<shared>/<name>`; `skeleton` is the same
/// directory as the host writes it.
pub(super) fn mount(
    paths: &PodPaths,
    volume: &VolumeRecord,
    skeleton: &Path,
    shared: &Path,
    users: Option<&MappedUsers>,
) -> Result<(), VolumeError> {
    let source = match &volume.source {
        VolumeSource::HostPath { path, type_ } => {
            check_host_path(path, *type_)?;
            make_host_path(path, *type_)?;
            path.clone()
        }
        VolumeSource::EmptyDir { .. } => {
            let path = paths.volume(&volume.name);
            make_empty_dir(&path, volume.fs_group)?;
            path
        }
        VolumeSource::Files => paths.files(&volume.name),
        VolumeSource::Image { layers, .. } => {
            return mount_image(
                volume,
                layers,
                &paths.volume(&volume.name),
                (skeleton, shared),
                users,
            );
        }
    };
    if !matches!(volume.source, VolumeSource::Files) && source.is_dir() {
        for sub_path in &volume.sub_paths {
            make_sub_path(&source, sub_path).map_err(|errno| VolumeError::SubPath {
                sub_path: sub_path.clone(),
                source: errno.into(),
            })?;
        }
    }
    let point = skeleton.join(&volume.name);
    if source.is_dir() {
        DirBuilder::new()
            .mode(0o755)
            .create(&point)
            .map_err(failing("make mount point", &point))?;
    } else {
        fs::write(&point, "").map_err(failing("make mount point", &point))?;
    }
    let target = shared.join(&volume.name);
    detached_mount::bind(&source, true, users, &target).map_err(failing("bind", &source))?;
    let own = !matches!(volume.source, VolumeSource::HostPath { .. });
    if volume.read_only || own {
        let mut flags = MountFlags::BIND;
        if volume.read_only {
            flags |= MountFlags::RDONLY;
        }
        if own {
            flags |= MountFlags::NOSUID | MountFlags::NODEV;
        }
        mount_remount(&target, flags, "").map_err(failing("set the mount flags of", &target))?;
    }
    // What the host mounts below a hostPath later comes in as well; it came down from the host's own mounts, which
    // never learn of ours.
    mount_change(
        &target,
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .map_err(failing("share the mounts of", &target))
}

/// The root file system of an image, read-only, at `<shared>/<name>`. The kernel wants a writable layer to begin with;
/// nothing is ever written to it.
fn mount_image(
    volume: &VolumeRecord,
    layers: &[PathBuf],
    writable: &Path,
    (skeleton, shared): (&Path, &Path),
    users: Option<&MappedUsers>,
) -> Result<(), VolumeError> {
    let point = skeleton.join(&volume.name);
    DirBuilder::new()
        .mode(0o755)
        .create(&point)
        .map_err(failing("make mount point", &point))?;
    let target = shared.join(&volume.name);
    overlay::mount(layers, writable, &target, users).map_err(|source| VolumeError::Image {
        source: Box::new(source),
    })?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(&target, flags, "").map_err(failing("set the mount flags of", &target))
}

fn make_host_path(path: &Path, type_: HostPathType) -> Result<(), VolumeError> {
    match type_ {
        HostPathType::Unset | HostPathType::DirectoryOrCreate if !path.exists() => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(failing("make directory", path))
        }
        HostPathType::FileOrCreate if !path.exists() => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map(drop)
            .map_err(failing("make file", path)),
        _ => Ok(()),
    }
}

fn make_empty_dir(path: &Path, fs_group: Option<u32>) -> Result<(), VolumeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failing("make directory", path))?;
    let mut mode = 0o777;
    if let Some(group) = fs_group {
        std::os::unix::fs::chown(path, None, Some(group))
            .map_err(failing("give to the fsGroup", path))?;
        mode = 0o2777;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(failing("set the permissions of", path))
}

/// Makes the directories of `sub_path` below `volume` where they are missing. An earlier pod may have left links in the
/// volume: none is followed out of it.
fn make_sub_path(volume: &Path, sub_path: &str) -> Result<(), Errno> {
    let mut here = rustix::fs::open(
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let parts: Vec<&std::ffi::OsStr> = Path::new(sub_path)
        .components()
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(Errno::XDEV),
        })
        .collect::<Result<_, _>>()?;
    let last = parts.len().saturating_sub(1);
    for (number, part) in parts.into_iter().enumerate() {
        match mkdirat(&here, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let open = |flags| {
            openat2(
                &here,
                part,
                flags,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            )
        };
        here = match open(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC) {
            // The last part may be a file: subPath can name one.
            Err(Errno::NOTDIR) if number == last => open(OFlags::PATH | OFlags::CLOEXEC)?,
            other => other?,
        };
    }
    Ok(())
}

/// Bytes that the files below `directory` take on disk; links are not followed, other file systems not entered. Stops
/// as soon as `enough` is passed.
#[must_use]
pub fn disk_usage(directory: &Path, enough: u64) -> u64 {
    let Ok(root) = fs::symlink_metadata(directory) else {
        return 0;
    };
    let mut total = 0_u64;
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(entries) = fs::read_dir(&path) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.dev() != root.dev() {
                continue;
            }
            total = total.saturating_add(found.blocks().saturating_mul(512));
            if total > enough {
                return total;
            }
            if found.is_dir() {
                open.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_of_the_wrong_type_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let text = check_host_path(&file, HostPathType::Directory)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("asks for a directory") && text.ends_with("is a file"),
            "{text}"
        );
        assert!(matches!(
            check_host_path(&dir.path().join("absent"), HostPathType::File),
            Err(VolumeError::Missing { .. })
        ));
        check_host_path(&dir.path().join("absent"), HostPathType::FileOrCreate).unwrap();
        check_host_path(Path::new("/dev/null"), HostPathType::CharDevice).unwrap();
        check_host_path(Path::new("/dev/null"), HostPathType::BlockDevice).unwrap_err();
    }

    #[test]
    fn sub_path_through_a_link_out_of_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        make_sub_path(&volume, "a/b").unwrap();
        assert!(volume.join("a/b").is_dir());
        std::os::unix::fs::symlink(dir.path(), volume.join("out")).unwrap();
        assert!(make_sub_path(&volume, "out/made").is_err());
        assert!(!dir.path().join("made").exists());
        assert!(make_sub_path(&volume, "../made").is_err());
    }

    #[test]
    fn usage_counts_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), vec![1; 1 << 20]).unwrap();
        assert!(disk_usage(dir.path(), u64::MAX) >= 1 << 20);
    }
}
