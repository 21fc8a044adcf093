//! `cargo xtask install`: builds the bundle and has its own `vmpod install` put it on this host.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::bundle;
use crate::process;

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Words for `vmpod install`, such as --uninstall or --restart
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// When the bundle does not build or the program cannot be started.
pub fn run(args: &InstallArgs) -> Result<u8> {
    let bundle = bundle::build(false)?;
    let program = bundle.dir().join("bin/vmpod");
    let status = Command::new(&program)
        .arg("install")
        .args(&args.words)
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(process::code(status))
}
