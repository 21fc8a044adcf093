//! What a process may do: resource limits, scheduling, user and groups, capabilities, no_new_privs, system calls.
//!
//! Runs in the process itself, last before execve. Source: OCI runtime specification (config.md, "Process"),
//! capabilities(7), prctl(2).

use std::fs;
use std::io;
use std::mem;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::process_plan::{CapabilitySets, ProcessPlan};
use super::seccomp::Filter;
use super::step::{At as _, StepError};

/// _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// IOPRIO_WHO_PROCESS.
const IO_PRIORITY_OF_PROCESS: libc::c_int = 1;
/// KEYCTL_JOIN_SESSION_KEYRING.
const JOIN_SESSION_KEYRING: libc::c_int = 1;
/// Soft limit of open files when the specification has none: select(2) still works with it.
const OPEN_FILES_SOFT: u64 = 1024;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only options that take integers are used in this module.
    check(libc::c_long::from(unsafe {
        libc::prctl(option, first, second, 0, 0)
    }))
}

/// Makes the process's memory and descriptors invisible to the container that it enters (CVE-2016-9962).
pub fn hide() -> Result<(), StepError> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).at(|| "hide the process from the container")
}

/// Becomes root of a user namespace that was just entered.
pub fn become_root_of_namespace() -> Result<(), StepError> {
    let step = || "become root of the user namespace";
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).at(step)?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).at(step)?;
    setgroups(&[]).at(step)
}

/// A session keyring of its own, so that keys of other containers stay out of reach.
pub fn new_keyring() {
    // SAFETY: a null name asks for an anonymous keyring; the call takes no other pointer. A kernel without keyrings
    // has nothing to separate.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        );
    }
}

/// Writes the out-of-memory score; needs the agent's `/proc`.
pub fn set_oom_score(process: &ProcessPlan) -> Result<(), StepError> {
    match process.oom_score_adj {
        Some(score) => fs::write("/proc/self/oom_score_adj", score.to_string())
            .at(|| format!("set the out-of-memory score to {score}")),
        None => Ok(()),
    }
}

/// Resource limits, I/O priority, scheduling.
pub fn apply_limits(process: &ProcessPlan) -> Result<(), StepError> {
    let mut limits = process.rlimits.clone();
    if !limits
        .iter()
        .any(|(resource, ..)| *resource == libc::RLIMIT_NOFILE)
    {
        // The agent's own soft limit is high; a program gets the usual one.
        let mut own = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: getrlimit writes one structure, which outlives the call.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut own) } == 0 {
            limits.push((
                libc::RLIMIT_NOFILE,
                OPEN_FILES_SOFT.min(own.rlim_max),
                own.rlim_max,
            ));
        }
    }
    for (resource, soft, hard) in limits {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: setrlimit reads one structure, which outlives the call.
        check(libc::c_long::from(unsafe {
            libc::setrlimit(resource, &raw const limit)
        }))
        .at(|| format!("set resource limit {resource} to {soft}:{hard}"))?;
    }
    if let Some(priority) = process.io_priority {
        // SAFETY: takes integers only.
        check(unsafe { libc::syscall(libc::SYS_ioprio_set, IO_PRIORITY_OF_PROCESS, 0, priority) })
            .at(|| "set the I/O priority")?;
    }
    if let Some(scheduler) = process.scheduler {
        let attributes = SchedulerAttributes {
            size: u32::try_from(mem::size_of::<SchedulerAttributes>()).unwrap_or(48),
            policy: scheduler.policy,
            flags: 0,
            nice: scheduler.nice,
            priority: scheduler.priority,
            runtime: 0,
            deadline: 0,
            period: 0,
        };
        // SAFETY: the structure holds its own size and outlives the call.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
            .at(|| "set the scheduling policy")?;
    }
    Ok(())
}

/// Becomes the user of `process` with its capabilities and system call filter. What follows must be execve.
pub fn assume(process: &ProcessPlan, seccomp: Option<&Filter>) -> Result<(), StepError> {
    if let (Some(filter), false) = (seccomp, process.no_new_privileges) {
        // Without no_new_privs installing a filter needs CAP_SYS_ADMIN, which is about to go.
        filter.install().at(|| "install the system call filter")?;
    }
    drop_bounding(process.capabilities.bounding)?;
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).at(|| "keep capabilities over the change of user")?;
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).at(|| format!("set the supplementary groups {:?}", process.groups))?;
    let gid = Gid::from_raw(process.gid);
    setresgid(gid, gid, gid).at(|| format!("become group {gid}"))?;
    let uid = Uid::from_raw(process.uid);
    setresuid(uid, uid, uid).at(|| format!("become user {uid}"))?;
    set_capabilities(&process.capabilities).at(|| "set the capabilities")?;
    set_ambient(process.capabilities.ambient);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(process.umask));
    if process.no_new_privileges {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at(|| "set no_new_privs")?;
        if let Some(filter) = seccomp {
            filter.install().at(|| "install the system call filter")?;
        }
    }
    Ok(())
}

fn drop_bounding(kept: u64) -> Result<(), StepError> {
    for capability in 0..64_u32 {
        if kept & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability.into(), 0) {
            // Beyond the last capability of this kernel.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => break,
            other => other.at(|| format!("drop capability {capability} from the bounding set"))?,
        }
    }
    Ok(())
}

fn set_capabilities(sets: &CapabilitySets) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // What the bounding set lacks could never be gained again; asking for it in the permitted set would fail.
    let words = |shift: u32| CapabilityWords {
        effective: (sets.effective >> shift & 0xffff_ffff) as u32,
        permitted: (sets.permitted >> shift & 0xffff_ffff) as u32,
        inheritable: (sets.inheritable >> shift & 0xffff_ffff) as u32,
    };
    let data = [words(0), words(32)];
    // SAFETY: header and two words of version 3 are read; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

fn set_ambient(wanted: u64) {
    let _ = prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
        0,
    );
    for capability in (0..64_u32).filter(|capability| wanted & (1 << capability) != 0) {
        // One that is not both permitted and inheritable cannot be ambient; other runtimes pass over it as well.
        let _ = prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
            capability.into(),
        );
    }
}
