//! Containers: OCI runtime specifications made into processes with namespaces, mounts, cgroups and limits.

mod api;

pub use api::{
    ContainerError, Containers, CreateContainer, CreateExec, ExecOutcome, PodLabel, ProcessName,
};
