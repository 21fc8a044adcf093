//! `cargo xtask run FILE`: a pod manifest on a machine that has nothing but Rust. Installs, builds
//! and starts what is missing, then hands over to `vmpod run` with the same file, flags, output and
//! exit status. It knows nothing of manifests but the names of their images: those that are made
//! here from Debian packages are, unless the store has them (not for a manifest on standard input).

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::bundle;
use crate::host::Host;
use crate::images;
use crate::process::Invocation;

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Build unoptimised: faster to build, slower to run
    #[arg(long)]
    debug: bool,
    /// A Pod manifest, or - for standard input
    file: PathBuf,
    /// Further arguments of `vmpod run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the subcommand and returns the pod's exit status.
///
/// # Errors
/// When something that the pod needs cannot be installed, built or started.
pub fn run(args: &RunArgs) -> Result<u8> {
    let bundle = bundle::build(args.debug)?;
    let host = Host::ready()?;
    let place = host.place_bundle(&bundle)?;
    if args.file.as_os_str() != "-" {
        let manifest = fs::read_to_string(&args.file)
            .with_context(|| format!("reading {}", args.file.display()))?;
        images::ensure(
            &images::named_in(&manifest),
            &host,
            &place,
            images::Refresh::Missing,
        )?;
    }
    let file = if args.file.as_os_str() == "-" {
        args.file.clone()
    } else {
        host.visible(&args.file)?
    };
    let arguments = command_line(
        &place.join("bin/vmpod").to_string_lossy(),
        &file.to_string_lossy(),
        &args.arguments,
    );
    let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let invocation = Invocation {
        arguments,
        directory,
        environment: Vec::new(),
        terminal: false,
    };
    host.run(&invocation, None)
}

/// What runs the pod. One in the foreground is removed when it has ended, so that the same command works again; one in the
/// background stays for whoever asked for it.
fn command_line(vmpod: &str, file: &str, further: &[String]) -> Vec<String> {
    let mut arguments = vec![vmpod.to_owned(), "run".to_owned()];
    let stays = |word: &String| matches!(word.as_str(), "-d" | "--detach" | "--rm");
    if !further.iter().any(stays) {
        arguments.push("--rm".to_owned());
    }
    arguments.push(file.to_owned());
    arguments.extend(further.iter().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_removes_a_pod_of_the_foreground_alone() {
        let of = |further: &[&str]| {
            let further: Vec<String> = further.iter().map(|&word| word.to_owned()).collect();
            command_line("vmpod", "pod.yaml", &further).join(" ")
        };
        assert_eq!(of(&[]), "vmpod run --rm pod.yaml");
        assert_eq!(of(&["--name", "x"]), "vmpod run --rm pod.yaml --name x");
        assert_eq!(of(&["-d"]), "vmpod run pod.yaml -d");
        assert_eq!(of(&["--rm"]), "vmpod run pod.yaml --rm");
    }
}
