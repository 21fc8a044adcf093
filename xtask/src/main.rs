//! `cargo xtask`: everything a person or CI runs in this repository. This file owns the command
//! line only; each subcommand lives in a module of its own name and none of them knows another's
//! flags. Nothing here is needed at run time by an installed vmpod.

mod bench;
mod bundle;
mod fuzz;
mod host;
mod images;
mod install;
mod node;
mod packages;
mod process;
mod progress;
mod run;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures vmpod.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build kernel, agent, VMM and command line tool into TARGET/bundle
    Bundle(bundle::BundleArgs),
    /// Run a Pod manifest, installing, building and starting what is missing
    Run(run::RunArgs),
    /// Make the images that the examples name from Debian packages, and import them
    Images(images::ImagesArgs),
    /// Format, lints, rules, unit tests, then the end-to-end tests
    Test(test::TestArgs),
    /// Count the instructions of starts, files and network, and measure memory
    Bench(bench::BenchArgs),
    /// Feed hostile bytes to what reads them, for a while
    Fuzz(fuzz::FuzzArgs),
    /// Build, and put vmpod where this host's containerd finds it
    Install(install::InstallArgs),
    /// Check the rules that this repository has set itself
    Tidy,
    /// An emulated AMD machine with real KVM, for hosts that have none
    Node(node::NodeArgs),
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::compile_instead() {
        return code;
    }
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Bundle(args) => bundle::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Images(args) => images::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Tidy => tidy::run(),
        Command::Node(args) => node::run(args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
