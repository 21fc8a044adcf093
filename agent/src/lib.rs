//! Everything inside the guest: PID 1, the pod's namespaces, its containers and its state machine.
//!
//! Trusts nothing about the host but the protocol (`vmpod-agent-protocol`).

pub mod agent;
pub mod boot;
pub mod byte_stream;
pub mod cgroup;
pub mod clock;
pub mod container;
pub mod event_log;
pub mod pod;
pub mod probe;
pub mod process;
pub mod sandbox;
pub mod server;
pub mod stdio;
pub mod streams;
