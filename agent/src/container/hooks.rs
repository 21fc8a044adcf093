//! OCI hooks: programs that run at certain moments with the container's state on standard input.
//!
//! The same child is made for all; [`run_here`] waits for it in a container's process, [`run`] in the agent by way of
//! the reaper. A hook that fails, or outlives its timeout (30 s when it names none), fails the operation that it
//! belongs to, but for poststart and poststop, whose failures are only logged. Source: OCI runtime specification,
//! config.md, "POSIX-platform Hooks".

use std::ffi::CString;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use oci_spec::runtime::Hook;
use serde_json::Value;

use crate::process::{Child, CloneRequest, Exit, Reaper, clone_process, keep_descriptors};

/// A hook without a timeout of its own is not waited for longer than this.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Exit code of a hook that could not be executed.
const NOT_EXECUTED: libc::c_int = 127;

/// A hook that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{moment} hook {path}: {reason}")]
pub struct HookError {
    moment: &'static str,
    path: String,
    reason: String,
}

/// The state object for a hook.
pub fn state(
    state: &serde_json::Map<String, Value>,
    status: &str,
    pid: Option<libc::pid_t>,
) -> Vec<u8> {
    let mut state = state.clone();
    state.insert("status".into(), status.into());
    if let Some(pid) = pid {
        state.insert("pid".into(), pid.into());
    }
    serde_json::to_vec(&state).unwrap_or_default()
}

fn timeout(hook: &Hook) -> Duration {
    hook.timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs)
}

/// A file that holds the state: unlike a pipe it never blocks whoever fills it.
fn state_file(state: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("state", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(state)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

fn make(hook: &Hook, state: &[u8]) -> io::Result<Child> {
    let input = state_file(state)?;
    clone_process(&CloneRequest::default(), || {
        // SAFETY: takes integers only; 0 is standard input, which no OwnedFd of this child owns.
        unsafe { libc::dup2(input.as_raw_fd(), 0) };
        keep_descriptors(&mut []);
        let strings = |strings: &Option<Vec<String>>| -> Vec<CString> {
            strings
                .iter()
                .flatten()
                .filter_map(|string| CString::new(string.as_str()).ok())
                .collect()
        };
        if let Ok(path) = CString::new(hook.path().as_os_str().as_bytes()) {
            let mut args = strings(hook.args());
            if args.is_empty() {
                args.push(path.clone());
            }
            let _ = nix::unistd::execve(&path, &args, &strings(hook.env()));
        }
        NOT_EXECUTED
    })
}

fn judge(exit: Option<Exit>, moment: &'static str, hook: &Hook) -> Result<(), HookError> {
    let reason = match exit {
        Some(Exit { code: 0, .. }) => return Ok(()),
        Some(Exit { code: 127, .. }) => "could not be executed (exit code 127)".into(),
        Some(Exit {
            signal: 0, code, ..
        }) => format!("ended with exit code {code}"),
        Some(Exit { signal, .. }) => format!("was killed by signal {signal}"),
        None => format!(
            "still ran after {} s and was killed",
            timeout(hook).as_secs()
        ),
    };
    Err(failed(moment, hook, reason))
}

fn failed(moment: &'static str, hook: &Hook, reason: String) -> HookError {
    HookError {
        moment,
        path: hook.path().display().to_string(),
        reason,
    }
}

/// Runs hooks from the agent, one after the other.
pub async fn run(
    reaper: &Reaper,
    hooks: &[Hook],
    moment: &'static str,
    state: &[u8],
) -> Result<(), HookError> {
    for hook in hooks {
        let (child, exit) = reaper
            .watch(|| make(hook, state))
            .map_err(|error| failed(moment, hook, error.to_string()))?;
        let exit = match tokio::time::timeout(timeout(hook), exit).await {
            Ok(exit) => exit.ok(),
            Err(_) => {
                let _ = crate::process::send_signal(&child.pidfd, Signal::SIGKILL as i32);
                None
            }
        };
        judge(exit, moment, hook)?;
    }
    Ok(())
}

/// Runs hooks from a container's own process, which waits for them itself.
pub fn run_here(hooks: &[Hook], moment: &'static str, state: &[u8]) -> Result<(), HookError> {
    for hook in hooks {
        let error = |error: io::Error| failed(moment, hook, error.to_string());
        let child = make(hook, state).map_err(error)?;
        let milliseconds = i32::try_from(timeout(hook).as_millis()).unwrap_or(i32::MAX);
        let mut ended = [PollFd::new(
            std::os::fd::AsFd::as_fd(&child.pidfd),
            PollFlags::POLLIN,
        )];
        let in_time = poll(
            &mut ended,
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
        )
        .map_err(|errno| error(errno.into()))?
            > 0;
        if !in_time {
            let _ = crate::process::send_signal(&child.pidfd, Signal::SIGKILL as i32);
        }
        let mut status = 0;
        // SAFETY: waitpid writes one integer, which outlives the call; the child is this process's own.
        unsafe { libc::waitpid(child.pid, &raw mut status, libc::__WALL) };
        let exit = in_time.then(|| Exit::from_status(status)).flatten();
        judge(exit, moment, hook)?;
    }
    Ok(())
}
