//! seccomp filters: the default of vmpod, and profiles in the JSON form that containerd and Docker read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::manifest::plan::{SeccompPlan, SecurityPlan};

/// Bytes of a profile file that are read.
const PROFILE_BYTES: u64 = 1 << 20;

/// A profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// Not readable.
    #[error("cannot read {path}; profiles are looked up in the seccomp directory of vmpod's root")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a profile.
    #[error("{path} is no seccomp profile")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The `linux.seccomp` object, `None` for no filter.
///
/// # Errors
/// A Localhost profile that cannot be read.
pub fn filter(security: &SecurityPlan, directory: &Path) -> Result<Option<Value>, SeccompError> {
    match &security.seccomp {
        SeccompPlan::Unconfined => Ok(None),
        SeccompPlan::RuntimeDefault => Ok(Some(runtime_default(security))),
        SeccompPlan::Localhost(file) => localhost(&directory.join(file), security).map(Some),
    }
}

/// System calls that need a capability, and which. Without it they fail with EPERM before the kernel looks at them.
const BY_CAPABILITY: &[(&str, &[&str])] = &[
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapon",
            "swapoff",
            "umount2",
            "unshare",
        ],
    ),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_BOOT", &["reboot", "kexec_load", "kexec_file_load"]),
    (
        "SYS_MODULE",
        &[
            "create_module",
            "delete_module",
            "init_module",
            "finit_module",
            "query_module",
            "get_kernel_syms",
        ],
    ),
    ("SYS_PACCT", &["acct"]),
    (
        "SYS_PTRACE",
        &[
            "kcmp",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
        ],
    ),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    (
        "SYS_TIME",
        &["settimeofday", "clock_settime", "clock_settime64"],
    ),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    (
        "SYS_NICE",
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
            "migrate_pages",
            "move_pages",
        ],
    ),
    ("SYSLOG", &["syslog"]),
];

/// System calls without a use in containers: old, or wide doors into the kernel.
const NEVER: &[&str] = &[
    "_sysctl",
    "add_key",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "modify_ldt",
    "nfsservctl",
    "request_key",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
    "vserver",
];

/// Flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

fn runtime_default(security: &SecurityPlan) -> Value {
    let has = |capability: &str| {
        security.privileged
            || security
                .add_capabilities
                .iter()
                .any(|c| c == capability || c == "ALL")
    };
    let mut names: Vec<&str> = NEVER.to_vec();
    for (capability, calls) in BY_CAPABILITY {
        if !has(capability) {
            names.extend(*calls);
        }
    }
    let mut syscalls =
        vec![json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM})];
    if !has("SYS_ADMIN") {
        // clone3 passes its flags in memory, where a filter cannot look: ENOSYS makes libraries fall back to clone.
        syscalls.push(
            json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        );
        for bit in (0..64)
            .map(|b| 1_u64 << b)
            .filter(|b| b & NAMESPACE_FLAGS != 0)
        {
            syscalls.push(json!({
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": libc::EPERM,
                "args": [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}],
            }));
        }
    }
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": syscalls,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

fn localhost(path: &Path, security: &SecurityPlan) -> Result<Value, SeccompError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|f| f.take(PROFILE_BYTES).read_to_end(&mut text))
        .map_err(|source| SeccompError::Read {
            path: path.to_owned(),
            source,
        })?;
    let profile: Profile = serde_json::from_slice(&text).map_err(|source| SeccompError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let has = |capability: &String| {
        let name = capability.strip_prefix("CAP_").unwrap_or(capability);
        security.privileged
            || security
                .add_capabilities
                .iter()
                .any(|c| c == name || c == "ALL")
    };
    let here = |arch: &String| arch == "amd64" || arch == "x86_64";
    let applies = |rule: &Rule| {
        let included = (rule.includes.caps.is_empty() || rule.includes.caps.iter().all(has))
            && (rule.includes.arches.is_empty() || rule.includes.arches.iter().any(here));
        let excluded = rule.excludes.caps.iter().any(has) || rule.excludes.arches.iter().any(here);
        included && !excluded
    };
    let syscalls: Vec<Value> = profile
        .syscalls
        .into_iter()
        .filter(applies)
        .map(|rule| {
            let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
            let mut object = json!({"names": names, "action": rule.action});
            if let Some(fields) = object.as_object_mut() {
                if let Some(errno) = rule.errno_ret {
                    fields.insert("errnoRet".into(), json!(errno));
                }
                if let Some(args) = rule.args.filter(|a| !a.is_empty()) {
                    fields.insert("args".into(), Value::Array(args));
                }
            }
            object
        })
        .collect();
    let mut filter = json!({
        "defaultAction": profile.default_action,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": syscalls,
    });
    if let (Some(errno), Some(fields)) = (profile.default_errno_ret, filter.as_object_mut()) {
        fields.insert("defaultErrnoRet".into(), json!(errno));
    }
    Ok(filter)
}
