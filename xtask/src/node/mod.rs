//! `cargo xtask node`: a virtual machine under QEMU's software emulation that has an AMD CPU with
//! real KVM in it, for hosts that have none. This file owns the subcommands; `boot` is the
//! order of a start, and kernel, initramfs, QEMU and the command channel have files of their own. The node sees
//! the machine's files read-only and keeps what it writes in memory and on a scratch disk.

mod boot;
mod cpio;
mod initramfs;
mod kernel;
mod probe;
mod qemu;
mod signals;
mod ssh;
mod state;

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

pub use self::boot::{Start, up};
pub use self::ssh::capture;
pub use self::state::Place;
use crate::process::Invocation;
use crate::progress::seconds;
use crate::workspace;

#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Args)]
struct Named {
    /// Which node; each checkout has one of its own unless named
    #[arg(long, env = "VMPOD_NODE")]
    name: Option<String>,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Start the node unless it is up
    Up {
        #[command(flatten)]
        named: Named,
        /// Count instructions instead of time: one instruction is one nanosecond
        #[arg(long, visible_alias = "icount")]
        count: bool,
        /// Memory in MiB, taken from the machine only as it is used
        #[arg(long, default_value_t = 6144)]
        memory: u64,
        /// Seconds to wait for the node
        #[arg(long, default_value_t = 240)]
        timeout: u64,
        /// Begin with an empty scratch disk
        #[arg(long)]
        fresh: bool,
        /// Further paths whose changes on the machine the node sees at once
        #[arg(long)]
        live: Vec<PathBuf>,
    },
    /// Run a command in the node: same streams, same exit status
    Exec {
        #[command(flatten)]
        named: Named,
        /// Give the command a terminal
        #[arg(short = 't', long)]
        tty: bool,
        /// Set a variable for the command
        #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
        environment: Vec<String>,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// A login shell in the node
    Shell {
        #[command(flatten)]
        named: Named,
    },
    /// Whether the node is up, and whether KVM works in it
    Status {
        #[command(flatten)]
        named: Named,
        /// Every node of this machine
        #[arg(long)]
        all: bool,
    },
    /// Stop the node; its scratch disk stays
    Down {
        #[command(flatten)]
        named: Named,
        /// Remove the scratch disk as well
        #[arg(long)]
        wipe: bool,
    },
    /// Check KVM from inside the node
    #[command(hide = true)]
    Probe,
}

/// Runs one subcommand and returns the exit status.
///
/// # Errors
/// Whatever kept the subcommand from its work.
pub fn run(args: NodeArgs) -> Result<u8> {
    match args.command {
        NodeCommand::Up {
            named,
            count,
            memory,
            timeout,
            fresh,
            live,
        } => {
            let timeout = Duration::from_secs(timeout);
            up(
                &named.place()?,
                &Start {
                    count,
                    memory,
                    timeout,
                    fresh,
                    live,
                },
            )?;
            Ok(0)
        }
        NodeCommand::Exec {
            named,
            tty,
            environment,
            command,
        } => {
            let environment = environment
                .iter()
                .map(|pair| {
                    let (name, value) = pair
                        .split_once('=')
                        .with_context(|| format!("--env {pair}: NAME=VALUE is wanted"))?;
                    Ok((name.to_owned(), value.to_owned()))
                })
                .collect::<Result<_>>()?;
            exec(&named.place()?, command, environment, tty)
        }
        NodeCommand::Shell { named } => {
            let shell = vec!["bash".to_owned(), "-l".to_owned()];
            exec(
                &named.place()?,
                shell,
                Vec::new(),
                std::io::stdin().is_terminal(),
            )
        }
        NodeCommand::Status { named, all } => {
            let places = if all {
                Place::all()?
            } else {
                vec![named.place()?]
            };
            let mut every_one_up = true;
            for place in places {
                every_one_up &= status(&place);
            }
            Ok(u8::from(!every_one_up && !all))
        }
        NodeCommand::Down { named, wipe } => {
            down(&named.place()?, wipe)?;
            Ok(0)
        }
        NodeCommand::Probe => probe::run().map(|()| 0),
    }
}

impl Named {
    fn place(&self) -> Result<Place> {
        match &self.name {
            Some(name) => Place::open(name),
            None => own_place(),
        }
    }
}

/// The node of this checkout.
///
/// # Errors
/// When its directory cannot be made.
pub fn own_place() -> Result<Place> {
    match env::var("VMPOD_NODE") {
        Ok(name) => Place::open(&name),
        Err(_) => Place::open(&state::default_name(&workspace::root())),
    }
}

/// Runs `invocation` in the node at `place`; see [`ssh::run`].
///
/// # Errors
/// When the node is not up or does not answer.
pub fn invoke(
    place: &Place,
    invocation: &Invocation,
    lines: Option<&mut dyn FnMut(&str)>,
) -> Result<u8> {
    if place.pid().is_none() {
        bail!(
            "node {name} is down; start it: cargo xtask node up --name {name}",
            name = place.name
        );
    }
    ssh::run(place, invocation, lines)
}

fn exec(
    place: &Place,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    terminal: bool,
) -> Result<u8> {
    let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    invoke(
        place,
        &Invocation {
            arguments,
            directory,
            environment,
            terminal,
        },
        None,
    )
}

/// Prints what is known of one node; true when it is up.
fn status(place: &Place) -> bool {
    let (Some(pid), Some(facts)) = (place.pid(), place.facts()) else {
        println!("{}: down", place.name);
        return false;
    };
    let uptime = Duration::from_secs(now().saturating_sub(facts.started));
    let mode = if facts.count {
        "counting instructions"
    } else {
        "real time"
    };
    let probe = env::current_exe()
        .context("finding this program")
        .and_then(|exe| ssh::capture(place, &format!("'{}' node probe", exe.display()), 30));
    let kvm = match probe {
        Ok(text) => text.trim().to_owned(),
        Err(error) => format!("not usable: {error:#}"),
    };
    println!(
        "{}: up, pid {pid}, {mode}, since {}, {} MiB, ssh port {}\n  kernel {}\n  KVM {kvm}\n  \
         checkout {}",
        place.name,
        seconds(uptime),
        facts.memory,
        facts.port,
        facts.kernel,
        facts.checkout.display()
    );
    true
}

/// Stops the node; nothing of it stays but its scratch disk and its last console.
///
/// # Errors
/// When the lock cannot be had, or the disk not removed.
pub fn down(place: &Place, wipe: bool) -> Result<()> {
    let _lock = place.lock()?;
    if place.pid().is_some() {
        // What the node has written lies in its memory until it is told.
        ssh::sync(place);
        stop(place);
        eprintln!("node {} is down", place.name);
    } else {
        place.forget();
        eprintln!("node {} was not up", place.name);
    }
    if wipe && place.scratch().exists() {
        fs::remove_file(place.scratch())
            .with_context(|| format!("removing {}", place.scratch().display()))?;
    }
    Ok(())
}

fn stop(place: &Place) {
    stop_process(place);
    place.forget();
}

/// Ends connection and process; what `up` wrote stays for another start.
fn stop_process(place: &Place) {
    ssh::disconnect(place);
    let begun = Instant::now();
    while let Some(pid) = place.pid() {
        if begun.elapsed() < Duration::from_secs(5) {
            signals::terminate(pid);
        } else {
            signals::kill(pid);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
