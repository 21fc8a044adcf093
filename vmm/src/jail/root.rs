//! The process's own view of the file tree: an empty root with the directories that the machine uses bound into it.
//!
//! ```text
//! /share/0 ...    shared directories, with the mounts below them; the host's later mounts appear (slave propagation)
//! /console        directory of the console log
//! /vsock          directory of the socket device's Unix sockets
//! /proc/self/fd   this process's descriptors, and nothing else of /proc
//! ```
//!
//! Runs on the control thread before any other thread exists. What is opened before keeps pointing into the host's tree,
//! so directories are to be opened afterwards.

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use vmpod_vmm_api::MachineConfig;

/// Memory for directories of the new root.
const ROOT_OPTIONS: &str = "size=64k,nr_inodes=64,mode=0755";
const RESTRICTED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// The new root could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct RootError {
    /// What was tried.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Paths as they are to be opened by this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The console log.
    pub console: PathBuf,
    /// The socket device's listener.
    pub vsock: Option<PathBuf>,
    /// Shared directories.
    pub shares: Vec<PathBuf>,
}

impl Places {
    /// Where the configuration says, for a process that keeps its root.
    #[must_use]
    pub fn unconfined(config: &MachineConfig) -> Self {
        Self {
            console: config.console_log.clone(),
            vsock: config.vsock.as_ref().map(|v| v.uds_path.clone()),
            shares: config.shares.iter().map(|s| s.path.clone()).collect(),
        }
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError { what, path, source }
}

fn at_errno(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> RootError {
    let fail = at(what, path);
    move |errno| fail(errno.into())
}

const NOTHING: Option<&CStr> = None;

/// Leaves the host's namespaces of mounts, network, System V IPC and host name, and makes `root` this process's root with
/// nothing but the directories that `config` names.
///
/// # Errors
/// The process lacks CAP_SYS_ADMIN, or a directory is not there.
pub fn enter(root: &Path, config: &MachineConfig) -> Result<Places, RootError> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(at_errno(
        "leave the host's namespaces (needs CAP_SYS_ADMIN) for",
        root,
    ))?;
    // Mounts go from the host to here and never back.
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        NOTHING,
    )
    .map_err(at_errno("stop propagation from", Path::new("/")))?;
    mount(
        Some("vmpod-vmm"),
        root,
        Some("tmpfs"),
        RESTRICTED,
        Some(ROOT_OPTIONS),
    )
    .map_err(at_errno("mount a tmpfs on", root))?;

    let mut places = Places {
        console: bind_parent(root, "console", &config.console_log)?,
        vsock: None,
        shares: Vec::new(),
    };
    if let Some(vsock) = &config.vsock {
        places.vsock = Some(bind_parent(root, "vsock", &vsock.uds_path)?);
    }
    for (i, share) in config.shares.iter().enumerate() {
        let inside = format!("share/{i}");
        bind(root, &inside, &share.path, MsFlags::MS_REC)?;
        places.shares.push(Path::new("/").join(inside));
    }
    if !config.shares.is_empty() {
        bind(
            root,
            "proc/self/fd",
            Path::new("/proc/self/fd"),
            MsFlags::empty(),
        )?;
    }

    chdir(root).map_err(at_errno("enter", root))?;
    // The old root ends up on top of the new one and is taken away at once (pivot_root(2)).
    pivot_root(".", ".").map_err(at_errno("change the root to", root))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at_errno("let go of the old root from", root))?;
    chdir("/").map_err(at_errno("enter the new root at", root))?;
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | RESTRICTED,
        NOTHING,
    )
    .map_err(at_errno("make read-only", root))?;
    Ok(places)
}

/// Binds the directory that holds `file`; returns the file's path inside.
fn bind_parent(root: &Path, inside: &str, file: &Path) -> Result<PathBuf, RootError> {
    let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(at("find the directory of", file)(io::Error::from(
            io::ErrorKind::InvalidInput,
        )));
    };
    bind(root, inside, parent, MsFlags::empty())?;
    Ok(Path::new("/").join(inside).join(name))
}

/// Binds `source` to `inside` below the new root, without device nodes, set-user-id and execution.
fn bind(root: &Path, inside: &str, source: &Path, recursive: MsFlags) -> Result<(), RootError> {
    let target = root.join(inside);
    std::fs::create_dir_all(&target).map_err(at("create directory", &target))?;
    mount(
        Some(source),
        &target,
        NOTHING,
        MsFlags::MS_BIND | recursive,
        NOTHING,
    )
    .map_err(at_errno("bind into the jail", source))?;
    // A remount states all flags anew: a source that the pod host has write-protected stays so.
    let protected = nix::sys::statvfs::statvfs(source)
        .map_err(at_errno("look at the mount of", source))?
        .flags()
        .contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    let read_only = if protected {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    mount(
        NOTHING,
        &target,
        NOTHING,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | RESTRICTED | read_only,
        NOTHING,
    )
    .map_err(at_errno("restrict the mount of", source))
}
