//! The system calls of a file system worker, for the jail's seccomp filter.
//!
//! Beside these a worker needs what every Rust thread needs: memory (`mmap`, `munmap`, `mprotect`, `madvise`, `brk`),
//! locks (`futex`), signals (`rt_sigprocmask`, `rt_sigreturn`, `sigaltstack`), its end (`exit`), and its set-up by `std`
//! (`prctl`, `set_robust_list`, `rseq`, `sched_getaffinity`, `gettid`).

/// Numbers of the system calls, x86-64. None of them creates a socket, a process or a mapping of a file.
pub const SYSCALLS: &[libc::c_long] = &[
    // Once per thread, before the first request: a umask, a working directory and credentials of its own.
    libc::SYS_unshare,
    libc::SYS_fchdir,
    libc::SYS_prctl,
    libc::SYS_capget,
    // Waiting for the driver and telling it.
    libc::SYS_poll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_read,
    libc::SYS_write,
    // The user who creates a file.
    libc::SYS_umask,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_getdents64,
    // Watching for what others on the host change.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Names.
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    // Attributes.
    libc::SYS_fchownat,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    // Files without a descriptor.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Seeds of hash tables; the time, where the vDSO cannot tell it.
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
];
