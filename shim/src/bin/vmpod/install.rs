//! `vmpod install`

use std::io::{self, Write};
use std::process::Command;

use anyhow::{Context, bail};
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
    if !done.iter().any(|line| line.starts_with("changed ")) {
        return Ok(0);
    }
    if !arguments.restart {
        writeln!(
            out,
            "containerd takes it up when it is restarted: systemctl restart containerd"
        )?;
        return Ok(0);
    }
    let status = Command::new("chroot")
        .arg(&target.host)
        .args(["systemctl", "restart", "containerd"])
        .status()
        .context("cannot execute chroot, to restart containerd by the host's systemctl")?;
    if !status.success() {
        bail!(
            "`systemctl restart containerd` ended with {status}; pods take the change up when containerd is restarted"
        );
    }
    writeln!(out, "restarted containerd")?;
    Ok(0)
}
