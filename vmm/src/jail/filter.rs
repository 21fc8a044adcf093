//! Seccomp filters: one for each kind of thread, from the lists of `syscalls`.
//!
//! A refused call ends the process with a message that names it. The lists are compiled once, before the guest runs.

use std::io;

use seccompiler::BpfProgram;

use super::program::{Allowed, Condition};
use super::syscalls;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The main thread once the machine runs.
    Control,
    /// The same as long as it may be asked for a snapshot.
    Snapshot,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a queue of the file system device.
    Files,
    /// Serves the queues of another device.
    Device,
    /// Starts the workers.
    Spawner,
}

/// The kinds that every machine has.
const KINDS: [ThreadKind; 5] = [
    ThreadKind::Control,
    ThreadKind::Vcpu,
    ThreadKind::Files,
    ThreadKind::Device,
    ThreadKind::Spawner,
];

impl ThreadKind {
    fn calls(self) -> Vec<&'static [libc::c_long]> {
        let mut calls = vec![syscalls::COMMON];
        match self {
            Self::Control => calls.push(syscalls::CONTROL),
            Self::Snapshot => {
                calls.extend([syscalls::CONTROL, syscalls::SNAPSHOT, syscalls::NARROW]);
            }
            Self::Vcpu => calls.push(syscalls::VCPU),
            Self::Files => calls.push(syscalls::FILES),
            Self::Device => calls.push(syscalls::DEVICE),
            // What it starts inherits its filter and narrows it down.
            Self::Spawner => calls.extend([syscalls::FILES, syscalls::DEVICE, syscalls::NARROW]),
        }
        calls
    }

    fn ioctls(self) -> Vec<u32> {
        match self {
            Self::Vcpu => syscalls::VCPU_IOCTLS.to_vec(),
            Self::Device | Self::Spawner => syscalls::DEVICE_IOCTLS.to_vec(),
            // It is narrowed down to a control thread, which must not lack anything then.
            Self::Snapshot => [syscalls::CONTROL_IOCTLS, syscalls::SNAPSHOT_IOCTLS].concat(),
            Self::Control => syscalls::CONTROL_IOCTLS.to_vec(),
            Self::Files => Vec::new(),
        }
    }
}

/// A filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The kernel refuses it.
    #[error("install a system call filter; the host's kernel needs CONFIG_SECCOMP_FILTER")]
    Install(#[source] seccompiler::Error),
    /// The handler of refused calls.
    #[error("install the handler of refused system calls")]
    Handler(#[source] io::Error),
}

/// Compiled filters.
#[derive(Debug)]
pub struct Filters {
    /// What all threads together may do; holds from the start.
    process: BpfProgram,
    by_kind: Vec<(ThreadKind, BpfProgram)>,
}

impl Filters {
    /// Writes the filters of this process; `snapshot` says whether its machine may be asked for one.
    #[must_use]
    pub fn compile(snapshot: bool) -> Self {
        let mut kinds = KINDS.to_vec();
        if snapshot {
            kinds.push(ThreadKind::Snapshot);
        }
        Self {
            process: allowed(&kinds).program(),
            by_kind: kinds
                .iter()
                .map(|&kind| (kind, allowed(&[kind]).program()))
                .collect(),
        }
    }

    /// Installs what holds for the whole process, while it has one thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn install_for_process(&self) -> Result<(), FilterError> {
        install_handler().map_err(FilterError::Handler)?;
        seccompiler::apply_filter(&self.process).map_err(FilterError::Install)
    }

    /// Narrows the calling thread down.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn install(&self, kind: ThreadKind) -> Result<(), FilterError> {
        for (of, program) in &self.by_kind {
            if *of == kind {
                seccompiler::apply_filter(program).map_err(FilterError::Install)?;
            }
        }
        Ok(())
    }
}

/// What threads of these kinds may call.
fn allowed(kinds: &[ThreadKind]) -> Allowed {
    let number = |value: i32| value as u32;
    let mut allowed = Allowed::default();
    for &kind in kinds {
        for calls in kind.calls() {
            allowed.calls(calls);
        }
        let ioctls = Condition::OneOf(kind.ioctls());
        allowed.checked(libc::SYS_ioctl, 1, ioctls);
        if matches!(kind, ThreadKind::Device | ThreadKind::Spawner) {
            // No network, whatever the namespace holds.
            let unix = Condition::OneOf(vec![number(libc::AF_UNIX)]);
            allowed.checked(libc::SYS_socket, 0, unix);
        }
        if kind == ThreadKind::Spawner {
            // Threads, not processes. The arguments of clone3 lie in memory, where a filter cannot look.
            allowed.checked(libc::SYS_clone3, 0, Condition::Absent);
            let threads = Condition::With(number(libc::CLONE_THREAD));
            allowed.checked(libc::SYS_clone, 0, threads);
        }
    }
    // No memory becomes executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allowed.checked(call, 2, Condition::Without(number(libc::PROT_EXEC)));
    }
    // Signals to threads of this process alone: a panic's abort, and kicks of vCPUs.
    let own = Condition::OneOf(vec![std::process::id()]);
    allowed.checked(libc::SYS_tgkill, 0, own);
    // A thread's name, what asks whether ids change capabilities, and what comes before a filter.
    let options = [
        libc::PR_SET_NAME,
        libc::PR_GET_SECUREBITS,
        libc::PR_SET_NO_NEW_PRIVS,
    ];
    let options = Condition::OneOf(options.map(number).to_vec());
    allowed.checked(libc::SYS_prctl, 0, options);
    // glibc's own signals, SIGCANCEL and SIGSETXID, whose handlers come with the first thread.
    allowed.checked(libc::SYS_rt_sigaction, 0, Condition::OneOf(vec![32, 33]));
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    let commands = Condition::OneOf(commands.map(number).to_vec());
    allowed.checked(libc::SYS_fcntl, 1, commands);
    allowed
}

/// Has the kernel's SIGSYS reported before the process ends.
fn install_handler() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one; the handler takes the arguments that SA_SIGINFO gives, and only writes
    // to a descriptor and exits.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_refused_call as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Names the refused call and ends the process. Async-signal-safe: no allocation, no lock.
extern "C" fn on_refused_call(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // `si_syscall` lies behind the call's address, which is a pointer, in the union of siginfo_t (sigaction(2)).
    const SYSCALL_OFFSET: usize = 24;
    let number = if info.is_null() {
        -1
    } else {
        // SAFETY: the kernel passes a whole siginfo_t, 128 bytes.
        unsafe {
            info.cast::<u8>()
                .add(SYSCALL_OFFSET)
                .cast::<i32>()
                .read_unaligned()
        }
    };
    let mut line = Line::default();
    line.push(b"vmpod-vmm: system call ");
    line.push_number(number);
    line.push(b" of thread ");
    // Not by name: asking for that is refused as well. gettid is allowed to every thread.
    // SAFETY: no memory arguments.
    let id = unsafe { libc::syscall(libc::SYS_gettid) };
    line.push_number(i32::try_from(id).unwrap_or(-1));
    line.push(b" is not allowed\n");
    // SAFETY: the buffer is live and initialised up to its length; both calls are allowed to every thread.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(2);
    }
}

/// A text on the stack.
struct Line {
    bytes: [u8; 96],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 96],
            length: 0,
        }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for &byte in text {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = byte;
                self.length += 1;
            }
        }
    }

    fn push_number(&mut self, number: i32) {
        if number < 0 {
            self.push(b"?");
            return;
        }
        let mut digits = [0u8; 10];
        let mut rest = number.unsigned_abs();
        let mut count = 0;
        for slot in digits.iter_mut().rev() {
            *slot = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(digits.len() - count..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_of_the_process_covers_each_kind_and_all_are_short() {
        let filters = Filters::compile(true);
        let process = allowed(&KINDS);
        for kind in KINDS {
            let of_kind = allowed(&[kind]);
            for number in 0..1000 {
                assert!(
                    !of_kind.allows(number) || process.allows(number),
                    "{kind:?} {number}"
                );
            }
        }
        for program in filters
            .by_kind
            .iter()
            .map(|(_, p)| p)
            .chain([&filters.process])
        {
            assert!(program.len() < 150, "{}", program.len());
        }
    }

    #[test]
    fn filters_refuse_what_no_thread_needs() {
        let process = allowed(&KINDS);
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_kill,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
        ] {
            assert!(!process.allows(call as u32), "{call}");
        }
    }

    #[test]
    fn line_of_numbers_is_decimal() {
        let mut line = Line::default();
        line.push_number(0);
        line.push(b" ");
        line.push_number(435);
        line.push_number(-1);
        assert_eq!(&line.bytes[..line.length], b"0 435?");
    }

    #[test]
    fn device_thread_gives_memory_back_under_its_filter() {
        use crate::jail::limits::{ask_allocator, settle_allocator};
        const CHILD: &str = "VMPOD_TEST_OF_ALLOCATOR";
        const NAME: &str = "jail::filter::tests::device_thread_gives_memory_back_under_its_filter";
        // In a process of its own: the allocator asks once.
        if std::env::var_os(CHILD).is_none() {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(child.status.success(), "{child:?}");
            return;
        }
        settle_allocator().unwrap();
        install_handler().unwrap();
        let confined = || {
            // SAFETY: no memory arguments.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            let filters = Filters::compile(false);
            filters.install(ThreadKind::Device).unwrap();
            drop(ask_allocator());
        };
        std::thread::spawn(confined).join().unwrap();
    }

    #[test]
    fn refused_call_ends_the_process_with_its_number() {
        let filters = Filters::compile(true);
        let mut pipe = [0; 2];
        // SAFETY: the array has room for both descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: the child makes system calls and the filter's own, allocation-free, installation only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                libc::dup2(pipe[1], 2);
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let good = install_handler().is_ok()
                    && seccompiler::apply_filter(&filters.process).is_ok();
                if !good {
                    libc::_exit(3);
                }
                libc::syscall(libc::SYS_getppid);
                libc::_exit(4);
            }
        }
        let mut status = 0;
        let mut text = [0u8; 200];
        // SAFETY: the pointers are to live variables; the descriptors are the pipe's.
        let n = unsafe {
            libc::close(pipe[1]);
            libc::waitpid(child, &raw mut status, 0);
            libc::read(pipe[0], text.as_mut_ptr().cast(), text.len())
        };
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 2,
            "{status:#x}"
        );
        let text = String::from_utf8_lossy(&text[..usize::try_from(n).unwrap()]).into_owned();
        assert!(
            text.starts_with("vmpod-vmm: system call 110 of thread "),
            "{text}"
        );
    }
}
