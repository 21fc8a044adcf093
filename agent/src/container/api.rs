//! What the rest of the agent may ask of containers: the types, the errors and the [`Containers`] trait.
//!
//! [`crate::container::Engine`] is the implementation; the pod driver is written against the trait, so that its state
//! machine can be tested with containers that do not exist. Nothing here does I/O.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use vmpod_agent_protocol::messages::{ExitStatus, Stdio};

use crate::event_log::EventLog;

/// A process that the engine knows: the first one of a container, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessName {
    /// Container id.
    pub container: String,
    /// Exec id; empty for the container's first process.
    pub exec: String,
}

impl ProcessName {
    /// The first process of container `id`.
    pub fn container(id: impl Into<String>) -> Self {
        ProcessName {
            container: id.into(),
            exec: String::new(),
        }
    }

    /// Exec `exec` in container `id`.
    pub fn exec(id: impl Into<String>, exec: impl Into<String>) -> Self {
        ProcessName {
            container: id.into(),
            exec: exec.into(),
        }
    }

    /// Whether this is a container's first process.
    pub fn is_container(&self) -> bool {
        self.exec.is_empty()
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.exec.is_empty() {
            write!(out, "container {:?}", self.container)
        } else {
            write!(
                out,
                "exec {:?} of container {:?}",
                self.exec, self.container
            )
        }
    }
}

/// Which container of a pod manifest a container is, for its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLabel {
    /// Name in the manifest.
    pub container: String,
    /// Counted from 0.
    pub attempt: u32,
}

/// A container to create.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    /// Container id: a single path component, unique in the guest.
    pub id: String,
    /// OCI runtime configuration as JSON, at most [`vmpod_agent_protocol::limits::OCI_SPEC_BYTES`] bytes.
    pub spec: Vec<u8>,
    /// Guest path that takes the place of the specification's `root.path`.
    pub rootfs: Option<String>,
    /// Which streams somebody will connect to.
    pub stdio: Stdio,
    /// Guest path from which the exit status' message is taken; empty: none.
    pub termination_message_path: String,
    /// Set in whole-pod mode: copied into the container's events.
    pub label: Option<PodLabel>,
    /// A PID namespace of its own even where the pod has one.
    pub own_pids: bool,
}

/// A further process in a container.
#[derive(Clone, Debug, Default)]
pub struct CreateExec {
    /// Container id.
    pub container: String,
    /// Exec id, unique in its container, not empty.
    pub exec: String,
    /// OCI `process` object as JSON; absent and null fields are taken from the container's own process.
    pub process: Vec<u8>,
    /// Which streams somebody will connect to.
    pub stdio: Stdio,
}

/// Why a container operation was refused or failed. Every variant's text is a whole sentence for the host.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContainerError {
    /// No such container or exec.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Not in the state that the operation needs (e.g. start of a process that has ended).
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request itself is wrong: a name, a limit, the specification.
    #[error("{0}")]
    InvalidArgument(String),
    /// The process could not be made or executed; the text names the step. Kubernetes' reason for it is StartError
    /// (or ContainerCannotRun), its exit code 128.
    #[error("{0}")]
    Start(String),
    /// Everything else.
    #[error("{0}")]
    Internal(String),
}

/// How an exec that was run to its end went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecOutcome {
    /// How the process ended; `None`: it was killed because the time had passed.
    pub exit: Option<ExitStatus>,
    /// Standard output and standard error together, the first bytes up to the limit asked for.
    pub output: Vec<u8>,
}

/// OCI operations on the containers of this guest. A handle; clones name the same containers.
pub trait Containers: Clone + Send + Sync + 'static {
    /// Makes the container; its process waits before execve. Returns the pid in the agent's PID namespace. On error
    /// nothing is left behind. Event: `CONTAINER_CREATED`.
    fn create(
        &self,
        request: CreateContainer,
    ) -> impl Future<Output = Result<u32, ContainerError>> + Send;

    /// Makes a waiting process in a running container. Returns its pid.
    fn create_exec(
        &self,
        request: CreateExec,
    ) -> impl Future<Output = Result<u32, ContainerError>> + Send;

    /// Lets a created process execute its command and returns when execve has succeeded or failed. After a failure
    /// ([`ContainerError::Start`]) the process has ended with code 128 and reason `StartError`, and still wants
    /// [`Containers::delete`]. Events: `CONTAINER_STARTED`, `EXEC_STARTED`.
    fn start(
        &self,
        process: &ProcessName,
    ) -> impl Future<Output = Result<(), ContainerError>> + Send;

    /// Sends a signal to the process, or with `all` to every process of its container. A process that has ended:
    /// `NotFound`.
    fn signal(&self, process: &ProcessName, signal: u32, all: bool) -> Result<(), ContainerError>;

    /// Waits for the end of the process; answers at once, again and again, once it has ended, until it is deleted.
    /// Events at the end: `CONTAINER_OOM`, `CONTAINER_EXITED`, `EXEC_EXITED`.
    fn wait(
        &self,
        process: &ProcessName,
    ) -> impl Future<Output = Result<ExitStatus, ContainerError>> + Send;

    /// Removes a process that has ended or was never started (which is then killed), with its cgroup; unread output
    /// can be read for a bounded time still. A running process: `FailedPrecondition`.
    fn delete(
        &self,
        process: &ProcessName,
    ) -> impl Future<Output = Result<ExitStatus, ContainerError>> + Send;

    /// Runs a command in the container to its end, or kills it after `time`, for probes and lifecycle hooks.
    /// `process` is as in [`CreateExec::process`]; at most `output_limit` bytes of output are kept.
    fn run(
        &self,
        container: &str,
        process: Vec<u8>,
        time: Duration,
        output_limit: usize,
    ) -> impl Future<Output = Result<ExecOutcome, ContainerError>> + Send;

    /// The last bytes that the container wrote to standard output and standard error and that have passed through
    /// the agent, at most 2048 (terminationMessagePolicy FallbackToLogsOnError).
    fn output_tail(&self, container: &str) -> Vec<u8>;

    /// The log into which the events go.
    fn events(&self) -> &EventLog;
}
