//! What vmpod's programs say about themselves, on standard error. `VMPOD_LOG` chooses over what the caller wants:
//! `debug`, or `warn,vmpod_shim::network=trace`.

use std::os::unix::fs::OpenOptionsExt as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Level of a program that is asked for nothing.
pub const WARNINGS: tracing::Level = tracing::Level::WARN;

/// Begins. To be called once.
pub fn start(level: tracing::Level) {
    let filter = std::env::var("VMPOD_LOG")
        .ok()
        .and_then(|text| text.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .init();
}

/// Begins in a shim: lines go where containerd reads them, the fifo `log` in the bundle. Nothing waits for a reader.
pub fn start_in_bundle(debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    };
    // Open for reading as well, so that neither the opening waits nor a containerd that is away ends the process; what
    // does not fit is lost.
    let fifo = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("log");
    let Ok(fifo) = fifo else {
        return;
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::sync::Mutex::new(fifo))
        .with_ansi(false)
        .with_target(false)
        .without_time();
    tracing_subscriber::registry()
        .with(lines)
        .with(
            Targets::new()
                .with_default(tracing::Level::WARN)
                .with_target("vmpod_shim", level),
        )
        .init();
}
