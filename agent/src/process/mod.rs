//! Processes of the guest: how they are made ([`clone_process`]) and how their ends are noticed ([`Reaper`]).

mod clone;
mod reaper;

pub use clone::{Child, CloneRequest, clone_process, keep_descriptors};
pub use reaper::{Exit, Reaper};

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Sends a signal to exactly the process behind a pidfd; ESRCH when it has been reaped.
pub fn send_signal(pidfd: impl AsFd, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the ordinary one; the call takes no other pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
