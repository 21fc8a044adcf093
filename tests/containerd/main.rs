//! What containerd's clients see: the same under runc and under vmpod wherever it should be the same.

mod accidents;
mod admission;
mod bad_input;
mod cgroup_v1;
mod conformance;
mod examples;
mod install;
mod leaks;
mod network;
mod pods;
mod processes;
mod resources;
mod security;
mod streams;
mod tasks;
mod volumes;
