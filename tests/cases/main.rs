//! End-to-end cases, one module a behaviour. Each runs real pods in real virtual machines.

mod bad_input;
mod check;
mod commands;
mod examples;
mod images;
mod leaks;
mod life;
mod network;
mod resources;
mod security;
mod template;
mod volumes;
