//! Which pods there are: reservation of names, admission against the host's capacity, look-up, and the end of what a
//! killed process left behind. All of it works on files below the roots; nobody has to run for it.

mod error;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

pub use self::error::RegistryError;
use self::error::failing;
use super::clock;
use super::durable;
use super::journal;
use super::process;
use super::record::{PodRecord, Reservation};
use super::roots::{PodPaths, Roots};
use super::status::PodStatus;
use super::tree::remove_tree;
use crate::host::capacity::Capacity;
use crate::manifest::plan::{HostPort, Resources};
use crate::network;

/// A pod as it is found on disk.
#[derive(Clone, Debug)]
pub struct FoundPod {
    /// Its paths.
    pub paths: PodPaths,
    /// What it holds.
    pub reservation: Reservation,
    /// Its status; `None` before it was prepared.
    pub status: Option<PodStatus>,
    /// Somebody looks after it: the command that prepares it or its supervisor.
    pub attended: bool,
}

impl FoundPod {
    /// Whether it has ended, in order or by a kill.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.attended
            || self
                .status
                .as_ref()
                .is_some_and(|status| status.phase.is_final())
    }
}

/// A name taken and a directory made; the lock says that somebody looks after it.
#[derive(Debug)]
pub struct ReservedPod {
    /// Paths of the new pod.
    pub paths: PodPaths,
    /// What it holds.
    pub reservation: Reservation,
    /// Held until the supervisor has taken over: an open file description that it inherits.
    pub lock: File,
}

/// What a pod asks for when it is reserved.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Name.
    pub name: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// What it takes of the host.
    pub requests: Resources,
    /// Ports that it takes.
    pub host_ports: &'a [HostPort],
}

/// Reserves a name, host ports and capacity, all or nothing.
///
/// # Errors
/// When one of them cannot be had; nothing exists then.
pub fn reserve(
    roots: &Roots,
    capacity: &Capacity,
    wish: Wish<'_>,
) -> Result<ReservedPod, RegistryError> {
    reap(roots)?;
    let ledger = roots.ledger_lock();
    let _ledger = process::lock(&ledger).map_err(failing("lock", &ledger))?;
    let others = list(roots)?;
    if let Some(other) = others.iter().find(|other| {
        other.reservation.name == wish.name && other.reservation.namespace == wish.namespace
    }) {
        return Err(RegistryError::NameTaken {
            name: wish.name.to_owned(),
            namespace: wish.namespace.to_owned(),
            id: other.reservation.id.clone(),
            what: match &other.status {
                _ if !other.attended => "there, and has ended",
                Some(status) if status.phase.is_final() => "there, and has ended",
                Some(_) => "running",
                None => "being prepared",
            },
        });
    }
    let running: Vec<&FoundPod> = others.iter().filter(|pod| !pod.has_ended()).collect();
    for other in &running {
        if let Some(conflict) = network::conflict_between(
            wish.host_ports,
            &other.reservation.host_ports,
            &other.reservation.name,
        ) {
            return Err(conflict.into());
        }
    }
    // Ports that a process of the host has: found before anything exists, and taken for good by the supervisor.
    drop(network::hold(wish.host_ports)?);
    capacity.admit(
        wish.requests,
        running.iter().map(|pod| pod.reservation.requests),
    )?;

    make(
        roots,
        Reservation {
            id: new_id(),
            name: wish.name.to_owned(),
            namespace: wish.namespace.to_owned(),
            requests: wish.requests,
            host_ports: wish.host_ports.to_vec(),
            created_at_ns: clock::now_ns(),
        },
    )
}

/// Takes in pod `id` of somebody who has admitted it already: a kubelet by way of containerd.
///
/// # Errors
/// When it is there already or its directories cannot be made; nothing is left then.
pub fn adopt(
    roots: &Roots,
    id: &str,
    name: &str,
    namespace: &str,
) -> Result<ReservedPod, RegistryError> {
    let ledger = roots.ledger_lock();
    roots.create().map_err(RegistryError::Roots)?;
    let _ledger = process::lock(&ledger).map_err(failing("lock", &ledger))?;
    make(
        roots,
        Reservation {
            id: id.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            requests: Resources::default(),
            host_ports: Vec::new(),
            created_at_ns: clock::now_ns(),
        },
    )
}

fn make(roots: &Roots, reservation: Reservation) -> Result<ReservedPod, RegistryError> {
    let paths = roots.pod(&reservation.id);
    DirBuilder::new()
        .mode(0o700)
        .create(&paths.run)
        .map_err(failing("make directory", &paths.run))?;
    let lock = process::try_lock(&paths.lock())
        .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::WouldBlock.into()))
        .map_err(failing("lock", &paths.lock()))?;
    let written = durable::write_json(&paths.reservation(), &reservation)
        .map_err(RegistryError::from)
        .and_then(|()| {
            DirBuilder::new()
                .mode(0o700)
                .create(&paths.state)
                .map_err(failing("make directory", &paths.state))
        });
    if let Err(error) = written {
        let _ = remove_tree(&paths.run);
        return Err(error);
    }
    Ok(ReservedPod {
        paths,
        reservation,
        lock,
    })
}

impl ReservedPod {
    /// Takes everything back.
    ///
    /// # Errors
    /// When something resists.
    pub fn cancel(self) -> Result<(), RegistryError> {
        forget(&self.paths)
    }
}

/// All pods, oldest first. Directories without a reservation are not pods yet.
///
/// # Errors
/// When the directory of pods cannot be read.
pub fn list(roots: &Roots) -> Result<Vec<FoundPod>, RegistryError> {
    let directory = roots.pods();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failing("read directory", &directory)(error)),
    };
    let mut found: Vec<FoundPod> = entries
        .flatten()
        .filter_map(|entry| {
            let paths = roots.pod(entry.file_name().to_str()?);
            let reservation = durable::read_json(&paths.reservation()).ok()?;
            // The lock is looked at before the status: a supervisor that ends in between has written the final one.
            let attended = process::is_locked(&paths.lock());
            let status = durable::read_json(&paths.status()).ok();
            Some(FoundPod {
                paths,
                reservation,
                status,
                attended,
            })
        })
        .collect();
    found.sort_by_key(|pod| pod.reservation.created_at_ns);
    Ok(found)
}

/// The pod that `selector` names: its name, `namespace/name`, its id or the beginning of its id.
///
/// # Errors
/// When there is none or more than one.
pub fn find(roots: &Roots, selector: &str) -> Result<FoundPod, RegistryError> {
    let pods = list(roots)?;
    let named: Vec<&FoundPod> = pods
        .iter()
        .filter(|pod| {
            let r = &pod.reservation;
            r.name == selector
                || selector
                    .split_once('/')
                    .is_some_and(|(namespace, name)| r.namespace == namespace && r.name == name)
        })
        .collect();
    let chosen = if named.is_empty() && selector.len() >= 3 {
        pods.iter()
            .filter(|pod| pod.reservation.id.starts_with(selector))
            .collect()
    } else {
        named
    };
    match chosen.as_slice() {
        [] => Err(RegistryError::NotFound {
            selector: selector.to_owned(),
        }),
        [one] => Ok((*one).clone()),
        several => Err(RegistryError::Ambiguous {
            selector: selector.to_owned(),
            ids: several
                .iter()
                .map(|pod| pod.reservation.id.clone())
                .collect(),
        }),
    }
}

/// Ends what pods of killed processes left behind: their journals are undone, and those that ran get a final status.
/// Their records stay for the user to see, but those that never ran or asked to be removed go.
///
/// # Errors
/// When something resists.
pub fn reap(roots: &Roots) -> Result<Vec<Reaped>, RegistryError> {
    let mut reaped = Vec::new();
    for pod in list(roots)? {
        if pod.attended {
            continue;
        }
        // Whoever gets the lock looks after the pod from now on.
        let Some(_lock) =
            process::try_lock(&pod.paths.lock()).map_err(failing("lock", &pod.paths.lock()))?
        else {
            continue;
        };
        let final_status = pod
            .status
            .as_ref()
            .is_some_and(|status| status.phase.is_final());
        let had_journal = pod.paths.journal().exists();
        journal::undo(&pod.paths.journal())?;
        remove_bulk(&pod.paths);
        let record: Option<PodRecord> = durable::read_json(&pod.paths.config()).ok();
        let gone = match (&pod.status, &record) {
            (Some(_), Some(record)) => record.remove_when_done,
            _ => true,
        };
        if gone {
            forget(&pod.paths)?;
        } else if let Some(mut status) = pod.status.filter(|_| !final_status) {
            status.fail(
                "SupervisorLost",
                "the pod's supervising process was killed; the machine ended with it",
                clock::now_ns(),
            );
            status.abandoned = true;
            durable::write_json(&pod.paths.status(), &status)?;
        }
        if gone || had_journal || !final_status {
            reaped.push(Reaped {
                id: pod.reservation.id,
                name: pod.reservation.name,
                removed: gone,
            });
        }
    }
    Ok(reaped)
}

/// A pod that [`reap`] or [`collect`] ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reaped {
    /// Id.
    pub id: String,
    /// Name; empty when nothing was left to tell it.
    pub name: String,
    /// Its record is gone as well.
    pub removed: bool,
}

/// [`reap`], and removes the records of pods whose supervisor was killed, half-made directories, and leases of nobody;
/// with `ended` the records of all pods that have ended.
///
/// # Errors
/// When something resists.
pub fn collect(roots: &Roots, ended: bool) -> Result<Vec<Reaped>, RegistryError> {
    let mut reaped = reap(roots)?;
    let ledger = roots.ledger_lock();
    let _ledger = process::lock(&ledger).map_err(failing("lock", &ledger))?;
    for pod in list(roots)? {
        let abandoned = pod.status.as_ref().is_some_and(|status| status.abandoned);
        if pod.attended || !(abandoned || ended) {
            continue;
        }
        let Some(_lock) =
            process::try_lock(&pod.paths.lock()).map_err(failing("lock", &pod.paths.lock()))?
        else {
            continue;
        };
        journal::undo(&pod.paths.journal())?;
        forget(&pod.paths)?;
        reaped.retain(|other| other.id != pod.reservation.id);
        reaped.push(Reaped {
            id: pod.reservation.id,
            name: pod.reservation.name,
            removed: true,
        });
    }
    // Directories that no reservation belongs to: a kill between the first and the second step of a reservation or a
    // removal, or a boot that took the runtime root away. Reservations are made under the ledger's lock.
    for directory in [roots.pods(), roots.pod_states()] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let paths = roots.pod(&name);
            if paths.reservation().exists() || process::is_locked(&paths.lock()) {
                continue;
            }
            journal::undo(&paths.journal())?;
            forget(&paths)?;
            if !reaped.iter().any(|other| other.id == name) {
                reaped.push(Reaped {
                    id: name,
                    name: String::new(),
                    removed: true,
                });
            }
        }
    }
    network::repair(&roots.network(), |id| {
        process::is_locked(&roots.pod(id).lock())
    })?;
    sweep_half_written(roots);
    Ok(reaped)
}

/// Removes what processes that were killed while they wrote left, in every directory that records are written to. The
/// image store and the templates write into scratch directories, which are swept by their owners.
fn sweep_half_written(roots: &Roots) {
    let network = roots.network();
    durable::sweep(&network.join("leases"));
    durable::sweep(&network);
    for entry in fs::read_dir(roots.pods()).into_iter().flatten().flatten() {
        durable::sweep(&entry.path());
    }
}

/// Removes the record of a pod that has ended.
///
/// # Errors
/// When it runs, or something resists.
pub fn remove(pod: &FoundPod, patience: Duration) -> Result<(), RegistryError> {
    let deadline = Instant::now() + patience;
    let path = pod.paths.lock();
    let _lock = loop {
        if !path.exists() {
            return Ok(());
        }
        if let Some(lock) = process::try_lock(&path).map_err(failing("lock", &path))? {
            break lock;
        }
        if Instant::now() >= deadline {
            return Err(RegistryError::Running {
                name: pod.reservation.name.clone(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    journal::undo(&pod.paths.journal())?;
    forget(&pod.paths)
}

/// Waits until nobody looks after the pod any more, at most `limit`. Returns whether that is so.
#[must_use]
pub fn wait_unattended(paths: &PodPaths, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while process::is_locked(&paths.lock()) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Removes what is large and of no use after the end: writable layers, volumes of the pod's own, files of secrets.
pub fn remove_bulk(paths: &PodPaths) {
    for path in [
        paths.state.join("writable"),
        paths.state.join("volumes"),
        paths.run.join("files"),
        paths.run.join("skeleton"),
        paths.run.join("shared"),
        paths.run.join("jail"),
    ] {
        // What resists is tried again when the record is removed, and said then.
        let _ = remove_tree(&path);
    }
}

/// Removes both directories of a pod. The reservation goes last but one, the lock with its directory last: a kill in
/// between leaves something that is found again.
pub fn forget(paths: &PodPaths) -> Result<(), RegistryError> {
    remove_tree(&paths.state).map_err(failing("remove", &paths.state))?;
    for entry in fs::read_dir(&paths.run).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != paths.lock() && path != paths.reservation() {
            remove_tree(&path).map_err(failing("remove", &path))?;
        }
    }
    remove_tree(&paths.run).map_err(failing("remove", &paths.run))
}

/// Twelve random hexadecimal digits.
fn new_id() -> String {
    let mut bytes = [0_u8; 6];
    // Six bytes are never cut short by the kernel; were there an error, the clock still tells ids apart.
    if rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = clock::now_ns().to_le_bytes();
        bytes.copy_from_slice(&now[..6]);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn roots() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots {
            run: dir.path().join("run"),
            state: dir.path().join("state"),
        };
        roots.create().unwrap();
        (dir, roots)
    }

    const CAPACITY: Capacity = Capacity {
        cpu_millis: 4000,
        memory_bytes: 1 << 30,
    };

    fn wish(name: &str) -> Wish<'_> {
        Wish {
            name,
            namespace: "default",
            requests: Resources {
                cpu_millis: 100,
                memory_bytes: 400 << 20,
            },
            host_ports: &[],
        }
    }

    #[test]
    fn name_that_is_taken_is_refused_and_free_again_after_a_cancel() {
        let (_dir, roots) = roots();
        let first = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        let error = reserve(&roots, &CAPACITY, wish("a")).unwrap_err();
        assert!(
            error.to_string().contains("already being prepared"),
            "{error}"
        );
        first.cancel().unwrap();
        reserve(&roots, &CAPACITY, wish("a")).unwrap();
    }

    #[test]
    fn pod_beyond_the_capacity_is_refused_and_nothing_exists() {
        let (_dir, roots) = roots();
        let _one = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        let _two = reserve(&roots, &CAPACITY, wish("b")).unwrap();
        assert!(matches!(
            reserve(&roots, &CAPACITY, wish("c")),
            Err(RegistryError::Capacity(_))
        ));
        assert_eq!(fs::read_dir(roots.pods()).unwrap().count(), 2);
        assert_eq!(fs::read_dir(roots.pod_states()).unwrap().count(), 2);
    }

    #[test]
    fn reservation_of_a_killed_command_is_reaped_by_the_next() {
        let (_dir, roots) = roots();
        // Dropping the lock is what a kill does.
        drop(reserve(&roots, &CAPACITY, wish("a")).unwrap());
        let again = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        assert_eq!(list(&roots).unwrap().len(), 1);
        again.cancel().unwrap();
        assert_eq!(fs::read_dir(roots.pods()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(roots.pod_states()).unwrap().count(), 0);
    }

    #[test]
    fn directories_without_a_reservation_are_collected() {
        let (_dir, roots) = roots();
        fs::create_dir(roots.pods().join("aaaaaaaaaaaa")).unwrap();
        fs::create_dir_all(roots.pod_states().join("bbbbbbbbbbbb/logs")).unwrap();
        let held = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        let mut ids: Vec<String> = collect(&roots, true)
            .unwrap()
            .into_iter()
            .map(|reaped| reaped.id)
            .collect();
        ids.sort();
        assert_eq!(ids, ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]);
        assert_eq!(list(&roots).unwrap()[0].reservation, held.reservation);
    }

    #[test]
    fn half_written_files_of_killed_processes_are_collected_wherever_records_are_written() {
        let (_dir, roots) = roots();
        let held = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        fs::create_dir_all(roots.network().join("leases")).unwrap();
        // No process has the largest number there is.
        let left = [
            roots.network().join("leases/192.0.2.2"),
            roots.network().join("last-address"),
            roots.network().join("settings.json"),
            roots.network().join("rules"),
            held.paths.status(),
            held.paths.config(),
        ]
        .map(|path| PathBuf::from(format!("{}.4194304.new", path.display())));
        let whole = roots.network().join("last-address");
        for path in left.iter().chain([&whole]) {
            fs::write(path, "\"192").unwrap();
        }
        collect(&roots, false).unwrap();
        for path in &left {
            assert!(!path.exists(), "{}", path.display());
        }
        assert!(whole.exists() && held.paths.reservation().exists());
    }

    #[test]
    fn selector_finds_by_name_and_by_the_beginning_of_an_id() {
        let (_dir, roots) = roots();
        let a = reserve(&roots, &CAPACITY, wish("a")).unwrap();
        let _b = reserve(&roots, &CAPACITY, wish("b")).unwrap();
        let id = a.reservation.id.clone();
        for selector in ["a", "default/a", &id[..8], &id] {
            assert_eq!(find(&roots, selector).unwrap().reservation.id, id);
        }
        assert!(matches!(
            find(&roots, "zz"),
            Err(RegistryError::NotFound { .. })
        ));
    }
}
