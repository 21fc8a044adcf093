//! The sources of bind mounts: paths of the agent's tree, opened so that they are mounts of their own.
//!
//! A directory of a shared tree that is a mount of the host becomes a mount in the guest when somebody goes through it
//! (FUSE's automounts), in the namespace of whoever that is. Mounts made on a volume reach another container only where
//! both have copies of one mount; so the agent goes through each source before the container's namespace is copied from
//! its own, and the container's first process finds the mount there. Opening with O_PATH alone does not go through the
//! last component (openat2(2), fs/namei.c `follow_automount`), with O_DIRECTORY it does.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, makedev, mknod};
use vmpod_agent_protocol::GUEST_ROOT;

use super::device::{Device, DeviceKind};
use super::inside::{self, Kind};
use super::plan::RootPlan;
use super::volume_mounts::shared_volumes;

/// Where nodes of devices are that the agent's /dev lacks.
const NODES: &str = "/dev/vmpod";

/// Makes the sources of all bind mounts mounts of the calling process's namespace, where they are on the host's side.
/// Only directories are ever mounted by being gone through.
///
/// What is not there or cannot be opened is left to the container's first process, which has words for it.
pub fn settle(plan: &RootPlan) {
    for mount in &plan.mounts {
        if mount.options.bind.is_some() && !mount.options.file {
            let _ = open_as(Path::new(&mount.source), OFlag::O_DIRECTORY);
        }
    }
    if !shared_volumes(plan).is_empty() {
        // What of it appears in a shared volume is to be known by the agent's own mount of it.
        let _ = open_as(&plan.path, OFlag::O_DIRECTORY);
    }
    if plan.bind_devices {
        for device in plan
            .devices
            .iter()
            .filter(|device| device.kind != DeviceKind::Fifo)
        {
            let _ = make_node(device);
        }
    }
}

/// Opens the agent's own node of a device (O_PATH), which a container in a user namespace gets as it may make none: the one of
/// the same name, or what [`settle`] made.
pub fn open_device(device: &Device) -> io::Result<OwnedFd> {
    let path = if is_node_of(&device.path, device) {
        device.path.clone()
    } else {
        node_of(device)
    };
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(&path, flags, Mode::empty())?)
}

/// Makes a node of `device` where the agent's /dev has none at its path.
fn make_node(device: &Device) -> io::Result<()> {
    let path = node_of(device);
    if is_node_of(&device.path, device) || is_node_of(&path, device) {
        return Ok(());
    }
    fs::create_dir_all(NODES)?;
    let mode = Mode::from_bits_truncate(device.mode);
    let number = makedev(device.major, device.minor);
    mknod(&path, device.kind.file_type(), mode, number)?;
    std::os::unix::fs::lchown(&path, Some(device.uid), Some(device.gid))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(device.mode & 0o7777))
}

fn node_of(device: &Device) -> PathBuf {
    let kind = if device.kind == DeviceKind::Block {
        'b'
    } else {
        'c'
    };
    Path::new(NODES).join(format!("{kind}{}:{}", device.major, device.minor))
}

fn is_node_of(path: &Path, device: &Device) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        let kind = device.kind.file_type().bits();
        found.mode() & libc::S_IFMT == kind && found.rdev() == makedev(device.major, device.minor)
    })
}

/// Opens the source of a bind mount (O_PATH) and tells what it is. Below the host's shared trees links may not lead out:
/// containers write there.
pub fn open(path: &Path) -> io::Result<(OwnedFd, Kind)> {
    match open_as(path, OFlag::O_DIRECTORY) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {
            Ok((open_as(path, OFlag::empty())?, Kind::File))
        }
        other => other.map(|source| (source, Kind::Directory)),
    }
}

/// The sources that are known to be files ([`super::mount_options::MountOptions::file`]). Of those in one directory, which
/// follow one another, the way there is gone once: in a shared tree each step is asked of the host.
#[derive(Debug, Default)]
pub struct Files {
    directory: Option<(PathBuf, OwnedFd)>,
}

impl Files {
    /// Opens the file (O_PATH). Links may not lead out of its directory.
    pub fn open(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let directory = match self.directory.take() {
            Some((same, directory)) if same == parent => directory,
            _ => open_as(parent, OFlag::O_DIRECTORY)?,
        };
        let (_, directory) = self.directory.insert((parent.to_owned(), directory));
        inside::open_beneath(directory, Path::new(name), OFlag::empty())
    }
}

fn open_as(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    match path.strip_prefix(GUEST_ROOT) {
        Ok(below) if !below.as_os_str().is_empty() => {
            let shared = fs::File::open(GUEST_ROOT)?;
            inside::open_beneath(&shared, below, flags)
        }
        _ => Ok(nix::fcntl::open(
            path,
            OFlag::O_PATH | OFlag::O_CLOEXEC | flags,
            Mode::empty(),
        )?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_of_several_directories_are_the_ones_named_and_links_stay_inside() {
        let tree = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        for (part, name) in [("a", "one"), ("a", "two"), ("b", "one")] {
            let path = tree.path().join(part).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            let opened = files.open(&path).unwrap();
            let opened = nix::sys::stat::fstat(&opened).unwrap();
            assert_eq!(opened.st_ino, fs::metadata(&path).unwrap().ino());
        }
        symlink("/etc/passwd", tree.path().join("b/out")).unwrap();
        let error = files.open(&tree.path().join("b/out")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        let error = files.open(&tree.path().join("c/one")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
