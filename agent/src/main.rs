//! The guest's `/init`, and the same agent as an ordinary process (`vmpod-agent --directory DIR`).
//!
//! Has a C `main`: the standard library's own start-up wants working standard streams before `/dev` is mounted, and
//! costs system calls on the way to "ready".
#![no_main]

use std::ffi::{c_char, c_int};
use std::path::PathBuf;

/// Entry point that the C library calls.
// SAFETY: the C library calls `main` with exactly this signature, once.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    let succeeded = if std::process::id() == 1 {
        vmpod_agent::agent::run_as_init()
    } else {
        let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
        match arguments.as_slice() {
            [flag, directory] if flag.as_os_str() == "--directory" => {
                vmpod_agent::agent::run_in_directory(directory)
            }
            _ => {
                eprintln!(
                    "vmpod-agent is the init process of vmpod's guests. On a development machine: \
                     vmpod-agent --directory DIR serves on DIR/agent.sock and DIR/stream.sock"
                );
                false
            }
        }
    };
    c_int::from(!succeeded)
}
