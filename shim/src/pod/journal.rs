//! What was made on the host for a pod, written down before it exists, so that a kill at any instruction leaves
//! nothing that cannot be found again.
//!
//! Mounts of the shared tree and the tap are not in here: they live in the supervisor's own mount namespace and in a descriptor of the
//! VMM, and the kernel takes them away with the processes. Directories are not in here either: they lie at known
//! places below the roots ([`super::roots::PodPaths`]).

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cgroup;
use super::process::ProcessIdentity;
use crate::network;

/// Entries that are read at most: a pod writes fewer than ten.
const ENTRIES: usize = 4096;

/// How long a process of a dead pod may take to go after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Something on the host that outlives the process that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "snake_case")]
pub enum Entry {
    /// A process that must not outlive the pod.
    Process {
        /// What it is, for messages.
        role: String,
        /// Which it is.
        identity: ProcessIdentity,
    },
    /// A cgroup v2 directory; everything in it belongs to the pod.
    Cgroup {
        /// The directory.
        path: PathBuf,
    },
    /// An address of the standalone network.
    Lease {
        /// Directory of the network's state.
        network: PathBuf,
        /// The address.
        address: Ipv4Addr,
        /// Id of the pod that has it; its host ports go with it.
        pod: String,
    },
    /// Links of somebody else's network namespace that are joined to taps.
    Redirect {
        /// The namespace.
        namespace: PathBuf,
        /// Indices of the links.
        links: Vec<u32>,
    },
    /// Mounts in the host's own mount namespace.
    Mounts {
        /// Directory that has a record of each.
        records: PathBuf,
    },
    /// A network interface by name.
    Interface {
        /// Name.
        name: String,
    },
}

/// The journal cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened or written.
    #[error("cannot write the pod's journal {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read the pod's journal {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something resists.
    #[error("cannot take back what the pod made on the host: {}", .0.join("; "))]
    Undo(Vec<String>),
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path` for appending.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| JournalError::Write {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes `entry` down for good. What it names may be made when this has returned, and not before.
    ///
    /// # Errors
    /// When the entry cannot be written.
    pub fn record(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let fail = |source| JournalError::Write {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(entry).map_err(|e| fail(io::Error::other(e)))?;
        line.push(b'\n');
        // One write each, so that a kill leaves a whole line or a torn last one, never two mixed.
        self.file.write_all(&line).map_err(fail)?;
        self.file.sync_data().map_err(fail)
    }
}

/// Reads the entries of the journal at `path`, oldest first. A file that is not there has none; a torn last line is
/// one that was never finished, so that what it names was never made.
///
/// # Errors
/// When the file cannot be read.
pub fn entries(path: &Path) -> Result<Vec<Entry>, JournalError> {
    let fail = |source| JournalError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = Vec::new();
    for line in BufReader::new(file).split(b'\n').take(ENTRIES) {
        let line = line.map_err(fail)?;
        if let Ok(entry) = serde_json::from_slice(&line) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Takes back everything in the journal at `path`, newest first, and empties it. Idempotent: what is gone already is
/// no error. What resists is reported, after everything else was tried; the journal is then kept.
///
/// # Errors
/// When the journal cannot be read or something resists.
pub fn undo(path: &Path) -> Result<(), JournalError> {
    let mut resisting = Vec::new();
    for entry in entries(path)?.iter().rev() {
        if let Err(message) = entry.undo() {
            resisting.push(message);
        }
    }
    if !resisting.is_empty() {
        return Err(JournalError::Undo(resisting));
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(JournalError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

impl Entry {
    fn undo(&self) -> Result<(), String> {
        match self {
            Self::Process { role, identity } => {
                if identity.kill_and_wait(KILL_LIMIT) {
                    Ok(())
                } else {
                    Err(format!(
                        "the {role} process {} does not end after SIGKILL",
                        identity.pid
                    ))
                }
            }
            Self::Cgroup { path } => cgroup::remove(path).map_err(|e| chain(&e)),
            Self::Lease {
                network,
                address,
                pod,
            } => network::release(network, *address, pod).map_err(|e| chain(&e)),
            Self::Redirect { namespace, links } => network::inherited::part(namespace, links),
            Self::Mounts { records } => super::host_mounts::undo(records),
            Self::Interface { name } => network::remove_interface(name).map_err(|e| chain(&e)),
        }
    }
}

/// An error with its causes, as one text: `what: why: why`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(child: &std::process::Child) -> Entry {
        Entry::Process {
            role: "test".into(),
            identity: ProcessIdentity::of(child.id().cast_signed()).unwrap(),
        }
    }

    #[test]
    fn journal_undone_twice_has_ended_its_process_and_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let entry = process(&child);
        Journal::open(&path).unwrap().record(&entry).unwrap();
        undo(&path).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!path.exists());
        undo(&path).unwrap();
    }

    #[test]
    fn journal_with_a_torn_line_keeps_the_whole_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let entry = Entry::Cgroup {
            path: dir.path().join("absent"),
        };
        let mut journal = Journal::open(&path).unwrap();
        journal.record(&entry).unwrap();
        journal.file.write_all(b"{\"made\":\"cgr").unwrap();
        assert_eq!(entries(&path).unwrap(), vec![entry]);
        undo(&path).unwrap();
    }
}
