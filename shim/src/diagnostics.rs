//! What vmpod's programs say about themselves, on standard error. `VMPOD_LOG` chooses over what the caller wants:
//! `debug`, or `warn,vmpod_shim::network=trace`.

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
