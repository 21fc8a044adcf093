//! The pod's own PID 1, for containers that share a PID namespace: it reaps and does nothing else.
//!
//! A clone of the agent that never executes anything; it gives everything up that the agent has open. It lives as long
//! as the pod.

use std::mem;

use crate::process::{Child, CloneRequest, clone_process, keep_descriptors};

/// Makes the process in a new PID namespace.
pub fn start() -> std::io::Result<Child> {
    clone_process(
        &CloneRequest {
            namespaces: libc::CLONE_NEWPID,
            ..Default::default()
        },
        || {
            keep_descriptors(&mut []);
            // SAFETY: prctl with an integer and a NUL-terminated name.
            unsafe {
                // Containers share this PID namespace; the agent's memory is not theirs to read.
                libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
                libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr(), 0, 0, 0);
            }
            reap_for_ever()
        },
    )
}

fn reap_for_ever() -> ! {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; all pointers are to live variables. SIGCHLD is
    // blocked, so that one that comes between the two calls below is not lost.
    unsafe {
        let mut child: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut child);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const child, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) > 0 {}
            let mut signal = 0;
            libc::sigwait(&raw const child, &raw mut signal);
        }
    }
}
