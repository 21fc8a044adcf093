//! Why a pod cannot be reserved, found or removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::capacity::CapacityError;
use crate::network::{NetworkError, PortConflict};
use crate::pod::durable::DurableError;
use crate::pod::journal::JournalError;

/// A pod cannot be reserved, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error(
        "a pod named {name:?} in namespace {namespace:?} is already {what} (id {id}); stop and remove it with `vmpod rm -f {name}`, or give this one another name with --name"
    )]
    NameTaken {
        /// Name.
        name: String,
        /// Namespace.
        namespace: String,
        /// Id of the other.
        id: String,
        /// What the other is doing.
        what: &'static str,
    },
    /// The host is too small, now or at all.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// A host port is taken.
    #[error(transparent)]
    Port(#[from] PortConflict),
    /// The roots.
    #[error(transparent)]
    Roots(#[from] crate::pod::roots::RootsError),
    /// No such pod.
    #[error("there is no pod {selector:?}; `vmpod ps --all` lists them")]
    NotFound {
        /// As given.
        selector: String,
    },
    /// More than one.
    #[error("{selector:?} could be any of {}; give a whole id", .ids.join(", "))]
    Ambiguous {
        /// As given.
        selector: String,
        /// Ids.
        ids: Vec<String>,
    },
    /// It runs.
    #[error("pod {name:?} is running; stop it first, or use --force")]
    Running {
        /// Name.
        name: String,
    },
    /// Its processes do not go.
    #[error("pod {name:?} did not end within {} s", limit.as_secs())]
    Stuck {
        /// Name.
        name: String,
        /// The bound.
        limit: Duration,
    },
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A record.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// What the pod made resists.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The network resists.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

pub(super) fn failing<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> RegistryError + 'a {
    move |source| RegistryError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
