//! Resource limits and other attributes of the process.

use std::io;

use super::check;

/// Sets the bound of open files to `open_files` (as far as the parent allows), and that of core dumps to zero: a dump
/// would hold what the guest keeps secret.
///
/// # Errors
/// setrlimit(2) or getrlimit(2) failed.
pub fn set(open_files: u64) -> io::Result<()> {
    let mut files = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structures live across the calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files))?;
        let bound = if privileged() {
            open_files
        } else {
            open_files.min(files.rlim_max)
        };
        files.rlim_cur = bound;
        files.rlim_max = bound;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files))?;
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))
    }
}

fn privileged() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Makes this process one that the kernel may choose when memory is short: it must not inherit the protection of a
/// supervisor that adjusted itself below zero.
///
/// # Errors
/// `/proc/self/oom_score_adj` cannot be read or written.
pub fn unprotect_from_oom_killer() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let adjusted = std::fs::read_to_string(path)?;
    if adjusted.trim().starts_with('-') {
        std::fs::write(path, "0")?;
    }
    Ok(())
}

/// Has the allocator ask its one question to a file before no thread may open one: when another thread than the first
/// gives memory back, glibc reads `/proc/sys/vm/overcommit_memory`, once a process. A device that lets go of buffers (of a
/// socket whose reader was slow, say) would end the machine with it.
///
/// # Errors
/// No thread can be started.
pub fn settle_allocator() -> io::Result<()> {
    std::thread::Builder::new()
        .spawn(|| drop(ask_allocator()))?
        .join()
        .map_err(|_| io::Error::other("the thread that allocates has panicked"))
}

/// Memory that the allocator does not keep when it is dropped: pieces below what is mapped by itself, together well above
/// what is kept for later (both 128 KiB in glibc).
pub(super) fn ask_allocator() -> Vec<Vec<u8>> {
    const PIECES: usize = 8;
    const PIECE_BYTES: usize = 100 * 1024;
    (0..PIECES)
        .map(|_| Vec::with_capacity(std::hint::black_box(PIECE_BYTES)))
        .collect()
}

/// Nobody may trace this process or look into its memory by way of /proc, except root; and no execve gains privileges.
///
/// # Errors
/// prctl(2) failed.
pub fn seal() -> io::Result<()> {
    // SAFETY: these calls have no memory arguments.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}
