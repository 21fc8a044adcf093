//! The few signal calls that forwarding Ctrl-C needs: block, wait, send. The blocked signals are
//! read by one thread; no handler runs anywhere.

use std::mem::MaybeUninit;

use anyhow::{Context, Result, bail};

const FORWARDED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// A signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(libc::c_int);

impl Signal {
    /// The name of the one signal that cannot be caught, for `kill(1)`.
    pub const KILL: &'static str = "KILL";

    /// The name as `kill(1)` takes it.
    pub fn name(self) -> &'static str {
        match self.0 {
            libc::SIGHUP => "HUP",
            libc::SIGINT => "INT",
            libc::SIGQUIT => "QUIT",
            _ => "TERM",
        }
    }
}

/// The set of blocked signals; they have their effect again when it is dropped.
pub struct Blocked(libc::sigset_t);

/// Blocks the signals that end a command, in this thread and those it starts from now on. Programs
/// started later get an empty mask from the standard library.
///
/// # Errors
/// When the kernel refuses.
pub fn block() -> Result<Blocked> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given, which sigaddset then changes;
    // pthread_sigmask reads it and is given no place for the old one.
    let (set, error) = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in FORWARDED {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let set = set.assume_init();
        (
            set,
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()),
        )
    };
    if error != 0 {
        bail!(
            "blocking signals: {}",
            std::io::Error::from_raw_os_error(error)
        );
    }
    Ok(Blocked(set))
}

impl Blocked {
    /// The next of the blocked signals, when one arrives within a tenth of a second.
    pub fn wait_shortly(&self) -> Option<Signal> {
        let limit = libc::timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        // SAFETY: the set was initialised by `block`, the limit outlives the call, and no details
        // of the signal are asked for.
        let signal = unsafe {
            libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const limit)
        };
        (signal > 0).then_some(Signal(signal))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set was initialised by `block`; no place is given for the old mask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Asks process `pid` to end.
pub fn terminate(pid: u32) {
    let _ = send(pid, libc::SIGTERM);
}

/// Ends process `pid` without asking.
pub fn kill(pid: u32) {
    let _ = send(pid, libc::SIGKILL);
}

fn send(pid: u32, signal: libc::c_int) -> Result<()> {
    let pid = libc::pid_t::try_from(pid).context("a process number out of range")?;
    // SAFETY: kill takes no pointers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).context("sending a signal")
    }
}
