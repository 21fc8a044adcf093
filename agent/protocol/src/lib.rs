//! The versioned ttrpc service between the host and the guest agent, and the byte streams beside it.
//!
//! `messages` and `service` are generated from `proto/agent.proto`; [`stream`] is the header of a raw byte stream;
//! [`limits`] bounds every message; [`mount_option`] names what the options of a mount may say beside the OCI's. This
//! crate depends on no other crate of the workspace and does no I/O.

pub mod capability;
pub mod limits;
pub mod mount_option;
pub mod stream;

#[allow(
    clippy::all,
    clippy::pedantic,
    missing_debug_implementations,
    unused,
    reason = "generated code"
)]
#[expect(
    clippy::allow_attributes,
    reason = "which lints the generator trips differs by version"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

/// Message types of `proto/agent.proto`.
pub use generated::agent as messages;
/// Client and server of the `Agent` service (ttrpc, asynchronous).
pub use generated::agent_ttrpc as service;

/// Version of the service. Raised when an old peer would misread a message.
pub const PROTOCOL_VERSION: u32 = 1;

/// vsock port on which the agent serves the `Agent` service.
pub const AGENT_PORT: u32 = 1024;

/// vsock port on which the agent accepts byte streams ([`stream::StreamHeader`]).
pub const STREAM_PORT: u32 = 1025;

/// vsock port on the host (context id 2) to which the agent connects once as soon as it listens: the connection itself
/// says "ready", nothing is sent on it.
pub const READY_PORT: u32 = 1026;

/// Guest directory below which shares and memory volumes are mounted.
pub const GUEST_ROOT: &str = "/run/vmpod";

/// Guest path of the pod's shared tree (the virtio-fs share with tag [`SHARE_TAG`]).
pub const GUEST_SHARED: &str = "/run/vmpod/shared";

/// Tag of the pod's shared tree.
pub const SHARE_TAG: &str = "vmpod";
