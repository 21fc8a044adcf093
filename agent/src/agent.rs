//! The agent as a whole: boot, the runtime, and the parts that serve until the machine goes.
//!
//! One thread. Container processes are made by cloning the agent itself (see `container::launch`), which is sound only
//! in a process without other threads; so nothing in the agent may start one.

use std::path::Path;

use crate::boot::{self, Listeners};
use crate::event_log::EventLog;
use crate::server::{AgentService, serve};

/// Runs as PID 1 of the guest. Returns, with false, only when the guest cannot be brought up.
pub fn run_as_init() -> bool {
    match boot::start() {
        Ok(listeners) => run(listeners, boot::finish),
        Err(error) => fail(&error),
    }
}

/// Runs as an ordinary process that serves on Unix sockets in `directory`: for development machines. The machine's
/// own namespaces take the guest's place, so that this wants root and an `unshare` around it.
pub fn run_in_directory(directory: &Path) -> bool {
    match boot::listen_unix(directory) {
        Ok(listeners) => run(listeners, || ()),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> bool {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    boot::report(&text);
    false
}

fn run(listeners: Listeners, finish: impl FnOnce()) -> bool {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(async {
        let events = EventLog::new();
        let service = AgentService::new(events, listeners.ready_at_us);
        let server = serve(service, listeners.service).await?;
        finish();
        std::future::pending::<()>().await;
        drop(server);
        Ok::<(), ttrpc::Error>(())
    });
    match result {
        Ok(()) => true,
        Err(error) => fail(&error),
    }
}
