//! Where a pod lives on the host: the two roots, and the paths below them. Pure path arithmetic, no I/O but
//! [`Roots::create`].

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The two directories below which everything of vmpod's own is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// What lives until the next boot (`/run/vmpod`): pod records, sockets, shared trees, network leases.
    pub run: PathBuf,
    /// What is large or outlives a boot (`/var/lib/vmpod`): images, writable layers, volumes, logs.
    pub state: PathBuf,
}

/// A root directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// It cannot be made.
    #[error("cannot make directory {}; run as root, or choose another with --root and --state", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Socket paths below it would exceed what Unix sockets take.
    #[error("the runtime root {} is too long: socket paths below it would exceed 107 bytes; choose a shorter --root", path.display())]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
    /// It is relative.
    #[error("the root {} is not an absolute path", path.display())]
    Relative {
        /// The directory.
        path: PathBuf,
    },
}

/// Longest path of a Unix socket without its terminating zero (`sun_path`, unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

impl Default for Roots {
    fn default() -> Self {
        Self {
            run: PathBuf::from("/run/vmpod"),
            state: PathBuf::from("/var/lib/vmpod"),
        }
    }
}

impl Roots {
    /// Makes both roots, readable by root alone.
    ///
    /// # Errors
    /// When a root is relative, too long for sockets, or cannot be made.
    pub fn create(&self) -> Result<(), RootsError> {
        for path in [&self.run, &self.state] {
            if !path.is_absolute() {
                return Err(RootsError::Relative { path: path.clone() });
            }
        }
        let longest = self.pod("0123456789ab").vsock_listener(u32::MAX);
        if longest.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(RootsError::TooLong {
                path: self.run.clone(),
            });
        }
        for path in [self.run.join("pods"), self.state.join("pods")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| RootsError::Create { path, source })?;
        }
        Ok(())
    }

    /// Root of the image store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Directory of the standalone network's leases and settings.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.run.join("network")
    }

    /// Lock that serialises reservation and admission of pods.
    #[must_use]
    pub fn ledger_lock(&self) -> PathBuf {
        self.run.join("ledger.lock")
    }

    /// Directory of the machines that pods go on from.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.run.join("templates")
    }

    /// Directory that holds one directory a pod.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Directory that holds the bulky part of each pod.
    #[must_use]
    pub fn pod_states(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// The paths of one pod.
    #[must_use]
    pub fn pod(&self, id: &str) -> PodPaths {
        PodPaths {
            run: self.pods().join(id),
            state: self.pod_states().join(id),
        }
    }
}

/// The paths of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPaths {
    /// `<run>/pods/<id>`.
    pub run: PathBuf,
    /// `<state>/pods/<id>`.
    pub state: PathBuf,
}

impl PodPaths {
    /// Lock held by whoever looks after the pod: the command that prepares it, then its supervisor.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// Name, requests and host ports: written first, so that other commands can see who holds what.
    #[must_use]
    pub fn reservation(&self) -> PathBuf {
        self.run.join("reservation.json")
    }

    /// Everything the supervisor needs to know.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.run.join("config.json")
    }

    /// The Pod object of the manifest, its defaults filled in.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.run.join("manifest.json")
    }

    /// The text of the manifest, whose ConfigMaps and Secrets later updates of volumes want.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.run.join("source.yaml")
    }

    /// Conditions of the pod that somebody else has set, by type.
    #[must_use]
    pub fn conditions(&self) -> PathBuf {
        self.run.join("conditions.json")
    }

    /// Ephemeral containers that the supervisor is asked for, one file each.
    #[must_use]
    pub fn ephemeral(&self) -> PathBuf {
        self.run.join("ephemeral")
    }

    /// The pod's status as of the last event.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.run.join("status.json")
    }

    /// One JSON object a line for each event.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.run.join("events.jsonl")
    }

    /// What was made on the host for this pod.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.run.join("journal")
    }

    /// What the VMM itself may write to: its own root holds nothing else of the pod's directory.
    #[must_use]
    pub fn machine(&self) -> PathBuf {
        self.run.join("machine")
    }

    /// The guest's serial console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.machine().join("console.log")
    }

    /// What the VMM says on its standard error.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.run.join("vmm.log")
    }

    /// What the supervisor says.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.run.join("supervisor.log")
    }

    /// The socket that surfaces the guest's vsock.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.machine().join("vsock.sock")
    }

    /// The socket that a guest reaches as host port `port`.
    #[must_use]
    pub fn vsock_listener(&self, port: u32) -> PathBuf {
        self.machine().join(format!("vsock.sock_{port}"))
    }

    /// Empty directory that becomes the root of the VMM's own mount namespace.
    #[must_use]
    pub fn jail(&self) -> PathBuf {
        self.run.join("jail")
    }

    /// A template that this pod's machine is being written to.
    #[must_use]
    pub fn template(&self) -> PathBuf {
        self.run.join("template")
    }

    /// The tree that the guest sees at `/run/vmpod/shared`.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.run.join("shared")
    }

    /// Content of configMap and secret volumes: in memory, as secrets should be.
    #[must_use]
    pub fn files(&self, volume: &str) -> PathBuf {
        self.run.join("files").join(volume)
    }

    /// Disk-backed emptyDir volumes.
    #[must_use]
    pub fn volume(&self, volume: &str) -> PathBuf {
        self.state.join("volumes").join(volume)
    }

    /// Writable layer of one attempt of a container.
    #[must_use]
    pub fn writable(&self, container: &str, attempt: u32) -> PathBuf {
        self.state
            .join("writable")
            .join(format!("{container}.{attempt}"))
    }

    /// Directory of the pod's logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Log of one attempt of a container, in the format of the CRI.
    #[must_use]
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs().join(container).join(format!("{attempt}.log"))
    }
}

/// The last part of `path` as text; empty when there is none.
#[must_use]
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_too_long_for_sockets_are_refused() {
        let roots = Roots {
            run: PathBuf::from(format!("/{}", "x".repeat(90))),
            state: PathBuf::from("/tmp"),
        };
        assert!(matches!(roots.create(), Err(RootsError::TooLong { .. })));
    }

    #[test]
    fn roots_relative_are_refused() {
        let roots = Roots {
            run: PathBuf::from("run"),
            state: PathBuf::from("/tmp"),
        };
        assert!(matches!(roots.create(), Err(RootsError::Relative { .. })));
    }
}
