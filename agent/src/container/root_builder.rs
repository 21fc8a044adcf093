//! The container's file system: mounts, devices, masked paths, and the move into it.
//!
//! Runs in the container's own first process, in its new mount namespace, before pivot_root; everything is resolved
//! inside the root by descriptor ([`super::inside`]). The agent's `/proc` and `/dev/null` serve as tools until the
//! pivot takes them away.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmodat, makedev, mknodat};
use nix::unistd::{Gid, Uid, chdir, fchdir, fchownat, pivot_root, symlinkat};

use super::bind_source;
use super::device::{Device, DeviceKind};
use super::inside::{self, Kind};
use super::mount_options::{AttributeChange, attribute};
use super::mount_tree;
use super::plan::{Mount, RootPlan};
use super::step::{At as _, StepError};

/// Links that every container has in `/dev` (OCI runtime specification, config-linux.md, "Dev symbolic links").
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// A root under construction, attached in this mount namespace.
#[derive(Debug)]
pub struct RootBuilder<'a> {
    plan: &'a RootPlan,
    root: OwnedFd,
}

impl<'a> RootBuilder<'a> {
    /// Takes the mount namespace apart from the agent's and attaches a copy of the root at `mount_point`, a directory
    /// of the agent's own root file system.
    pub fn attach(plan: &'a RootPlan, mount_point: &Path) -> Result<Self, StepError> {
        let nothing: Option<&str> = None;
        let propagation = plan
            .propagation
            .unwrap_or(MsFlags::MS_REC | inherited(plan));
        if !propagation.intersects(MsFlags::MS_SHARED) {
            mount(
                nothing,
                "/",
                nothing,
                propagation | MsFlags::MS_REC,
                nothing,
            )
            .at(|| "set the mount propagation of the container")?;
        }
        if propagation.intersects(MsFlags::MS_SHARED | MsFlags::MS_UNBINDABLE) {
            // pivot_root(2) refuses shared mounts at and above the new root. Only the agent's root file system turns
            // private; volumes stay in the peer groups of their sources.
            mount(nothing, "/", nothing, MsFlags::MS_PRIVATE, nothing)
                .at(|| "set the mount propagation of the container")?;
        }
        let source = nix::fcntl::open(
            &plan.path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .at(|| format!("open the root file system {}", plan.path.display()))?;
        let root = mount_tree::copy(&source, true).at(|| {
            format!(
                "copy the mount of the root file system {}",
                plan.path.display()
            )
        })?;
        mount_tree::set_propagation(&root, MsFlags::MS_PRIVATE | MsFlags::MS_REC)
            .at(|| "make the root file system's mounts private")?;
        let target = nix::fcntl::open(
            mount_point,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .at(|| format!("open {}", mount_point.display()))?;
        mount_tree::attach(&root, target)
            .at(|| format!("attach the root file system at {}", mount_point.display()))?;
        Ok(RootBuilder { plan, root })
    }

    /// The root directory.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Makes all mounts of the specification in their order.
    pub fn mount_all(&self) -> Result<(), StepError> {
        let mut files = bind_source::Files::default();
        for mount in &self.plan.mounts {
            self.mount(mount, &mut files)?;
        }
        Ok(())
    }

    fn mount(&self, mount: &Mount, files: &mut bind_source::Files) -> Result<(), StepError> {
        match mount.options.bind {
            Some(recursive) => self.bind(mount, Path::new(&mount.source), recursive, files),
            None if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") => {
                self.cgroup(mount, files)
            }
            None => self.file_system(mount, &mount.kind),
        }
    }

    fn bind(
        &self,
        mount: &Mount,
        source_path: &Path,
        recursive: bool,
        files: &mut bind_source::Files,
    ) -> Result<(), StepError> {
        let step = || {
            format!(
                "mount volume {} (bind from {})",
                mount.destination.display(),
                source_path.display()
            )
        };
        let (mut source, mut kind) = if mount.options.file {
            (files.open(source_path).at(step)?, Kind::File)
        } else {
            bind_source::open(source_path).at(step)?
        };
        if let Some(sub_path) = &mount.options.sub_path {
            // The volume is the root of the resolution: its links, which containers write, lead nowhere else.
            source = inside::open_or_make(&source, sub_path, Kind::Directory)
                .at(|| format!("{}: open its subPath {}", step(), sub_path.display()))?;
            kind = if inside::is_directory(&source).at(step)? {
                Kind::Directory
            } else {
                Kind::File
            };
        }
        let target = inside::open_or_make(&self.root, &mount.destination, kind)
            .at(|| format!("{}: make the mount point", step()))?;
        let tree = mount_tree::copy(&source, recursive).at(step)?;
        mount_tree::set_attributes(&tree, mount.options.attributes, false).at(step)?;
        mount_tree::set_attributes(&tree, mount.options.recursive, true).at(step)?;
        for &propagation in &mount.options.propagation {
            mount_tree::set_propagation(&tree, propagation).at(step)?;
        }
        mount_tree::attach(&tree, &target).at(step)
    }

    fn cgroup(&self, mount: &Mount, files: &mut bind_source::Files) -> Result<(), StepError> {
        if self.plan.own_cgroup_namespace {
            self.file_system(mount, "cgroup2")
        } else {
            self.bind(mount, &self.plan.cgroup, true, files)
        }
    }

    fn file_system(&self, wanted: &Mount, kind: &str) -> Result<(), StepError> {
        let step = || format!("mount {kind} on {}", wanted.destination.display());
        let existing = inside::open(&self.root, &wanted.destination, OFlag::O_PATH).ok();
        let mut data = wanted.options.data.clone();
        if let (Some(existing), "tmpfs") = (&existing, kind)
            && !data.split(',').any(|option| option.starts_with("mode="))
        {
            // A tmpfs over a directory of the image keeps that directory's mode, as with other runtimes.
            let mode = nix::sys::stat::fstat(existing).at(step)?.st_mode & 0o7777;
            if !data.is_empty() {
                data.push(',');
            }
            data.push_str(&format!("mode={mode:o}"));
        }
        let target = match existing {
            Some(existing) => existing,
            None => inside::open_or_make(&self.root, &wanted.destination, Kind::Directory)
                .at(|| format!("{}: make the mount point", step()))?,
        };
        let source = if wanted.source.is_empty() {
            kind
        } else {
            wanted.source.as_str()
        };
        mount(
            Some(source),
            by_descriptor(&target).as_str(),
            Some(kind),
            wanted.options.flags,
            (!data.is_empty()).then_some(data.as_str()),
        )
        .at(step)?;
        if wanted.options.propagation.is_empty() && wanted.options.recursive.is_empty() {
            return Ok(());
        }
        let mounted = inside::open(&self.root, &wanted.destination, OFlag::O_PATH).at(step)?;
        mount_tree::set_attributes(&mounted, wanted.options.recursive, true).at(step)?;
        for &propagation in &wanted.options.propagation {
            mount_tree::set_propagation(&mounted, propagation).at(step)?;
        }
        Ok(())
    }

    /// Device nodes, the links in `/dev`, and `/dev/ptmx`. Nothing when `/dev` is a volume: it has its own.
    pub fn make_devices(&self) -> Result<(), StepError> {
        if self.plan.mounts.iter().any(|mount| {
            mount.options.bind.is_some() && inside::clean(&mount.destination) == Path::new("/dev")
        }) {
            return Ok(());
        }
        for device in &self.plan.devices {
            self.make_device(device)?;
        }
        let dev = inside::open_or_make(&self.root, Path::new("/dev"), Kind::Directory)
            .at(|| "open /dev of the container")?;
        let links = DEVICE_LINKS
            .into_iter()
            .chain([("pts/ptmx", "ptmx")])
            .chain(
                Path::new("/proc/kcore")
                    .exists()
                    .then_some(("/proc/kcore", "core")),
            );
        for (target, name) in links {
            match symlinkat(target, &dev, name) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => {
                    return Err(error).at(|| format!("link /dev/{name} to {target}"));
                }
            }
        }
        Ok(())
    }

    fn make_device(&self, device: &Device) -> Result<(), StepError> {
        let step = || format!("make device {}", device.path.display());
        let path = inside::clean(&device.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(StepError::because(step(), "not a path of a file"));
        };
        if self.plan.bind_devices && device.kind != DeviceKind::Fifo {
            // A user namespace may not make device nodes; the agent's own one is put in place.
            let source = bind_source::open_device(device).at(step)?;
            let target = inside::open_or_make(&self.root, &path, Kind::File).at(step)?;
            let tree = mount_tree::copy(&source, false).at(step)?;
            return mount_tree::attach(&tree, &target).at(step);
        }
        let parent = inside::open_or_make(&self.root, parent, Kind::Directory).at(step)?;
        let kind = device.kind.file_type();
        let number = match device.kind {
            DeviceKind::Character | DeviceKind::Block => makedev(device.major, device.minor),
            DeviceKind::Fifo => 0,
        };
        let mode = Mode::from_bits_truncate(device.mode);
        match mknodat(&parent, name, kind, mode, number) {
            // The image brought it along; its mode and owner are set below all the same.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).at(step),
        }
        if (device.uid, device.gid) != (0, 0) {
            fchownat(
                &parent,
                name,
                Some(Uid::from_raw(device.uid)),
                Some(Gid::from_raw(device.gid)),
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .at(step)?;
            fchmodat(
                &parent,
                name,
                mode,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )
            .at(step)?;
        }
        Ok(())
    }

    /// Hides masked paths and write-protects read-only ones; paths that do not exist need neither.
    pub fn protect_paths(&self) -> Result<(), StepError> {
        let mut empty: Option<OwnedFd> = None;
        for path in &self.plan.masked_paths {
            let step = || format!("mask {}", path.display());
            let Some(target) = self.open_if_there(path).at(step)? else {
                continue;
            };
            let cover = if inside::is_directory(&target).at(step)? {
                match &empty {
                    Some(first) => mount_tree::copy(first, false).at(step)?,
                    None => {
                        // One empty file system covers all masked directories.
                        mount(
                            Some("tmpfs"),
                            by_descriptor(&target).as_str(),
                            Some("tmpfs"),
                            MsFlags::MS_RDONLY,
                            Some("size=0,nr_inodes=2"),
                        )
                        .at(step)?;
                        empty = self.open_if_there(path).at(step)?;
                        continue;
                    }
                }
            } else {
                let null =
                    nix::fcntl::open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                        .at(step)?;
                mount_tree::copy(&null, false).at(step)?
            };
            mount_tree::attach(&cover, &target).at(step)?;
        }
        for path in &self.plan.readonly_paths {
            let step = || format!("make {} read-only", path.display());
            let Some(target) = self.open_if_there(path).at(step)? else {
                continue;
            };
            let tree = mount_tree::copy(&target, true).at(step)?;
            mount_tree::set_attributes(&tree, READ_ONLY, true).at(step)?;
            mount_tree::attach(&tree, &target).at(step)?;
        }
        Ok(())
    }

    fn open_if_there(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match inside::open(&self.root, path, OFlag::O_PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the working directory when the image lacks it, as runc does. A read-only root is left to the chdir.
    pub fn make_working_directory(&self, path: &Path) {
        let _ = inside::open_or_make(&self.root, path, Kind::Directory);
    }

    /// Write-protects the root when asked to, makes it `/`, and lets the agent's file systems go.
    pub fn pivot(self) -> Result<(), StepError> {
        if self.plan.readonly {
            mount_tree::set_attributes(&self.root, READ_ONLY, false)
                .at(|| "make the root file system read-only")?;
        }
        let nothing: Option<&str> = None;
        let step = || "enter the root file system";
        let old = nix::fcntl::open(
            "/",
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .at(step)?;
        fchdir(&self.root).at(step)?;
        // Both arguments the same: the old root is stacked on the new one and needs no directory. pivot_root(2).
        pivot_root(".", ".").at(step)?;
        // From within the old root, "." is it and not what lies below. As slaves its mounts do not take the agent's own
        // along when they go.
        fchdir(&old).at(step)?;
        mount(
            nothing,
            ".",
            nothing,
            MsFlags::MS_SLAVE | MsFlags::MS_REC,
            nothing,
        )
        .at(step)?;
        umount2(".", MntFlags::MNT_DETACH).at(step)?;
        chdir("/").at(step)?;
        if let Some(propagation) = self.plan.propagation {
            mount(nothing, "/", nothing, propagation, nothing)
                .at(|| "set the propagation of the root file system")?;
        }
        Ok(())
    }
}

const READ_ONLY: AttributeChange = AttributeChange {
    set: attribute::READ_ONLY,
    clear: 0,
};

/// What the container's copy of the agent's mounts is to them while the root is built. The copy of a slave would have
/// nobody to give its mounts to; volumes that do not share theirs leave the peer group one by one.
fn inherited(plan: &RootPlan) -> MsFlags {
    let shares = plan.mounts.iter().any(|mount| {
        let options = &mount.options.propagation;
        options
            .iter()
            .any(|flags| flags.contains(MsFlags::MS_SHARED))
    });
    if shares {
        MsFlags::MS_SHARED
    } else {
        MsFlags::MS_SLAVE
    }
}

/// The path by which mount(2) reaches a descriptor, through the agent's /proc.
fn by_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
