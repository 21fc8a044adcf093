//! An OCI `process` object, checked: what one program runs as. The same for a container's first process and an exec.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, IOPriorityClass, LinuxSchedulerPolicy, PosixRlimitType};
use serde_json::Value;
use vmpod_agent_protocol::capability;

use super::oci_config::Process;
use super::plan::PlanError;

/// Arguments and environment variables together, at most (the kernel's own limit is on bytes).
const STRINGS: usize = 65_536;

/// Five capability sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// One resource limit: resource number, soft and hard value.
pub type Rlimit = (libc::__rlimit_resource_t, u64, u64);

/// Scheduling attributes, sched_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerPlan {
    /// Policy number.
    pub policy: u32,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
}

/// What a program runs as.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    /// A pseudoterminal is its standard streams.
    pub terminal: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Program and arguments; not empty.
    pub args: Vec<CString>,
    /// `NAME=VALUE`, names unique, the last one wins.
    pub env: Vec<CString>,
    /// Absolute path.
    pub cwd: PathBuf,
    /// Capabilities; `None`: all sets empty.
    pub capabilities: CapabilitySets,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// ioprio_set(2) value: class and priority.
    pub io_priority: Option<libc::c_int>,
    /// Scheduling.
    pub scheduler: Option<SchedulerPlan>,
}

impl ProcessPlan {
    /// Parses an exec's `process` object; absent and null fields come from `defaults`, the container's own.
    pub fn parse_exec(json: &[u8], defaults: &Value) -> Result<Self, PlanError> {
        let given: Value = serde_json::from_slice(json)
            .map_err(|error| PlanError(format!("OCI process is not JSON: {error}")))?;
        let Value::Object(given) = given else {
            return Err(PlanError::new("OCI process is not a JSON object"));
        };
        let mut merged = defaults.as_object().cloned().unwrap_or_default();
        // The size belongs to the container's terminal, not to one that an exec may get.
        merged.remove("consoleSize");
        merged.remove("terminal");
        for (key, value) in given {
            if !value.is_null() {
                merged.insert(key, value);
            }
        }
        let process: Process = serde_json::from_value(Value::Object(merged))
            .map_err(|error| PlanError(format!("OCI process is not valid: {error}")))?;
        Self::from_spec(&process)
    }

    /// Checks a `process` object.
    pub fn from_spec(process: &Process) -> Result<Self, PlanError> {
        if process.exec_cpu_affinity.is_some() {
            return Err(PlanError::new(
                "process.execCPUAffinity is not supported: an exec runs on the CPUs of its container",
            ));
        }
        let args = process.args.clone().unwrap_or_default();
        if args.first().is_none_or(String::is_empty) {
            return Err(PlanError::new(
                "process.args names no command: give the container a command or an image with an entrypoint",
            ));
        }
        let cwd = process.cwd.clone();
        if !cwd.is_absolute() {
            return Err(PlanError(format!(
                "process.cwd {:?} is not an absolute path",
                cwd.display()
            )));
        }
        let env = process.env.clone().unwrap_or_default();
        if args.len() + env.len() > STRINGS {
            return Err(PlanError(format!(
                "process has more than {STRINGS} arguments and variables"
            )));
        }
        let user = &process.user;
        let capabilities = process.capabilities.as_ref();
        let set = |set: Option<&Option<Capabilities>>| mask(set.and_then(Option::as_ref));
        Ok(ProcessPlan {
            terminal: process.terminal == Some(true),
            console_size: process.console_size.map(|size| {
                (
                    u16::try_from(size.height()).unwrap_or(0),
                    u16::try_from(size.width()).unwrap_or(0),
                )
            }),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022) & 0o777,
            args: strings("process.args", args)?,
            env: strings("process.env", unique(env))?,
            cwd,
            capabilities: CapabilitySets {
                bounding: set(capabilities.map(|sets| sets.bounding())),
                effective: set(capabilities.map(|sets| sets.effective())),
                inheritable: set(capabilities.map(|sets| sets.inheritable())),
                permitted: set(capabilities.map(|sets| sets.permitted())),
                ambient: set(capabilities.map(|sets| sets.ambient())),
            },
            rlimits: process
                .rlimits
                .iter()
                .flatten()
                .map(|limit| (resource(limit.typ()), limit.soft(), limit.hard()))
                .collect(),
            no_new_privileges: process.no_new_privileges == Some(true),
            oom_score_adj: process.oom_score_adj,
            io_priority: process.io_priority.as_ref().map(|priority| {
                let class = match priority.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                (class << 13) | libc::c_int::try_from(priority.priority().clamp(0, 7)).unwrap_or(0)
            }),
            scheduler: process
                .scheduler
                .as_ref()
                .map(|scheduler| {
                    let policy = match scheduler.policy() {
                        LinuxSchedulerPolicy::SchedOther => 0,
                        LinuxSchedulerPolicy::SchedFifo => 1,
                        LinuxSchedulerPolicy::SchedRr => 2,
                        LinuxSchedulerPolicy::SchedBatch => 3,
                        LinuxSchedulerPolicy::SchedIdle => 5,
                        other => {
                            return Err(PlanError(format!(
                                "process.scheduler.policy {other} is not supported"
                            )));
                        }
                    };
                    Ok(SchedulerPlan {
                        policy,
                        nice: scheduler.nice().unwrap_or(0),
                        priority: u32::try_from(scheduler.priority().unwrap_or(0)).unwrap_or(0),
                    })
                })
                .transpose()?,
        })
    }

    /// The value of environment variable `name`.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.env.iter().find_map(|variable| {
            variable
                .as_bytes()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
    }

    /// The program as it was named.
    pub fn program(&self) -> &Path {
        use std::os::unix::ffi::OsStrExt as _;
        self.args.first().map_or(Path::new(""), |program| {
            Path::new(std::ffi::OsStr::from_bytes(program.as_bytes()))
        })
    }
}

/// One string for each name, the last one given, at the place of the first.
fn unique(env: Vec<String>) -> Vec<String> {
    let mut places = std::collections::HashMap::new();
    let mut kept: Vec<String> = Vec::with_capacity(env.len());
    for variable in env {
        let name = variable
            .split_once('=')
            .map_or(variable.as_str(), |(name, _)| name)
            .to_owned();
        match places
            .get(&name)
            .and_then(|&place: &usize| kept.get_mut(place))
        {
            Some(earlier) => *earlier = variable,
            None => {
                places.insert(name, kept.len());
                kept.push(variable);
            }
        }
    }
    kept
}

fn strings(field: &str, strings: Vec<String>) -> Result<Vec<CString>, PlanError> {
    strings
        .into_iter()
        .map(|string| {
            CString::new(string)
                .map_err(|_| PlanError(format!("{field} holds a string with a NUL byte")))
        })
        .collect()
}

fn mask(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().fold(0, |mask, capability| {
        mask | capability::number(&capability.to_string()).map_or(0, |number| 1 << number)
    })
}

fn resource(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Capability;

    #[test]
    fn exec_with_missing_fields_takes_those_of_the_container() {
        let defaults = serde_json::json!({
            "terminal": true,
            "user": {"uid": 7, "gid": 8},
            "args": ["/bin/server"],
            "env": ["PATH=/bin", "A=1"],
            "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"]},
        });
        let plan = ProcessPlan::parse_exec(
            br#"{"args":["ls"],"cwd":null,"env":["A=1","B=2","A=3"]}"#,
            &defaults,
        )
        .unwrap();
        assert_eq!((plan.uid, plan.gid), (7, 8));
        assert_eq!(plan.cwd, Path::new("/srv"));
        assert_eq!(plan.program(), Path::new("ls"));
        assert_eq!(plan.variable("A"), Some(b"3".as_slice()));
        assert_eq!(plan.env.len(), 2);
        assert!(!plan.terminal);
        assert_eq!(plan.capabilities.effective, 1 << 5);
    }

    #[test]
    fn process_without_command_is_refused() {
        let error =
            ProcessPlan::parse_exec(b"{\"cwd\":\"/\",\"user\":{},\"args\":[]}", &Value::Null)
                .unwrap_err();
        assert!(error.to_string().contains("process.args"), "{error}");
    }

    #[test]
    fn process_with_cpus_of_its_own_is_refused_by_the_fields_name() {
        let json = br#"{"cwd":"/","user":{},"args":["a"],"execCPUAffinity":{"initial":"0"}}"#;
        let error = ProcessPlan::parse_exec(json, &Value::Null).unwrap_err();
        assert!(
            error.to_string().contains("process.execCPUAffinity"),
            "{error}"
        );
    }

    #[test]
    fn capability_of_each_end_of_the_table_has_its_number() {
        let set = Capabilities::from([Capability::Chown, Capability::CheckpointRestore]);
        assert_eq!(mask(Some(&set)), 1 | 1 << 40);
    }
}
