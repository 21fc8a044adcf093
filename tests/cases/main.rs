//! End-to-end cases, one module a behaviour. Each runs real pods in real virtual machines.

mod bad_input;
mod check;
mod commands;
mod containers;
mod debug;
mod environment;
mod examples;
mod hooks;
mod identity;
mod images;
mod leaks;
mod life;
mod network;
mod patterns;
mod probes;
mod projected;
mod resources;
mod security;
mod serve;
mod status;
mod template;
mod updates;
mod user_namespace;
mod volumes;
