//! `containerd-shim-vmpod-v2`: what containerd executes for pods whose runtime class is `vmpod`. The library does
//! everything; here is only which of it.
//!
//! Standard output belongs to containerd: addresses and messages, nothing else.

use std::io::Write;
use std::process::ExitCode;

use containerd_shim::Flags;
use vmpod_shim::containerd::{cleanup, info, launch, server};
use vmpod_shim::diagnostics;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::roots::Roots;

/// The runtime's name in containerd's configuration.
const RUNTIME: &str = "io.containerd.vmpod.v2";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = match containerd_shim::parse(&arguments) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!(
                "containerd-shim-vmpod-v2: {error}; containerd starts this program, see README"
            );
            return ExitCode::FAILURE;
        }
    };
    match run(&flags) {
        Ok(output) => {
            let mut stdout = std::io::stdout().lock();
            let written = stdout.write_all(&output).and_then(|()| stdout.flush());
            ExitCode::from(u8::from(written.is_err()))
        }
        Err(error) => {
            eprintln!("containerd-shim-vmpod-v2: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<Vec<u8>, String> {
    let roots = Roots::default();
    if flags.version {
        return Ok(format!("{RUNTIME} {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    }
    if flags.info {
        return info::info(RUNTIME).map_err(|error| error.to_string());
    }
    match flags.action.as_str() {
        "start" => launch::start(flags).map_err(|error| chain(&error)),
        "delete" => {
            diagnostics::start(diagnostics::WARNINGS);
            Ok(cleanup::delete(flags, roots))
        }
        _ if flags.socket.is_empty() => {
            Err("neither start nor delete is asked for, and -socket names nothing to serve".into())
        }
        _ => {
            diagnostics::start_in_bundle(flags.debug);
            server::serve(flags, roots)
                .map(|()| Vec::new())
                .map_err(|error| {
                    let words = chain(&error);
                    // Whoever started this process reads it.
                    print!("{words}");
                    words
                })
        }
    }
}
