//! The host side of a pod: images, root file systems, volumes, network, VMM supervision, state on disk.
//!
//! Used by the `vmpod` command line and by the containerd shim. Emulates no device; links neither the VMM nor the agent.

pub mod containerd;
pub mod diagnostics;
pub mod host;
pub mod images;
pub mod manifest;
pub mod network;
pub mod oci;
pub mod pod;
