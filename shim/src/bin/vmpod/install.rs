//! `vmpod install`

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use vmpod_shim::host::bundle::Bundle;
use vmpod_shim::host::install::{self, Target};

use crate::cli::InstallArguments;

/// Installs or uninstalls, and says what was done.
pub fn install(arguments: InstallArguments) -> anyhow::Result<u8> {
    let bundle = Bundle::locate();
    let target = Target {
        host: arguments.host,
        prefix: arguments.prefix,
        config: arguments.containerd_config,
        version: arguments.containerd_version,
    };
    let done = if arguments.uninstall {
        install::uninstall(&bundle, &target)?
    } else {
        install::install(&bundle, &target)?
    };
    let mut out = io::stdout().lock();
    for line in &done {
        writeln!(out, "{line}")?;
    }
    if done.is_empty() {
        writeln!(out, "everything is as it should be")?;
    }
    if done.iter().any(|line| line.starts_with("changed ")) {
        if arguments.restart {
            restart(&target)?;
            writeln!(out, "restarted containerd")?;
        } else {
            writeln!(
                out,
                "containerd takes it up when it is restarted: systemctl restart containerd"
            )?;
        }
    }
    drop(out);
    if arguments.wait {
        wait_for_the_end()?;
    }
    Ok(0)
}

/// Has the host's systemd restart containerd.
fn restart(target: &Target) -> anyhow::Result<()> {
    let status = target
        .program(Path::new("/usr/bin/systemctl"))
        .args(["restart", "containerd"])
        .status()
        .context("cannot execute the host's systemctl to restart containerd")?;
    if !status.success() {
        bail!(
            "`systemctl restart containerd` ended with {status}; pods take the change up when containerd is restarted"
        );
    }
    Ok(())
}

fn wait_for_the_end() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok(())
        })
}
