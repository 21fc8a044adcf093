//! `config.json` of the OCI runtime specification (config.md) as far as a container in the guest has a use for it, and the
//! `process` object of an exec.
//!
//! The two outermost objects are our own: those of oci-spec check `execCPUAffinity` with a regular-expression engine, which
//! would be half a megabyte of every machine.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Box as ConsoleSize, Hooks, Linux, LinuxCapabilities, LinuxIOPriority, Mount, PosixRlimit, Root,
    Scheduler, User,
};
use serde::Deserialize;
use serde_json::Value;

/// A container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification.
    #[serde(default)]
    pub oci_version: String,
    /// Root file system.
    pub root: Option<Root>,
    /// Mounts in their order.
    pub mounts: Option<Vec<Mount>>,
    /// First process.
    pub process: Option<Process>,
    /// Name in a UTS namespace of its own.
    pub hostname: Option<String>,
    /// NIS domain there.
    pub domainname: Option<String>,
    /// Hooks.
    pub hooks: Option<Hooks>,
    /// Annotations, for hooks to read.
    pub annotations: Option<HashMap<String, String>>,
    /// What is Linux' own.
    pub linux: Option<Linux>,
}

/// A process.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a terminal.
    pub terminal: Option<bool>,
    /// Of what size.
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    pub user: User,
    /// Program and arguments.
    pub args: Option<Vec<String>>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Sets of capabilities.
    pub capabilities: Option<LinuxCapabilities>,
    /// Limits, setrlimit(2).
    pub rlimits: Option<Vec<PosixRlimit>>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: Option<bool>,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// ioprio_set(2).
    pub io_priority: Option<LinuxIOPriority>,
    /// sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// CPUs of an exec. Not supported, and not passed over either.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<Value>,
}
