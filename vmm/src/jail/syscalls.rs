//! System calls that each kind of thread may make. Everything else ends the process.
//!
//! A call that is missing here shows as `vmpod-vmm: system call N of thread T is not allowed`.

use libc::*;

/// Of every thread: memory, locks, time, descriptors that are already open, signals, its own end.
pub const COMMON: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_close,
    SYS_poll,
    SYS_ppoll,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_ctl,
    SYS_futex,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_getrandom,
    SYS_gettid,
    SYS_getpid,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_exit,
    SYS_exit_group,
];

/// Of vCPU threads: the console log, and starting and stopping devices, which a register write does.
pub const VCPU: &[c_long] = &[
    SYS_openat,
    SYS_renameat,
    SYS_ftruncate,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_shutdown,
];

/// Of device workers: network frames, sockets, blocks.
pub const DEVICE: &[c_long] = &[
    SYS_connect,
    SYS_accept4,
    SYS_shutdown,
    SYS_sendto,
    SYS_sendmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_unshare,
    SYS_fchdir,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_fsync,
    SYS_fdatasync,
    SYS_fallocate,
    SYS_lseek,
];

/// Of file system workers: everything that is done to files.
pub const FILES: &[c_long] = crate::virtio::fs::syscalls::SYSCALLS;

/// Of the control thread: its sockets, signals, and ending the machine (which removes the socket device's file).
pub const CONTROL: &[c_long] = &[
    SYS_accept4,
    SYS_recvfrom,
    SYS_sendto,
    SYS_sendmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_mincore,
    SYS_unlinkat,
    SYS_unlink,
    SYS_newfstatat,
    SYS_renameat,
    SYS_openat,
    SYS_ftruncate,
    // Attaching a block device: its descriptor, its size, its notifications.
    SYS_recvmsg,
    SYS_lseek,
    SYS_eventfd2,
    // Starting a device that has slept since the snapshot.
    SYS_epoll_create1,
];

/// Of the control thread as long as it may be asked for a snapshot: reading the page map and writing the memory.
pub const SNAPSHOT: &[c_long] = &[SYS_pread64, SYS_pwrite64];

/// Needed by a thread to narrow itself down: its capabilities and its filter.
pub const NARROW: &[c_long] = &[SYS_capset, SYS_seccomp];

/// ioctl requests of vCPU threads: running the guest, and setting up a tap when its device is activated.
pub const VCPU_IOCTLS: &[u32] = &[
    0xae80,      // KVM_RUN
    0xaead,      // KVM_KVMCLOCK_CTRL
    0x8090_ae81, // KVM_GET_REGS
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54dc, // TUNSETVNETLE
];

/// ioctl requests of the control thread: wiring a block device that is attached.
pub const CONTROL_IOCTLS: &[u32] = &[
    0x4020_ae76, // KVM_IRQFD
    0x4040_ae79, // KVM_IOEVENTFD
];

/// ioctl requests of the control thread as long as it may be asked for a snapshot: taking the state out of KVM, and
/// setting up a tap again.
pub const SNAPSHOT_IOCTLS: &[u32] = &[
    0xaea3,      // KVM_GET_TSC_KHZ
    0x8004_ae98, // KVM_GET_MP_STATE
    0x8030_ae7c, // KVM_GET_CLOCK
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x8188_aea6, // KVM_GET_XCRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x9000_aea4, // KVM_GET_XSAVE
    0xc008_ae88, // KVM_GET_MSRS
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54dc, // TUNSETVNETLE
];

/// ioctl requests of device workers.
pub const DEVICE_IOCTLS: &[u32] = &[
    0x541b,      // FIONREAD
    0x4004_54d0, // TUNSETOFFLOAD
];
