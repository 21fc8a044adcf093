//! `runtimeClassName: vmpod`: what containerd asks of a runtime shim, answered with the machine, the tree and the agent
//! that `vmpod run` has as well.
//!
//! containerd executes `containerd-shim-vmpod-v2` in a bundle with an action ([`launch`], [`cleanup`]) or to serve
//! ([`server`]). One serving process a pod: it is the pod's supervisor, and the machine dies with it. Requests come in
//! through [`task_service`], and through [`sandbox_service`] where containerd makes the pod itself and no pause container
//! (`sandboxer = "shim"`); [`tasks`] knows what containerd knows; [`sandbox`] keeps the machine. Containers are made by
//! the agent's container primitives, one by one; restarts, probes and hooks are the kubelet's.

pub mod bundle;
pub mod cleanup;
pub mod fault;
pub mod guest_devices;
pub mod guest_spec;
pub mod host_block;
pub mod info;
pub mod launch;
pub mod metrics;
pub mod pod_sandbox_config;
pub mod process;
pub mod publisher;
pub mod sandbox;
pub mod sandbox_service;
pub mod sandbox_wish;
pub mod server;
pub mod settings;
pub mod stdio;
pub mod streaming;
pub mod task_service;
pub mod task_state;
pub mod tasks;
pub mod users;

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// Wall clock in nanoseconds as containerd writes it.
fn timestamp(at_ns: i64) -> Timestamp {
    Timestamp {
        seconds: at_ns.div_euclid(1_000_000_000),
        nanos: i32::try_from(at_ns.rem_euclid(1_000_000_000)).unwrap_or(0),
        ..Default::default()
    }
}
