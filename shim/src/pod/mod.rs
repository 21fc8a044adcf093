//! A pod sandbox on the host: its directory and journal, its VMM process, its agent connection, its end.

pub mod guest_paths;
