//! The host's own mount namespace, as seen by a process that has left it for one of its own (`tree::enter_namespace`).
//!
//! Work there is done on a thread of its own, which ends with it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The namespace that this process has left; empty: it is still in it.
static LEFT: OnceLock<File> = OnceLock::new();

/// Keeps hold of the mount namespace that the calling thread is in, which it is about to leave.
///
/// # Errors
/// When /proc does not show it.
pub fn remember() -> io::Result<()> {
    let namespace = File::open("/proc/thread-self/ns/mnt")?;
    // Whoever was first left the host's.
    let _ = LEFT.set(namespace);
    Ok(())
}

/// Does `work` in the host's mount namespace.
///
/// # Errors
/// When it cannot be entered.
pub(super) fn within<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(namespace) = LEFT.get() else {
        return Ok(work());
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("hostmnt".into())
            .spawn_scoped(scope, || {
                // SAFETY: CLONE_FS unshares root and working directory of this thread, which nobody else has anything of;
                // setns(2) wants them unshared.
                unsafe { unshare_unsafe(UnshareFlags::FS) }?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
                Ok(work())
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread in the host's mount namespace panicked",
            ))
        })
    })
}
