//! The supervising process of a pod: makes everything the pod needs of the host, starts the machine, hands the pod to the
//! agent, keeps logs and status, and takes everything back at the end.
//!
//! One process a pod, one thread, no daemon above it: it survives the command that started it, and when it dies the
//! machine dies with it. It touches neither manifests nor the image store.
//!
//! Signals: SIGTERM stops the pod in order, SIGINT kills the machine at once.

mod containers;
mod disks;
mod drive;
mod ephemeral;
mod handover;
mod requests;
mod resources;
mod setup;
mod stdio;

pub use handover::{Report, SuperviseStart, Supervisor, spawn};

use std::time::Duration;

use super::boot::{BootError, Witness};
use super::clock;
use super::console::console_tail;
use super::durable::{self, DurableError};
use super::events::{EventLog, PodEvent};
use super::host_mounts::HostMountError;
use super::journal::{self, Journal, JournalError, chain};
use super::process::ProcessIdentity;
use super::record::PodRecord;
use super::registry;
use super::roots::{PodPaths, Roots};
use super::status::PodStatus;
use super::tree::TreeError;
use crate::network::{NetworkError, PortConflict};
use handover::Reporter;

/// A pod cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Records.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// Journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// cgroup.
    #[error(transparent)]
    Cgroup(#[from] super::cgroup::CgroupError),
    /// Network.
    #[error("cannot set up the pod's network")]
    Network(#[from] NetworkError),
    /// Host port.
    #[error(transparent)]
    Port(#[from] PortConflict),
    /// Volumes and root file systems.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The machine.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Volumes that share mounts with the host.
    #[error("cannot share the mounts of a volume with the host")]
    HostMounts(#[from] HostMountError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] disks::DiskError),
    /// A system call.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// What the supervisor works with.
#[derive(Debug)]
struct Pod {
    roots: Roots,
    paths: PodPaths,
    record: PodRecord,
    status: PodStatus,
    events: EventLog,
}

impl Pod {
    /// Writes the status. One that cannot be written is tried again with the next event.
    fn save(&self) {
        if let Err(error) = durable::write_json(&self.paths.status(), &self.status) {
            tracing::error!(error = chain(&error), "cannot write the pod's status");
        }
    }

    fn event(&mut self, kind: &str, container: &str, message: &str) {
        self.events.append(&PodEvent {
            at_ns: clock::now_ns(),
            pod: self.record.id.clone(),
            name: self.record.name.clone(),
            kind: kind.to_owned(),
            container: container.to_owned(),
            attempt: 0,
            exit_code: None,
            message: message.to_owned(),
        });
    }

    /// The last lines of the guest's console with a heading, or nothing when it said nothing.
    fn console_tail(&self) -> String {
        console_tail(&self.paths.console())
    }
}

impl Witness for Pod {
    fn vmm_started(&mut self, vmm: Option<ProcessIdentity>) {
        self.status.vmm = vmm;
        self.save();
    }

    fn event(&mut self, kind: &str, message: &str) {
        Self::event(self, kind, "", message);
    }
}

/// Runs the pod that `start` names to its end. Returns whether it was started at all.
#[must_use]
pub fn supervise(start: SuperviseStart) -> bool {
    let mut reporter = Reporter::new(start.report);
    let paths = start.roots.pod(&start.id);
    let opened = durable::read_json::<PodRecord>(&paths.config())
        .map_err(StartError::from)
        .and_then(|record| {
            let events = EventLog::open(&paths.events()).map_err(|source| StartError::System {
                what: "open the event log",
                source,
            })?;
            let mut status = PodStatus::preparing(&record);
            status.supervisor = ProcessIdentity::own();
            Ok(Pod {
                roots: start.roots,
                paths: paths.clone(),
                record,
                status,
                events,
            })
        });
    let mut pod = match opened {
        Ok(pod) => pod,
        Err(error) => {
            reporter.send(&Report::Failed {
                message: chain(&error),
            });
            return false;
        }
    };
    pod.save();
    pod.event("PodPreparing", "", "");

    let started = Journal::open(&paths.journal())
        .map_err(StartError::from)
        .and_then(|journal| setup::setup(&mut pod, journal))
        .and_then(|prepared| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| StartError::System {
                    what: "start the event loop",
                    source,
                })?;
            runtime.block_on(drive::run(&mut pod, prepared, &mut reporter))
        });
    if let Err(error) = &started {
        let message = chain(error);
        tracing::error!(message, "the pod was not started");
        pod.status.fail("StartFailed", &message, clock::now_ns());
        pod.event("PodStartFailed", "", &message);
        pod.save();
    }
    // Machine and taps are gone: what the kernel does not take away by itself goes now.
    if let Err(error) = journal::undo(&paths.journal()) {
        tracing::error!(error = chain(&error), "the next `vmpod gc` will try again");
    }
    registry::remove_bulk(&paths);
    match &started {
        Err(error) => reporter.send(&Report::Failed {
            message: chain(error),
        }),
        Ok(()) => reporter.send(&Report::Finished),
    }
    if pod.record.remove_when_done || started.is_err() {
        // Whoever started the pod in the foreground still reads its logs.
        reporter.wait_closed(Duration::from_secs(10));
        if let Err(error) = registry::forget(&paths) {
            tracing::error!(error = chain(&error), "the next `vmpod gc` will try again");
        }
    }
    // The lock is released by the end of the process, after everything else.
    drop(start.lock);
    started.is_ok()
}
