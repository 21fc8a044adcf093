//! Options of an OCI mount that only host and agent know, beside those of mount(8): how a bind mount's `source` is to be
//! looked at.

/// Prefix: a path below `source`, which the agent resolves with `source` as root, so that no symbolic link leads out of
/// it, and whose missing directories it makes (Kubernetes' `subPath`).
pub const SUB_PATH: &str = "x-vmpod.subpath=";

/// `source` is a file of the pod's tree, neither a link nor a mount: the agent need not look at the way there more than
/// once.
pub const FILE: &str = "x-vmpod.file";
