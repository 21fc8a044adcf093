//! `vmpod`: pods in microVMs from the command line, without a daemon.
//!
//! Exit status: `run` in the foreground and `wait` end with the pod's result, `exec` with the command's; 125 is an error
//! of vmpod itself, 2 a manifest or command line that is not valid.

mod attach;
mod cli;
mod copy;
mod events;
mod exec;
mod follow;
mod forward;
mod guest;
mod host;
mod images;
mod lifecycle;
mod list;
mod logs;
mod run;
mod signals;
mod stats;
mod supervise;
mod table;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vmpod_shim::manifest::Problems;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::roots::Roots;

use cli::{Cli, Command};

/// Status of vmpod's own errors, as container engines have it.
const OWN_ERROR: u8 = 125;

/// Status of invalid input, as of invalid command lines.
const INVALID_INPUT: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_tracing(cli.verbose);
    let roots = Roots {
        run: cli.root,
        state: cli.state,
    };
    match dispatch(cli.command, roots) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A reader that went away (`vmpod ps | head`) is no error to report.
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(std::io::stderr(), "vmpod: {}", chain(error.as_ref()));
            ExitCode::from(if error.downcast_ref::<Problems>().is_some() {
                INVALID_INPUT
            } else {
                OWN_ERROR
            })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    }) && error.downcast_ref::<std::io::Error>().is_some()
}

fn start_tracing(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VMPOD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

fn dispatch(command: Command, roots: Roots) -> anyhow::Result<u8> {
    match command {
        // Needs no roots: it is asked on hosts that may not have them.
        Command::Check(arguments) => return host::check(&roots, &arguments),
        Command::Completions(arguments) => return host::completions(&arguments),
        Command::Version(arguments) => return host::version(&arguments),
        _ => {}
    }
    roots.create()?;
    match command {
        Command::Run(arguments) => run::run(&roots, &arguments),
        Command::Ps(arguments) => list::ps(&roots, &arguments),
        Command::Inspect(arguments) => list::inspect(&roots, &arguments),
        Command::Logs(arguments) => logs::logs(&roots, &arguments),
        Command::Events(arguments) => events::events(&roots, &arguments),
        Command::Exec(arguments) => exec::exec(&roots, &arguments),
        Command::Attach(arguments) => attach::attach(&roots, &arguments),
        Command::Stop(arguments) => lifecycle::stop(&roots, &arguments),
        Command::Kill(arguments) => lifecycle::kill(&roots, &arguments),
        Command::Rm(arguments) => lifecycle::rm(&roots, &arguments),
        Command::Wait(arguments) => lifecycle::wait(&roots, &arguments),
        Command::Cp(arguments) => copy::cp(&roots, &arguments),
        Command::PortForward(arguments) => forward::forward(&roots, &arguments),
        Command::Stats(arguments) => stats::stats(&roots, &arguments),
        Command::Images(arguments) => images::list(&roots, &arguments),
        Command::Pull(arguments) => images::pull(&roots, &arguments),
        Command::Image(arguments) => images::image(&roots, &arguments),
        Command::Gc(arguments) => lifecycle::gc(&roots, &arguments),
        Command::Supervise(arguments) => supervise::supervise(roots, arguments),
        Command::Check(_) | Command::Completions(_) | Command::Version(_) => Ok(0),
    }
}
