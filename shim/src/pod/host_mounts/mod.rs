//! What a pod mounts in volumes that it shares with the host (mountPropagation: Bidirectional), made on the host as well.
//!
//! The agent tells which bind mounts there are ([`follow`] asks it); each is made once more in the host's own mount
//! namespace, where the volume lies, of what the pod's shared tree has at the same path. The agent's words are hostile: a place
//! lies below one of the volumes that were shared and a source below the shared tree, neither through a symbolic link, and
//! what appears on the host has no set-user-id programs and no devices.
//!
//! Each mount has a record before it is made (`record`), and the records' directory an entry in the pod's journal, so that a
//! kill at any moment leaves nothing that is not found again. The kernel shows a mount of the host's in the pod's tree too, as
//! it does all that the host mounts below a volume: there it is taken away at once, because the guest has its own. The VMM
//! stands still meanwhile: a guest that saw the host's mount would drop its own.

mod namespace;
mod record;

pub use namespace::remember;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, open, openat2, statx,
};
use tokio::time::{Instant, sleep_until};
use vmpod_agent_protocol::limits::{NAME_BYTES, VOLUME_MOUNTS};
use vmpod_agent_protocol::messages::VolumeMount;

use self::record::{FileId, Record, detach, open_as_it_was};
use super::agent::Agent;
use super::journal::{Entry, Journal, JournalError, chain};
use super::process::{ProcessIdentity, Stopped};
use super::roots::PodPaths;
use super::tree::DetachedMount;

/// Longest wait of one call for news.
const WAIT: Duration = Duration::from_secs(25);

/// Time between two answers that are acted upon: a guest that mounts and unmounts all the time costs the host no more than that.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the VMM may take to stand still.
const STOP_LIMIT: Duration = Duration::from_millis(200);

/// Something cannot be mounted on the host.
#[derive(Debug, thiserror::Error)]
pub enum HostMountError {
    /// What the agent says cannot be.
    #[error("{what} {path:?} is not one")]
    Told {
        /// What it should be.
        what: &'static str,
        /// What the agent said.
        path: String,
    },
    /// A path or a mount.
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
    /// The volume is not where it was.
    #[error("{} is not what was mounted there when the container was made", path.display())]
    Moved {
        /// The volume's path on the host.
        path: PathBuf,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

fn failing<'a, E: Into<io::Error>>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(E) -> HostMountError + 'a {
    move |error| HostMountError::Make {
        what,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// A directory of the host that is shared with the pod.
#[derive(Debug)]
struct Volume {
    /// Absolute, without symbolic links.
    path: PathBuf,
    is: FileId,
}

/// A mount that was made.
#[derive(Debug)]
struct Made {
    source: String,
    read_only: bool,
    record: PathBuf,
}

/// What one pod has mounted on the host, and where it may.
#[derive(Debug)]
pub struct HostMounts {
    /// The shared tree, as this process sees it.
    shared: PathBuf,
    journal: PathBuf,
    records: PathBuf,
    journalled: bool,
    next: u64,
    /// By path in the shared tree.
    volumes: BTreeMap<String, Volume>,
    /// By path in the shared tree: what lies in another one comes after it.
    made: BTreeMap<String, Made>,
    /// Whose file server has the shared tree.
    vmm: Option<ProcessIdentity>,
}

impl HostMounts {
    /// None yet, for the pod at `paths`.
    #[must_use]
    pub fn new(paths: &PodPaths) -> Self {
        Self {
            shared: paths.shared(),
            journal: paths.journal(),
            records: paths.run.join("host-mounts"),
            journalled: false,
            next: 0,
            volumes: BTreeMap::new(),
            made: BTreeMap::new(),
            vmm: None,
        }
    }

    /// Their pod's machine is `vmm`.
    pub fn belong_to(&mut self, vmm: Option<ProcessIdentity>) {
        self.vmm = vmm;
    }

    /// From now on what is mounted in the volume at `place` of the shared tree is mounted at the host's `source`, a directory,
    /// where the host shares its mounts there. A file is no place for mounts.
    ///
    /// # Errors
    /// When it cannot be looked at, or the journal cannot be written.
    pub fn share(&mut self, place: String, source: &Path) -> Result<(), HostMountError> {
        let looked = namespace::within(|| -> io::Result<Option<Volume>> {
            let directory = open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let found = fstat(&directory)?;
            if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                return Ok(None);
            }
            Ok(Some(Volume {
                path: path_of(&directory)?,
                is: FileId::from(&found),
            }))
        });
        let Some(volume) = looked
            .and_then(|looked| looked)
            .map_err(failing("look at the volume", source))?
        else {
            return Ok(());
        };
        if !self.journalled {
            fs::create_dir_all(&self.records).map_err(failing("make directory", &self.records))?;
            Journal::open(&self.journal)?.record(&Entry::Mounts {
                records: self.records.clone(),
            })?;
            self.journalled = true;
        }
        self.volumes.insert(place, volume);
        Ok(())
    }

    /// Takes away what was mounted in the volumes below `directory` of the shared tree or of what lies there, and knows the
    /// volumes no more.
    pub fn forget(&mut self, directory: &str) {
        self.volumes
            .retain(|place, _| !Path::new(place).starts_with(directory));
        let is_own = |path: &str| Path::new(path).starts_with(directory);
        let gone: Vec<String> = self
            .made
            .iter()
            .filter(|(place, made)| is_own(place) || is_own(&made.source))
            .map(|(place, _)| place.clone())
            .collect();
        self.take_away(&gone);
    }

    /// Makes the host's mounts those that the agent tells of. What cannot be made is left out and said to the log.
    pub fn apply(&mut self, told: &[VolumeMount]) {
        let mut wanted = BTreeMap::new();
        for mount in told.iter().take(VOLUME_MOUNTS) {
            match self.check(mount) {
                Ok(()) => {
                    wanted.insert(mount.place.as_str(), mount);
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "left out of the host's mounts")
                }
            }
        }
        let gone: Vec<String> = self
            .made
            .iter()
            .filter(|(place, made)| {
                wanted.get(place.as_str()).is_none_or(|mount| {
                    mount.source != made.source || mount.read_only != made.read_only
                })
            })
            .map(|(place, _)| place.clone())
            .collect();
        self.take_away(&gone);
        for (place, mount) in wanted {
            if self.made.contains_key(place) {
                continue;
            }
            if let Err(error) = self.make(mount) {
                tracing::warn!(
                    place,
                    error = chain(&error),
                    "what the pod has mounted in a volume does not appear on the host"
                );
            }
        }
    }

    /// Whether what the agent says has the form that it must have, and is about a shared volume.
    fn check(&self, mount: &VolumeMount) -> Result<(), HostMountError> {
        let wrong = |what, path: &String| {
            let path = super::status::bounded(path);
            HostMountError::Told { what, path }
        };
        if !is_plain(&mount.source) {
            return Err(wrong("the source of a mount", &mount.source));
        }
        if !is_plain(&mount.place) || self.volume_of(&mount.place).is_none() {
            return Err(wrong("a place in a shared volume", &mount.place));
        }
        Ok(())
    }

    /// The volume that `place` lies in, and where in it.
    fn volume_of<'a>(&self, place: &'a str) -> Option<(&Volume, &'a Path)> {
        self.volumes.iter().find_map(|(volume, found)| {
            let rest = Path::new(place).strip_prefix(volume).ok()?;
            (!rest.as_os_str().is_empty()).then_some((found, rest))
        })
    }

    fn make(&mut self, mount: &VolumeMount) -> Result<(), HostMountError> {
        let Some((volume, rest)) = self.volume_of(&mount.place) else {
            return Ok(());
        };
        let path = volume.path.join(rest);
        let tree = open(
            &self.shared,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failing("open", &self.shared))?;
        let source_path = self.shared.join(&mount.source);
        let source = beneath(&tree, Path::new(&mount.source))
            .map_err(failing("open the source of a mount", &source_path))?;
        let found = fstat(&source).map_err(failing("look at", &source_path))?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(HostMountError::Told {
                what: "a directory or a file to be mounted",
                path: super::status::bounded(&mount.source),
            });
        }
        let shows = FileId::from(&found);
        let copy = DetachedMount::of_open(&source)
            .and_then(|copy| {
                copy.follow_host(false)?;
                copy.restrict(mount.read_only)?;
                Ok(copy)
            })
            .map_err(failing("copy the mount of", &source_path))?;
        let record = self.records.join(self.next.to_string());
        let mut still = None;
        let attached = namespace::within(|| -> Result<bool, HostMountError> {
            let directory =
                open_as_it_was(&volume.path).map_err(failing("open the volume", &volume.path))?;
            let is = fstat(&directory).map_err(failing("look at", &volume.path))?;
            if FileId::from(&is) != volume.is {
                return Err(HostMountError::Moved {
                    path: volume.path.clone(),
                });
            }
            let target =
                beneath(&directory, rest).map_err(failing("open the mount point", &path))?;
            let place = fstat(&target).map_err(failing("look at", &path))?;
            // A link, most of all.
            if FileType::from_raw_mode(place.st_mode) != kind {
                return Err(HostMountError::Told {
                    what: "a mount point of the kind of its source",
                    path: super::status::bounded(&mount.place),
                });
            }
            if !is_shared(&target).map_err(failing("look at the mount of", &path))? {
                return Ok(false);
            }
            let entry = Record {
                place: path_of(&target).map_err(failing("look at", &path))?,
                shows,
            };
            let bytes = serde_json::to_vec(&entry)
                .map_err(|error| failing("write", &record)(io::Error::other(error)))?;
            fs::write(&record, bytes).map_err(failing("write", &record))?;
            still = self.vmm.and_then(|vmm| Stopped::stop(vmm, STOP_LIMIT));
            if still.is_none() {
                tracing::warn!(
                    place = mount.place,
                    "the VMM does not stand still: the guest may lose this mount"
                );
            }
            copy.attach_open(&target)
                .map_err(failing("mount on", &path))?;
            Ok(true)
        })
        .map_err(failing("enter the host's mount namespace for", &path))?;
        if attached.as_ref().is_ok_and(|attached| *attached) {
            // The kernel has put it into the pod's tree as well.
            let place = Path::new(&mount.place);
            if let Ok(seen) = beneath(&tree, place)
                && fstat(&seen).is_ok_and(|found| FileId::from(&found) == shows)
            {
                let _ = detach(&seen);
            }
            drop(still);
            self.next += 1;
            let made = Made {
                source: mount.source.clone(),
                read_only: mount.read_only,
                record,
            };
            self.made.insert(mount.place.clone(), made);
        } else {
            let _ = fs::remove_file(&record);
        }
        attached.map(drop)
    }

    /// Takes away the mounts at `gone`, and what lies in them.
    fn take_away(&mut self, gone: &[String]) {
        if gone.is_empty() {
            return;
        }
        let places: Vec<String> = self
            .made
            .keys()
            .filter(|place| gone.iter().any(|gone| Path::new(place).starts_with(gone)))
            .cloned()
            .collect();
        for place in places.iter().rev() {
            let Some(made) = self.made.remove(place) else {
                continue;
            };
            let undone = namespace::within(|| record::undo_one(&made.record));
            if let Err(error) = undone.map_err(|error| error.to_string()).flatten() {
                tracing::warn!(place, error, "the pod's end, or `vmpod gc`, will try again");
            }
        }
    }
}

/// Takes away all mounts with records in `records` (the pod's journal has it). Idempotent.
///
/// # Errors
/// What resists, in words.
pub fn undo(records: &Path) -> Result<(), String> {
    namespace::within(|| record::undo_all(records))
        .map_err(|error| format!("cannot enter the host's mount namespace: {error}"))??;
    match fs::remove_dir(records) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", records.display()))
        }
        _ => Ok(()),
    }
}

/// Takes away all of `mounts` for good: their pod has ended.
pub fn forget_all(mounts: &Mutex<HostMounts>) {
    locked(mounts).forget("");
}

/// Waits for nobody: what is done with the lock held waits for no more than [`STOP_LIMIT`].
pub fn locked(mounts: &Mutex<HostMounts>) -> MutexGuard<'_, HostMounts> {
    mounts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the host follow what the pod of `agent` mounts, until the agent is gone.
pub async fn follow(agent: Agent, mounts: Arc<Mutex<HostMounts>>) {
    let mut done = 0;
    let mut earliest = Instant::now();
    while let Ok(answer) = agent.next_mounts(done, WAIT).await {
        if answer.generation == done {
            continue;
        }
        sleep_until(earliest).await;
        locked(&mounts).apply(&answer.mounts);
        done = answer.generation;
        earliest = Instant::now() + PAUSE;
    }
}

/// Whether `path` is relative and goes down only.
fn is_plain(path: &str) -> bool {
    let parts = || Path::new(path).components();
    !path.is_empty()
        && path.len() <= NAME_BYTES
        && !path.contains('\0')
        && parts().all(|part| matches!(part, Component::Normal(_)))
        // Neither `a//b` nor `a/./b` nor `a/`: one name for one place.
        && parts().collect::<PathBuf>().as_os_str() == path
}

/// Opens (O_PATH) what is at `path` below `directory`; links are followed nowhere, mounts are gone through.
fn beneath(directory: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        directory,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// The path of what `file` is a descriptor of, in the mount namespace of the calling thread.
fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    // Something that was deleted, or that is not below this thread's root.
    if !path.is_absolute() || !same(&path, file) {
        return Err(io::Error::other("it has no path"));
    }
    Ok(path)
}

fn same(path: &Path, file: &OwnedFd) -> bool {
    let id = |file: &OwnedFd| fstat(file).map(|found| FileId::from(&found));
    open_as_it_was(path).is_ok_and(|found| id(&found).is_ok() && id(&found) == id(file))
}

/// Whether mounts that are made in the mount that `file` is in reach others (mount_namespaces(7)).
fn is_shared(file: &OwnedFd) -> io::Result<bool> {
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let id = found.stx_mnt_id.to_string();
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(&id)
            && fields
                .skip(5)
                .take_while(|field| *field != "-")
                .any(|field| field.starts_with("shared:"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(directory: &Path) -> HostMounts {
        let roots = super::super::roots::Roots {
            run: directory.join("run"),
            state: directory.join("state"),
        };
        let mut mounts = HostMounts::new(&roots.pod("0123456789ab"));
        mounts.journalled = true;
        for name in ["volume", "beside"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        mounts
            .share("containers/c/mounts/0".into(), &directory.join("volume"))
            .unwrap();
        mounts
    }

    fn told(place: &str, source: &str) -> VolumeMount {
        VolumeMount {
            place: place.into(),
            source: source.into(),
            ..Default::default()
        }
    }

    #[test]
    fn mounts_outside_shared_volumes_and_crooked_paths_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mounts = mounts(directory.path());
        let inside = "containers/c/mounts/0/x";
        mounts.check(&told(inside, "containers/c/rootfs")).unwrap();
        for source in [
            "", "/etc", "..", "a/../b", "a//b", "./a", "a/", "a/.", "a\0b",
        ] {
            assert!(mounts.check(&told(inside, source)).is_err(), "{source:?}");
        }
        for place in [
            "containers/c/mounts/0",
            "containers/c/mounts/0/",
            "containers/c/mounts/0/../1/x",
            "containers/c/mounts/00/x",
            "containers/c/mounts/1/x",
            "containers/d/mounts/0/x",
            "/containers/c/mounts/0/x",
        ] {
            assert!(mounts.check(&told(place, "a")).is_err(), "{place:?}");
        }
        let long = format!("{inside}/{}", "x/".repeat(NAME_BYTES));
        let error = mounts.check(&told(&long, "a")).unwrap_err();
        assert!(error.to_string().len() < NAME_BYTES + 200);
    }

    #[test]
    fn links_lead_neither_out_of_the_volume_nor_out_of_the_tree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut mounts = mounts(path);
        let tree = mounts.shared.clone();
        fs::create_dir_all(tree.join("real")).unwrap();
        fs::create_dir(path.join("volume/point")).unwrap();
        std::os::unix::fs::symlink(path, tree.join("out")).unwrap();
        std::os::unix::fs::symlink(path.join("beside"), path.join("volume/away")).unwrap();
        let place = |name: &str| format!("containers/c/mounts/0/{name}");
        for (at, of) in [("point", "out/beside"), ("point", "out"), ("away", "real")] {
            let error = mounts.make(&told(&place(at), of)).unwrap_err();
            assert!(
                matches!(
                    error,
                    HostMountError::Make { .. } | HostMountError::Told { .. }
                ),
                "{error}"
            );
        }
        // The volume itself was put elsewhere.
        fs::rename(path.join("volume"), path.join("old")).unwrap();
        std::os::unix::fs::symlink(path.join("beside"), path.join("volume")).unwrap();
        fs::create_dir(path.join("beside/point")).unwrap();
        mounts.make(&told(&place("point"), "real")).unwrap_err();
        assert!(mounts.made.is_empty());
    }

    #[test]
    fn record_of_a_mount_that_is_not_there_is_undone_and_harms_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let records = path.join("records");
        fs::create_dir(&records).unwrap();
        fs::write(records.join("0"), "{\"place\": \"/tor").unwrap();
        for (number, place) in [(1, path.join("absent")), (2, path.to_owned())] {
            let record = Record {
                place,
                shows: FileId::from(&rustix::fs::stat(path).unwrap()),
            };
            fs::write(
                records.join(number.to_string()),
                serde_json::to_vec(&record).unwrap(),
            )
            .unwrap();
        }
        let undone = undo(&records);
        // Only root is asked whether it is a mount.
        if rustix::process::geteuid().is_root() {
            undone.unwrap();
            assert!(!records.exists());
            undo(&records).unwrap();
        }
        assert!(path.exists());
    }
}
