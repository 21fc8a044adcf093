//! The first milliseconds of the guest, as PID 1: a root to live in, the kernel's file systems, the vsock listeners.
//!
//! Owned by the process' only thread, before the asynchronous runtime exists; the order is the shortest way to
//! "listening", and everything that nobody waits for ([`finish`]) comes after the host has been told. Does not read
//! configuration: all of it comes over the protocol.

mod kernel_log;
mod listen;
mod root;

pub use kernel_log::report;
pub use listen::{Listeners, ServiceSocket, listen_unix, listen_vsock};
pub use root::loopback_up;

use std::io;

/// Where the control group hierarchy is mounted.
pub const HIERARCHY: &str = "/sys/fs/cgroup";
/// The group that holds all containers' groups.
pub const CONTAINER_GROUPS: &str = "/sys/fs/cgroup/pod";
/// Empty directory at which containers' roots are attached in their own mount namespaces.
pub const ROOT_MOUNT_POINT: &str = "/container";

/// A step of the boot that failed. The guest is of no use then: PID 1 ends and the kernel panics with the text above
/// it on the console.
#[derive(Debug, thiserror::Error)]
#[error("boot: {step}")]
pub struct BootError {
    step: &'static str,
    #[source]
    source: io::Error,
}

impl BootError {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> BootError {
        move |source| BootError {
            step,
            source: source.into(),
        }
    }
}

/// Turns the process that the kernel started into a ready agent: mounts, then listens, then says so to the host.
pub fn start() -> Result<Listeners, BootError> {
    root::enter()?;
    listen_vsock()
}

/// The rest of the boot, done while the host reacts to the ready connection: loopback, limits, control groups.
pub fn finish() {
    for (step, result) in [
        ("bring the loopback interface up", root::loopback_up()),
        ("raise the limit of open files", root::raise_limits()),
        ("mount and delegate control groups", root::control_groups()),
    ] {
        if let Err(error) = result {
            report(&format!("boot: {step}: {error}"));
        }
    }
}

/// Ends the machine: the guest's kernel resets it, which the VMM takes for "done". An ordinary process just exits.
pub fn end_machine() -> ! {
    if std::process::id() == 1 {
        // SAFETY: reboot(2) with a command takes no pointers; everything was synchronised before.
        unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_RESTART) };
        report("the machine could not be reset");
    }
    std::process::exit(0);
}
