//! The pod's life: init containers in order, sidecars, restarts with back-off, the end.
//!
//! [`machine`] is the state machine, pure: inputs and a clock in, actions out. [`PodDriver`] is the one task that owns it
//! and carries the actions out on the container engine. [`request`] checks what the host asks for.

pub mod backoff;
pub mod driver;

pub mod machine;
pub mod request;
mod status;

pub use driver::{PodDriver, PodError};
