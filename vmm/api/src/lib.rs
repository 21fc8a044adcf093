//! Configuration and control messages of the `vmpod-vmm` process.
//!
//! The pod host starts `vmpod-vmm --control-fd N` with one end of a Unix stream socket pair, or `--control PATH` to
//! listen on a Unix socket. Each message is one JSON object on one line of at most [`LINE_BYTES`]. A client sends
//! [`Request`]s and gets one [`Reply`] for each, in order; [`Event`]s may come between replies.
//! File descriptors in a configuration are numbers in the VMM's own table, inherited from its parent.

#![forbid(unsafe_code)]

mod config;
mod exit;
mod message;
mod touched;

pub use config::{
    BlockConfig, BlockSource, ConfigError, JailConfig, KernelConfig, MachineConfig, NetConfig,
    NetworkConfig, SenderConfig, ShareConfig, VsockConfig,
};
pub use exit::ExitReason;
pub use message::{
    Attached, DeviceMetrics, Event, MachineInfo, MachineState, Message, Metrics, Reply, Request,
};
pub use touched::{TOUCHED_BYTES, TOUCHED_FILE, TouchedPages};

/// Upper bound of a control line in bytes, newline included.
pub const LINE_BYTES: usize = 256 * 1024;
