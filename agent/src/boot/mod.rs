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

use std::io;

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
