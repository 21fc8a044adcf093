//! Pod manifests: parsing, validation as the Kubernetes API server does it, and what they ask of a machine.
//!
//! Text becomes documents with line numbers ([`source`]), documents become Kubernetes objects ([`documents`]), and a Pod
//! becomes a [`plan`]: plain data with every default filled in. Nothing here touches the host.

pub mod care;
mod documents;
pub mod environment;
mod host_names;
mod names;
pub mod plan;
mod planner;
pub mod problem;
mod pull_secrets;
pub mod qos;
pub mod quantity;
pub mod sizing;
pub mod source;
pub mod support;
mod validate;
mod volume_devices;
mod volumes;

pub use documents::{Objects, objects, partly};
pub use names::qualified;
pub use planner::{HostFacts, plan};
pub use problem::{Problem, Problems};
