//! Pod manifests: parsing, validation as the Kubernetes API server does it, and what they ask of a machine.
//!
//! Text becomes documents with line numbers, documents become Kubernetes types, and those become a plan: plain data with
//! every default filled in. Nothing here touches the host.

pub mod plan;
