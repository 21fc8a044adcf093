//! `vmpod install`

use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

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

/// Has the host's systemd restart containerd. Executes systemctl in the host's root: this may be an image without any
/// program but vmpod's own.
fn restart(target: &Target) -> anyhow::Result<()> {
    let host = target.host.clone();
    let mut command = Command::new("/usr/bin/systemctl");
    command.args(["restart", "containerd"]);
    // SAFETY: between fork and exec nothing is done but chroot(2) and chdir(2).
    unsafe {
        command.pre_exec(move || {
            std::os::unix::fs::chroot(&host)?;
            std::env::set_current_dir("/")
        });
    }
    let status = command
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
