//! The agent as a whole: boot, the runtime, and the parts that serve until the machine goes.
//!
//! One thread. Container processes are made by cloning the agent itself (see `process::clone_process`), which is sound
//! only in a process without other threads; so nothing in the agent may start one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::boot::{self, CONTAINER_GROUPS, HIERARCHY, Listeners, ROOT_MOUNT_POINT};
use crate::container::{Engine, EngineConfig};
use crate::event_log::EventLog;
use crate::process::Reaper;
use crate::server::{AgentService, serve};
use crate::{cgroup, streams};

/// Runs as PID 1 of the guest. Returns, with false, only when the guest cannot be brought up.
pub fn run_as_init() -> bool {
    let config = EngineConfig {
        hierarchy: HIERARCHY.into(),
        groups: CONTAINER_GROUPS.into(),
        mount_point: ROOT_MOUNT_POINT.into(),
    };
    match boot::start() {
        Ok(listeners) => run(listeners, config, boot::finish),
        Err(error) => fail(&error),
    }
}

/// Runs as an ordinary process that serves on Unix sockets in `directory`: for development machines. The machine's
/// own namespaces take the guest's place, so that this wants root and an `unshare` around it.
pub fn run_in_directory(directory: &Path) -> bool {
    let prepared = prepare_directory(directory);
    // SAFETY: prctl with integers only, and a valid disposition. Orphans come to this process, as they do to PID 1, and
    // a broken connection shall not end it, as it does not end PID 1.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    match (prepared, boot::listen_unix(directory)) {
        (Ok(config), Ok(listeners)) => run(listeners, config, || ()),
        (Err(error), _) => fail(&error),
        (_, Err(error)) => fail(&error),
    }
}

fn prepare_directory(directory: &Path) -> io::Result<EngineConfig> {
    let hierarchy = [HIERARCHY, "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
        .ok_or_else(|| io::Error::other("no version 2 control group hierarchy is mounted"))?;
    let groups = hierarchy.join(format!("vmpod-agent-{}", std::process::id()));
    fs::create_dir(&groups)?;
    cgroup::delegate(&hierarchy)?;
    cgroup::delegate(&groups)?;
    let mount_point = directory.join("root");
    fs::create_dir_all(&mount_point)?;
    // Containers' roots must be attached below a mount that is not shared.
    for (kind, flags) in [
        (Some("tmpfs"), nix::mount::MsFlags::empty()),
        (None, nix::mount::MsFlags::MS_PRIVATE),
    ] {
        nix::mount::mount(kind, &mount_point, kind, flags, None::<&str>)?;
    }
    Ok(EngineConfig {
        hierarchy,
        groups,
        mount_point,
    })
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

fn run(listeners: Listeners, config: EngineConfig, finish: impl FnOnce()) -> bool {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result: Result<(), Box<dyn std::error::Error>> = runtime.block_on(async {
        let engine = Engine::new(config, Reaper::start()?, EventLog::new())?;
        let service = AgentService::new(engine.clone(), listeners.ready, listeners.ready_at_us);
        let _server = serve(service, listeners.service).await?;
        finish();
        engine.prepare();
        streams::serve(listeners.streams, engine).await?;
        Ok(())
    });
    match result {
        Ok(()) => true,
        Err(error) => fail(error.as_ref()),
    }
}
