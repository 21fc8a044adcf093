//! The pod's cgroup on the host (cgroup v2): bounds what the VMM can take and ends everything in it with one write.
//! A host without cgroup v2 at the usual place is fine: the bounds are then absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the unified hierarchy is mounted (cgroups(7)).
const HIERARCHY: &str = "/sys/fs/cgroup";

/// How long the processes of a killed cgroup may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} cgroup {}", path.display())]
pub struct CgroupError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What a pod's cgroup allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Upper bound of memory in bytes, guest memory included; `None`: no bound.
    pub memory_bytes: Option<u64>,
    /// Upper bound of tasks.
    pub pids: u32,
}

/// Path of the cgroup of pod `id`; `None` when the host has no unified hierarchy.
#[must_use]
pub fn path_of(id: &str) -> Option<PathBuf> {
    let hierarchy = Path::new(HIERARCHY);
    hierarchy
        .join("cgroup.controllers")
        .exists()
        .then(|| hierarchy.join(format!("vmpod-{id}")))
}

/// Makes the cgroup at `path` with `limits`. A controller that the host does not offer is left out.
///
/// # Errors
/// When the directory cannot be made.
pub fn create(path: &Path, limits: Limits) -> Result<(), CgroupError> {
    let fail = |what| {
        move |source| CgroupError {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let parent = path.parent().unwrap_or(path);
    delegate(parent);
    let made = match fs::create_dir(path) {
        // A client of containerd names a parent that nobody has made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent).map_err(fail("make the parent of"))?;
            if let Some(top) = parent.parent() {
                delegate(top);
            }
            delegate(parent);
            fs::create_dir(path)
        }
        made => made,
    };
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(fail("make")(error));
        }
        _ => {}
    }
    let bounds = [
        ("memory.max", limits.memory_bytes.map(|n| n.to_string())),
        ("pids.max", Some(limits.pids.to_string())),
        // A VMM that lost a thread to the OOM killer is no machine any more: all of it goes.
        ("memory.oom.group", Some("1".to_owned())),
    ];
    for (file, value) in bounds {
        let (file, Some(value)) = (path.join(file), value) else {
            continue;
        };
        if file.exists() {
            fs::write(&file, value).map_err(fail("bound"))?;
        }
    }
    Ok(())
}

/// Lets the children of `path` use the controllers that bound pods, as far as it has them itself.
fn delegate(path: &Path) {
    let file = path.join("cgroup.subtree_control");
    if fs::write(&file, "+memory +pids").is_err() {
        // Not every host offers each, and a hierarchy in domain mode may refuse: the bound is then absent.
        for controller in ["+memory", "+pids"] {
            let _ = fs::write(&file, controller);
        }
    }
}

/// Opens `cgroup.procs` of `path`, for a child to write itself into before it executes anything.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_members(path: &Path) -> Result<fs::File, CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path.join("cgroup.procs"))
        .map_err(|source| CgroupError {
            what: "open the member list of",
            path: path.to_owned(),
            source,
        })
}

/// Ends every process in the cgroup and removes it. One that is not there is no error.
///
/// # Errors
/// When processes do not go or the directory cannot be removed.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + KILL_LIMIT;
    let _ = fs::write(path.join("cgroup.kill"), "1");
    loop {
        match fs::remove_dir(path) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(source) => {
                return Err(CgroupError {
                    what: "remove",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Bytes of memory charged to the cgroup at `path`; `None` when that is not known.
#[must_use]
pub fn memory_bytes(path: &Path) -> Option<u64> {
    fs::read_to_string(path.join("memory.current"))
        .ok()?
        .trim()
        .parse()
        .ok()
}
