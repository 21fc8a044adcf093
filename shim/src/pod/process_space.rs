//! Process namespaces for children: who is in one sees no process of the host, and cannot name one.

use std::io;

use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

/// Runs `spawn`, whose child becomes the first process of a namespace of its own. The calling process stays where it is,
/// and so do its later children (pid_namespaces(7)). `spawn` must not start threads.
///
/// # Errors
/// The process lacks CAP_SYS_ADMIN, or what `spawn` returns.
pub fn spawn_in_own<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    let spawned = spawn();
    move_into_thread_name_spaces(
        rustix::fd::AsFd::as_fd(&own),
        ThreadNameSpaceType::PROCESS_ID,
    )?;
    spawned
}
