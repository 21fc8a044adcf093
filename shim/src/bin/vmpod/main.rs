//! `vmpod`: pods in microVMs from the command line, without a daemon.
//!
//! Exit status: `run` in the foreground and `wait` end with the pod's result, `exec` with the command's; 125 is an error
//! of vmpod itself, 2 a manifest or command line that is not valid.

mod attach;
mod cli;
mod copy;
mod debug;
mod events;
mod exec;
mod follow;
mod forward;
mod guest;
mod host;
mod images;
mod install;
mod lifecycle;
mod list;
mod logs;
mod run;
mod serve;
mod signals;
mod stats;
mod table;
mod terminal;
mod update;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use vmpod_shim::diagnostics;
use vmpod_shim::manifest::Problems;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::roots::Roots;

use cli::{Cli, Command};

/// Status of vmpod's own errors, as container engines have it.
const OWN_ERROR: u8 = 125;

/// Status of invalid input, as of invalid command lines.
const INVALID_INPUT: u8 = 2;

fn main() -> ExitCode {
    let cli = parse();
    diagnostics::start(match cli.verbose {
        0 => diagnostics::WARNINGS,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    });
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

/// The command line. The tree of all commands is left to the end of the process: taking it apart costs a start more than
/// parsing does.
fn parse() -> Cli {
    let mut command = std::mem::ManuallyDrop::new(Cli::command());
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    parsed.unwrap_or_else(|error| error.format(&mut command).exit())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    }) && error.downcast_ref::<std::io::Error>().is_some()
}

fn dispatch(command: Command, roots: Roots) -> anyhow::Result<u8> {
    match command {
        // Needs no roots: it is asked on hosts that may not have them.
        Command::Check(arguments) => return host::check(&roots, &arguments),
        Command::Completions(arguments) => return host::completions(&arguments),
        Command::Version(arguments) => return host::version(&arguments),
        Command::Install(arguments) => return install::install(arguments),
        _ => {}
    }
    roots.create()?;
    match command {
        Command::Run(arguments) => run::run(&roots, &arguments),
        Command::Serve(arguments) => serve::serve(&roots, &arguments),
        Command::Ps(arguments) => list::ps(&roots, &arguments),
        Command::Inspect(arguments) => list::inspect(&roots, &arguments),
        Command::Logs(arguments) => logs::logs(&roots, &arguments),
        Command::Events(arguments) => events::events(&roots, &arguments),
        Command::Exec(arguments) => exec::exec(&roots, &arguments),
        Command::Debug(arguments) => debug::debug(&roots, &arguments),
        Command::Attach(arguments) => attach::attach(&roots, &arguments),
        Command::Stop(arguments) => lifecycle::stop(&roots, &arguments),
        Command::Kill(arguments) => lifecycle::kill(&roots, &arguments),
        Command::Update(arguments) => update::update(&roots, &arguments),
        Command::Rm(arguments) => lifecycle::rm(&roots, &arguments),
        Command::Wait(arguments) => lifecycle::wait(&roots, &arguments),
        Command::Cp(arguments) => copy::cp(&roots, &arguments),
        Command::PortForward(arguments) => forward::forward(&roots, &arguments),
        Command::Stats(arguments) => stats::stats(&roots, &arguments),
        Command::Images(arguments) => images::list(&roots, &arguments),
        Command::Pull(arguments) => images::pull(&roots, &arguments),
        Command::Image(arguments) => images::image(&roots, &arguments),
        Command::Gc(arguments) => lifecycle::gc(&roots, &arguments),
        Command::Check(_) | Command::Completions(_) | Command::Install(_) | Command::Version(_) => {
            Ok(0)
        }
    }
}
