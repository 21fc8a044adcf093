//! Containers: OCI runtime specifications made into processes with namespaces, mounts, cgroups and limits.
//!
//! The story of one container: [`plan`] checks its specification, [`Engine`] makes its control group and pipes and
//! clones its first process ([`first_process`]), which builds the file system around itself ([`root_builder`]), waits
//! to be started, gives up its privileges ([`identity`]) and executes its program ([`program`]).

mod api;
mod bind_source;
mod device;
mod device_filter;
mod engine;
mod exec_process;
mod first_process;
mod group;
mod hooks;
mod identity;
mod inside;
mod link;
mod mount_options;
mod mount_tree;
mod oci_config;
mod plan;
mod pod_users;
mod process_plan;
mod program;
mod root_builder;
mod seccomp;
mod step;
mod sysctl;
mod volume_mounts;

pub use api::{
    ContainerError, Containers, CreateContainer, CreateExec, ExecOutcome, PodLabel, ProcessName,
};
pub use engine::{Engine, EngineConfig};
pub use identity::become_root_of_namespace;
pub use plan::PlanError;
pub use pod_users::{PodUsers, check_users, guest_id};
pub use program::StandardStreams;
pub use step::{At, StepError, reason};
pub use sysctl::sysctls;
