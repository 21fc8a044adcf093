//! A user namespace that says which ids of files are which ids of a mount: mount_setattr(2), `MOUNT_ATTR_IDMAP`.
//!
//! The machine of a pod with a user namespace sees the pod's files with the ids that its own kernel has for them; on the
//! host they keep those that the pod knows. The translation is the mount's, made here before the VMM sees it, so that
//! neither the VMM nor the guest needs to know.

use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::pod::id_ranges::IdRanges;

/// The namespace.
#[derive(Debug)]
pub struct MappedUsers {
    namespace: OwnedFd,
    ids: IdRanges,
}

impl MappedUsers {
    /// Makes it.
    ///
    /// # Errors
    /// As clone3(2); user_namespaces(7) for ranges that cannot be.
    pub fn new(ids: IdRanges) -> io::Result<Self> {
        let keeper = Keeper::start()?;
        for (file, first, count) in [
            ("uid_map", ids.first_uid, ids.uids),
            ("gid_map", ids.first_gid, ids.gids),
        ] {
            fs::write(
                format!("/proc/{}/{file}", keeper.pid),
                format!("0 {first} {count}\n"),
            )?;
        }
        Ok(Self {
            namespace: File::open(format!("/proc/{}/ns/user", keeper.pid))?.into(),
            ids,
        })
    }

    /// What the machine calls the pod's root: user and group.
    #[must_use]
    pub fn root(&self) -> (u32, u32) {
        (self.ids.first_uid, self.ids.first_gid)
    }
}

impl AsFd for MappedUsers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A process in a new user namespace, for as long as that has no other holder.
struct Keeper {
    pid: libc::pid_t,
    process: OwnedFd,
}

impl Keeper {
    fn start() -> io::Result<Self> {
        let mut pidfd: RawFd = -1;
        // SAFETY: clone_args is plain data for which all zeroes is valid. No signal tells of the end, so that nobody else in
        // this process waits for it.
        let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
        arguments.flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_PIDFD).unsigned_abs());
        arguments.pidfd = &raw mut pidfd as u64;
        // SAFETY: without CLONE_VM the child has copies of everything; other threads may hold locks in it, so that it makes
        // nothing but system calls. Structure and `pidfd` outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                mem::size_of::<libc::clone_args>(),
            )
        };
        if result == 0 {
            loop {
                // SAFETY: numbers only, or nothing.
                unsafe {
                    libc::syscall(
                        libc::SYS_prctl,
                        libc::PR_SET_PDEATHSIG,
                        libc::SIGKILL,
                        0,
                        0,
                        0,
                    );
                    libc::syscall(libc::SYS_pause);
                }
            }
        }
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            pid: libc::pid_t::try_from(result).map_err(io::Error::other)?,
            // SAFETY: on success the kernel stored a descriptor that nobody else owns.
            process: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let fd = self.process.as_raw_fd();
        // SAFETY: siginfo_t is plain data for which all zeroes is valid; it outlives the call. The other arguments are
        // numbers, and a null pointer that stands for no information.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
            let mut end: libc::siginfo_t = mem::zeroed();
            let id = libc::id_t::try_from(fd).unwrap_or_default();
            while libc::waitid(
                libc::P_PIDFD,
                id,
                &raw mut end,
                libc::WEXITED | libc::__WALL,
            ) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_made_for_ids_leaves_no_process_behind() {
        // Root alone may map ids that are not its own.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let children = || {
            let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            text.split_whitespace().count()
        };
        let before = children();
        let users = MappedUsers::new(IdRanges::default()).unwrap();
        assert_eq!(users.root(), (65_536, 65_536));
        assert_eq!(children(), before);
    }
}
