//! The process that is the machine: memory, vCPUs, devices, its own jail. Knows nothing of containers or pods.
//!
//! `virtio` holds the devices and needs only guest memory and an interrupt; `kvm` (and what boots a kernel on it) is
//! the other half. `virtio` never imports `kvm`, and devices never import each other: the unit tests drive every device
//! through its rings without KVM. `machine` brings both together, `control` speaks to the pod host.

pub mod boot;
pub mod console;
pub mod control;
pub mod ending;
pub mod file_mapping;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod page_filling;
pub mod snapshot;
pub mod virtio;
