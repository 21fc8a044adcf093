//! A pod sandbox on the host: its directory and journal, its VMM process, its agent connection, its end.

pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod clock;
pub mod conditions;
pub mod console;
pub mod durable;
pub mod events;
pub mod guest_paths;
pub mod hybrid_vsock;
pub mod journal;
pub mod lesson;
pub mod logs;
pub mod object;
pub mod prepare;
pub mod process;
mod process_space;
pub mod record;
pub mod refresh;
pub mod registry;
pub mod roots;
pub mod rotating_file;
pub mod status;
pub mod supervisor;
pub mod template;
pub mod tree;
pub mod vmm;
