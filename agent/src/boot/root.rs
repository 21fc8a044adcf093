//! The agent's root file system and what is mounted in it.
//!
//! The kernel starts `/init` in the initial root (a ramfs), where pivot_root(2) is refused. So the agent moves at
//! once into a tmpfs mounted over it: from there every container can pivot away, and the initial root with the agent's
//! executable stays out of everybody's sight. Source: pivot_root(2), "current root is on the rootfs mount".

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, mkdir};

use super::{BootError, CONTAINER_GROUPS, HIERARCHY};

/// Open files of the agent, and what containers inherit as their hard limit.
const OPEN_FILES: u64 = 524_288;

const NOTHING: Option<&str> = None;

fn make(path: &str) -> nix::Result<()> {
    match mkdir(path, Mode::from_bits_truncate(0o755)) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// Mounts a tmpfs over the initial root, enters it, and mounts devices, processes and sysfs there.
pub(super) fn enter() -> Result<(), BootError> {
    make("/root").map_err(BootError::at("make the new root's mount point"))?;
    mount(
        Some("root"),
        "/root",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )
    .map_err(BootError::at("mount the new root"))?;
    // Nobody may write to the executable that all containers' processes come from, not even through /proc/PID/exe
    // (CVE-2019-5736): the mount that it was started from turns read-only.
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        NOTHING,
    )
    .map_err(BootError::at("write-protect the initial root"))?;
    chdir("/root").map_err(BootError::at("enter the new root"))?;
    for directory in ["dev", "proc", "sys", "run", "tmp", "container"] {
        make(directory).map_err(BootError::at("make a mount point"))?;
    }
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, target, flags) in [
        ("devtmpfs", "dev", safe),
        ("proc", "proc", safe | MsFlags::MS_NODEV),
        ("sysfs", "sys", safe | MsFlags::MS_NODEV),
    ] {
        mount(Some(kind), target, Some(kind), flags, NOTHING)
            .map_err(BootError::at("mount devtmpfs, proc and sysfs"))?;
    }
    mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING)
        .map_err(BootError::at("move the new root over the initial one"))?;
    chroot(".").map_err(BootError::at("change the root directory"))?;
    chdir("/").map_err(BootError::at("enter the root directory"))?;
    // Containers get their own copy of the mount tree; only with a shared original can a volume with
    // mountPropagation see mounts that are made later.
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        NOTHING,
    )
    .map_err(BootError::at("share the mount tree"))?;
    detach_standard_streams().map_err(BootError::at("open /dev/null"))
}

/// Points standard input, output and error at /dev/null: the console is slow and no process shall inherit it.
fn detach_standard_streams() -> io::Result<()> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
    for target in 0..3 {
        if null.as_raw_fd() != target {
            // SAFETY: dup2 of a descriptor that is open onto a number below 3; nothing in the agent owns those
            // numbers as OwnedFd, save `null` itself, which is excluded above.
            if unsafe { libc::dup2(null.as_raw_fd(), target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    if null.as_raw_fd() < 3 {
        // Opened onto one of the three themselves (the kernel had no console): it stays open.
        std::mem::forget(null);
    }
    Ok(())
}

/// Sets `lo` up; the kernel then gives it 127.0.0.1 and ::1 by itself.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is, for the duration of the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn raise_limits() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)?;
    Ok(())
}

/// Mounts the control group hierarchy and hands every controller down to the pod's group.
pub(super) fn control_groups() -> io::Result<()> {
    mount(
        Some("cgroup2"),
        HIERARCHY,
        Some("cgroup2"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("nsdelegate"),
    )?;
    fs::create_dir(CONTAINER_GROUPS)?;
    crate::cgroup::delegate(HIERARCHY.as_ref())?;
    crate::cgroup::delegate(CONTAINER_GROUPS.as_ref())
}
