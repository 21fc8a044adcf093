//! The framework of the end-to-end tests: runs `vmpod` as a user does and looks at the host as an administrator does.
//!
//! The cases in `cases/` are named after behaviour. They need a host that runs virtual machines, so each is `#[ignore]`d
//! with that reason and `cargo xtask test` runs them where KVM is real. Nothing here links vmpod's own crates.

mod cli;
mod containerd;
mod cri;
mod host;
mod http;
mod pod;
mod registry;
mod streaming;
mod tasks_api;

pub use cli::{Outcome, Vmpod, program, vmpod};
pub use containerd::{Containerd, STREAMING, containerd};
pub use cri::{Container, Cri, Ran, Sandbox, cri, on_both};
pub use host::{Footprint, processes_with};
pub use http::get;
pub use pod::Pod;
pub use registry::{Registry, SmallImage};
pub use streaming::Attached;
pub use tasks_api::OneOff;

use std::time::{Duration, Instant};

/// Upper bound of anything that a test waits for: an emulated node is slow.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Polls until `look` gives something.
///
/// # Panics
/// When nothing came within [`LIMIT`]; the message says what was awaited.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(LIMIT, what, look)
}

/// As [`eventually`], with a limit for what takes long by itself.
///
/// # Panics
/// When nothing came within `limit`; the message says what was awaited.
pub fn eventually_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < end,
            "within {limit:?} there was never: {what}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
