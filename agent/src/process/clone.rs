//! Making a process: clone3(2) of the agent itself, straight into the namespaces and the control group that it is for.
//!
//! The child is a copy of the agent and runs ordinary Rust code (allocation included) until it executes a program.
//! That is sound because the agent has exactly one thread: no lock can be held by a thread that the child lacks. It is
//! also the cheapest way: re-executing `/proc/self/exe` with a serialised configuration would cost an execve, the
//! dynamic relocation of a static-pie binary and two rounds of JSON for every process. The child never returns into
//! the asynchronous runtime: it ends in execve or _exit.
//!
//! A child that belongs into an existing PID namespace is made by the agent with `setns(CLONE_NEWPID)` around the
//! clone, so that it is the agent's own child all the same, with the pid and pidfd known before it runs; no
//! intermediate process exists whose death could be mistaken for the end of the real one.
//!
//! A child that belongs into an existing user namespace cannot be made so: entering one cannot be undone. A go-between
//! enters it and makes the child with CLONE_PARENT, so that this one is the agent's own as well; the go-between is gone,
//! and reaped, before anybody hears of the child.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// clone3 flag (include/uapi/linux/sched.h): signal handlers of the child return to their defaults.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// clone3 flag: the child starts in the control group given by a descriptor.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Exit code of a child whose body panicked.
const PANICKED: libc::c_int = 70;

/// What a new process shall be born into.
#[derive(Debug, Default)]
pub struct CloneRequest<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: libc::c_int,
    /// Directory of a version 2 control group.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A PID namespace descriptor, or a pidfd of a process in it.
    pub join_pid_namespace: Option<BorrowedFd<'a>>,
    /// A user namespace descriptor: the child has all capabilities over it, and it owns the namespaces that are made.
    pub join_user_namespace: Option<BorrowedFd<'a>>,
}

/// A process that was made.
#[derive(Debug)]
pub struct Child {
    /// In the agent's PID namespace.
    pub pid: libc::pid_t,
    /// Refers to this process even after its number has been given to another.
    pub pidfd: OwnedFd,
}

/// Makes a process that runs `body` and ends with the exit code that it returns, unless it executes a program.
///
/// Errors are those of clone3(2), setns(2); `EBUSY`: the control group has controllers enabled for its own children.
pub fn clone_process(
    request: &CloneRequest<'_>,
    body: impl FnOnce() -> libc::c_int,
) -> io::Result<Child> {
    debug_assert_eq!(
        std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count),
        1,
        "the agent has grown a second thread"
    );
    if let Some(users) = request.join_user_namespace {
        return clone_by_go_between(request, users, body);
    }
    let back = match request.join_pid_namespace {
        Some(namespace) => Some(enter_for_children(namespace)?),
        None => None,
    };
    let made = clone_here(request, Parent::Caller, body);
    if let Some(own) = back {
        // SAFETY: setns takes no pointers.
        if unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) } < 0 {
            // Every later process would be born into a container: nothing safe can be done any more.
            crate::boot::report("the agent could not return to its own PID namespace");
            std::process::abort();
        }
    }
    made
}

/// Whose child a new process is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// The calling process's.
    Caller,
    /// That of the calling process's parent.
    CallersParent,
}

/// clone3(2) with the namespaces and the control group of `request`.
fn clone_here(
    request: &CloneRequest<'_>,
    parent: Parent,
    body: impl FnOnce() -> libc::c_int,
) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain data for which all zeroes is valid (size-versioned structure).
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = u64::from(libc::CLONE_PIDFD.unsigned_abs())
        | u64::from(request.namespaces.unsigned_abs())
        | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    match parent {
        Parent::Caller => arguments.exit_signal = libc::SIGCHLD as u64,
        // The signal is then the one with which the caller itself ends.
        Parent::CallersParent => arguments.flags |= u64::from(libc::CLONE_PARENT.unsigned_abs()),
    }
    if let Some(cgroup) = request.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child gets a copy of the address space and of this stack; the process has one
    // thread, so that the copy is consistent. The structure and `pidfd` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            mem::size_of::<libc::clone_args>(),
        )
    };
    if result == 0 {
        let code = catch_unwind(AssertUnwindSafe(|| {
            reset_inherited_state();
            body()
        }))
        .unwrap_or(PANICKED);
        // SAFETY: _exit has no preconditions; no destructor of the copied agent may run in the child.
        unsafe { libc::_exit(code) }
    }
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Child {
        pid: libc::pid_t::try_from(result).map_err(io::Error::other)?,
        // SAFETY: on success the kernel stored a descriptor that nobody else owns.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// Makes the child through a process that has entered `users`. What that one could not do is the error.
fn clone_by_go_between(
    request: &CloneRequest<'_>,
    users: BorrowedFd<'_>,
    body: impl FnOnce() -> libc::c_int,
) -> io::Result<Child> {
    let (answer, teller) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let go_between = clone_here(&CloneRequest::default(), Parent::Caller, || {
        let made = request
            .join_pid_namespace
            .map_or(Ok(()), |pids| enter(pids, libc::CLONE_NEWPID))
            .and_then(|()| enter(users, libc::CLONE_NEWUSER))
            .and_then(|()| clone_here(request, Parent::CallersParent, body));
        let word = match made {
            Ok(child) => child.pid,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        let told = File::from(teller).write_all(&word.to_ne_bytes());
        libc::c_int::from(told.is_err())
    })?;
    let mut word = [0; mem::size_of::<libc::pid_t>()];
    // The child has a copy of the other end: the answer's length says where it ends.
    let heard = File::from(answer).read_exact(&mut word);
    let mut status = 0;
    // SAFETY: waitpid writes one integer, which outlives the call. The process is this one's child, and its only thread,
    // which reaps children elsewhere, is here.
    while unsafe { libc::waitpid(go_between.pid, &raw mut status, libc::__WALL) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    heard?;
    match libc::pid_t::from_ne_bytes(word) {
        pid if pid > 0 => Ok(Child {
            pid,
            pidfd: open_pidfd(pid)?,
        }),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// A pidfd of a child that was not reaped.
fn open_pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn enter(namespace: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes no pointers.
    if unsafe { libc::setns(namespace.as_raw_fd(), kind) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets future children be born into the PID namespace behind `namespace`; gives a descriptor of the own one.
fn enter_for_children(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let own = File::open("/proc/self/ns/pid")?;
    enter(namespace, libc::CLONE_NEWPID)?;
    Ok(own.into())
}

/// Undoes what a program would inherit from the agent although clone3 has reset the handlers: ignored signals and the
/// signal mask.
fn reset_inherited_state() {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; SIG_DFL is a valid disposition.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Closes every descriptor above 2 save those in `kept`: a waiting child must not hold other containers' pipes or the
/// agent's connections open. For use in a child only, which owns all of its descriptors by number.
pub fn keep_descriptors(kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut next: libc::c_uint = 3;
    for &mut fd in kept {
        let Ok(fd) = libc::c_uint::try_from(fd) else {
            continue;
        };
        if fd < next {
            continue;
        }
        if fd > next {
            close_range(next, fd - 1);
        }
        next = fd + 1;
    }
    close_range(next, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: closes descriptors of a process that the caller has declared to be a child which owns them by number.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, last, 0);
    }
}
