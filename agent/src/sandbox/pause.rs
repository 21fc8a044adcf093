//! The pod's own PID 1, for containers that share a PID namespace: it reaps and does nothing else.
//!
//! A clone of the agent that never executes anything. Containers can see it, and a privileged one can look into it, so
//! it gives up everything that the agent has: descriptors, file system, capabilities, user. It lives as long as the
//! pod.

use std::mem;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

use crate::container::{At as _, PodUsers, StepError, become_root_of_namespace};
use crate::process::{Child, CloneRequest, clone_process, keep_descriptors};

/// The user that Kubernetes' pause images run as.
const NOBODY: u32 = 65_535;

/// Makes the process in a new PID namespace, which belongs to the pod's own user namespace where it has one. `mount_point` is
/// an empty directory of the agent's root file system.
pub fn start(mount_point: &Path, users: Option<&PodUsers>) -> std::io::Result<Child> {
    clone_process(
        &CloneRequest {
            namespaces: libc::CLONE_NEWPID | libc::CLONE_NEWNS,
            join_user_namespace: users.map(|users| users.as_fd()),
            ..Default::default()
        },
        || {
            keep_descriptors(&mut []);
            // SAFETY: prctl with an integer and a NUL-terminated name.
            unsafe {
                libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
                libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr(), 0, 0, 0);
            }
            let mapped = users.map_or(Ok(()), |_| become_root_of_namespace());
            if let Err(StepError(error)) =
                mapped.and_then(|()| give_everything_up(mount_point).at(|| "leave the agent"))
            {
                // The pod lives on; what is lost is a precaution against its privileged containers.
                crate::boot::report(&format!("isolate the pod's pause process: {error}"));
            }
            // SAFETY: prctl with integers only. After the change of user, which would take the wish back.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
            reap_for_ever()
        },
    )
}

/// Leaves the agent's file system for an empty one, and its privileges for none.
fn give_everything_up(mount_point: &Path) -> nix::Result<()> {
    let nothing: Option<&str> = None;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )?;
    mount(
        Some("pause"),
        mount_point,
        Some("tmpfs"),
        MsFlags::MS_RDONLY,
        Some("size=0,nr_inodes=2"),
    )?;
    chdir(mount_point)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    setgroups(&[])?;
    let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
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
