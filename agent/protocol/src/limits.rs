//! Upper bounds of what either side accepts. A message that exceeds one is answered with InvalidArgument, never cut.

/// Bytes of an OCI runtime configuration.
pub const OCI_SPEC_BYTES: usize = 1 << 20;
/// Bytes of a container id, exec id, name or path.
pub const NAME_BYTES: usize = 4096;
/// Containers of a pod, init containers counted.
pub const CONTAINERS: usize = 256;
/// Execs that exist at a time in one container.
pub const EXECS: usize = 1024;
/// Events that the agent keeps for a host that is away.
pub const EVENTS_KEPT: usize = 4096;
/// Events in one `NextEvents` answer.
pub const EVENTS_PER_ANSWER: usize = 256;
/// Bytes of a human-readable message or reason (Kubernetes' termination message limit).
pub const MESSAGE_BYTES: usize = 4096;
/// Longest wait of a `NextEvents` call, in milliseconds.
pub const EVENT_WAIT_MS: u32 = 30_000;
/// Bytes of the header line of a byte stream, newline included.
pub const STREAM_HEADER_BYTES: usize = 16 * 1024;
/// Interfaces, routes, neighbours, shares or volumes of a sandbox, each.
pub const SANDBOX_ITEMS: usize = 1024;
/// Words of a probe's or hook's command, and header fields of its HTTP request, each.
pub const HANDLER_ITEMS: usize = 1024;
/// Bytes of one handler: command, path, headers.
pub const HANDLER_BYTES: usize = 256 * 1024;
/// Mounts of containers in volumes that they share with the host, which the host hears of.
pub const VOLUME_MOUNTS: usize = 64;
