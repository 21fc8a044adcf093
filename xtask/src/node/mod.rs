//! `cargo xtask node`: a virtual machine under QEMU's software emulation that has an AMD CPU with
//! real KVM in it, for hosts that have none. This file owns the subcommands and the order of a
//! start; kernel, initramfs, QEMU and the command channel are in files of their own. The node sees
//! the machine's files read-only and keeps what it writes in memory and on a scratch disk.

mod cpio;
mod initramfs;
mod kernel;
mod probe;
mod qemu;
mod signals;
mod ssh;
mod state;

use std::env;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use self::ssh::{Keys, Remote};
use self::state::{Facts, Place};
use crate::packages;
use crate::process;
use crate::progress::{Step, seconds};
use crate::workspace;

/// QEMU, from backports where the release's own is too old to keep a node alive.
const EMULATOR: &[&str] = &["qemu-system-x86"];

/// What starting a node and working in it takes.
const PACKAGES: &[&str] = &[
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "openssh-client",
];

/// The scratch disk; sparse, so that it takes what is written to it.
const SCRATCH_BYTES: u64 = 20 << 30;

const LAST_CONSOLE_LINES: usize = 30;

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

/// What a start is given.
#[derive(Debug)]
pub struct Start {
    pub count: bool,
    pub memory: u64,
    pub timeout: Duration,
    pub fresh: bool,
    pub live: Vec<PathBuf>,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            count: false,
            memory: 6144,
            timeout: Duration::from_secs(240),
            fresh: false,
            live: Vec::new(),
        }
    }
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

/// Starts the node at `place` and waits until commands can run in it. One that is up stays.
///
/// # Errors
/// When it runs in the other mode, or does not come up in time: the error then has the last lines
/// of its console.
pub fn up(place: &Place, start: &Start) -> Result<()> {
    let _lock = place.lock()?;
    if place.pid().is_some() {
        let facts = place
            .facts()
            .context("the node runs but its node.json is not readable")?;
        if facts.count != start.count {
            let mode = if facts.count {
                "counting instructions"
            } else {
                "in real time"
            };
            bail!(
                "node {name} is up, {mode}; stop it first (cargo xtask node down --name {name}) or \
                 give another --name",
                name = place.name
            );
        }
        ssh::connect(place)?;
        eprintln!("node {} is up", place.name);
        return Ok(());
    }
    place.forget();
    packages::ensure(PACKAGES)?;
    packages::ensure_from_backports(EMULATOR)?;

    let cache = workspace::cache_dir()?.join("node");
    let shared_lock = lock(&cache)?;
    let kernel = kernel::ensure(&cache)?;
    let tools = kernel::ensure_tools(&cache)?;
    let keys = Keys::ensure(&cache)?;
    let initramfs = initramfs::ensure(&cache, &kernel, &tools, &keys)?;
    drop(shared_lock);

    scratch(place, start.fresh)?;
    let port = free_port()?;
    write_boot_parameters(place, &kernel, start)?;
    ssh::configure(place, &keys, port)?;
    let facts = Facts {
        port,
        count: start.count,
        memory: start.memory,
        started: now(),
        kernel: kernel.release.clone(),
        checkout: workspace::root(),
    };
    place.write_facts(&facts)?;
    let _ = fs::remove_file(place.console());

    let mut step = Step::begin(format!("starting node {}", place.name));
    let machine = qemu::Machine {
        place,
        kernel: &kernel.image,
        initramfs: &initramfs,
        memory: start.memory,
        port,
        count: start.count,
    };
    machine.start()?;
    if let Err(error) = wait_until_ready(place, start.timeout, &mut step) {
        let lines = last_console_lines(place);
        stop(place);
        return Err(error.context(format!(
            "node {} did not come up; the end of its console ({}):\n{lines}",
            place.name,
            place.console().display()
        )));
    }
    step.done();
    Ok(())
}

/// Waits for the script's own word on the console, then for ssh.
fn wait_until_ready(place: &Place, timeout: Duration, step: &mut Step) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        if place.pid().is_none() {
            bail!("its QEMU process ended");
        }
        let console = fs::read(place.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        if console.contains("vmpod-node: READY") {
            break;
        }
        if let Some(line) = console.lines().rev().find(|line| !line.trim().is_empty()) {
            step.note(line);
        }
        if Instant::now() > deadline {
            bail!("it did not boot within {}", seconds(timeout));
        }
        thread::sleep(Duration::from_millis(100));
    }
    step.note("waiting for its command channel");
    loop {
        match ssh::connect(place) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) if place.pid().is_none() => bail!("its QEMU process ended"),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn last_console_lines(place: &Place) -> String {
    let console = fs::read(place.console()).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(LAST_CONSOLE_LINES)..].join("\n")
}

/// Writes what init.sh reads: shell assignments, and the live paths, one a line.
fn write_boot_parameters(place: &Place, kernel: &kernel::Kernel, start: &Start) -> Result<()> {
    let parameters = format!(
        "hostname=node-{}\nmodules='{}'\nepoch={}\n",
        place.name,
        kernel.modules.display(),
        now()
    );
    write_atomically(&place.dir.join("params"), parameters.as_bytes())?;
    let mut live = vec![
        workspace::root(),
        workspace::target_dir(),
        workspace::cache_dir()?,
    ];
    if let Some(home) = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
    {
        live.push(home);
    }
    live.extend(start.live.iter().cloned());
    let text = live_paths(&live)?;
    write_atomically(&place.dir.join("live"), text.as_bytes())
}

/// Absolute paths, one a line, without those that lie in another.
fn live_paths(paths: &[PathBuf]) -> Result<String> {
    let mut sorted = paths.to_vec();
    sorted.sort();
    sorted.dedup();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in sorted {
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&b'\n') {
            bail!(
                "{}: a live path must be absolute and on one line",
                path.display()
            );
        }
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    Ok(kept
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect())
}

fn scratch(place: &Place, fresh: bool) -> Result<()> {
    let path = place.scratch();
    if fresh {
        let _ = fs::remove_file(&path);
    }
    if path.is_file() {
        return Ok(());
    }
    let partial = place.dir.join("scratch.partial");
    let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    file.set_len(SCRATCH_BYTES)
        .with_context(|| format!("sizing {}", partial.display()))?;
    process::output(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1",
            ])
            .arg(&partial)
            .env("PATH", path_with_sbin()),
    )?;
    fs::rename(&partial, &path).with_context(|| format!("renaming to {}", path.display()))
}

/// Root's programs are not on everybody's path.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default())
}

/// Runs `command` in the node at `place`.
///
/// # Errors
/// When the node is not up or does not answer.
pub fn exec(
    place: &Place,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    terminal: bool,
) -> Result<u8> {
    if place.pid().is_none() {
        bail!(
            "node {name} is down; start it: cargo xtask node up --name {name}",
            name = place.name
        );
    }
    let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    ssh::run(
        place,
        &Remote {
            arguments: command,
            directory,
            environment,
            terminal,
        },
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
        .and_then(|exe| ssh::capture(place, &format!("'{}' node probe", exe.display())));
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
        let _ = ssh::capture(place, "timeout 20 sync /scratch");
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
    place.forget();
}

fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.lock()
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener
        .local_addr()
        .context("looking for a free port")?
        .port())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Writes beside `path` and renames, so that a reader sees the old content or the new.
fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, content).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_paths_with_nested_paths_keeps_the_outer() {
        let paths: Vec<PathBuf> = ["/w/target/x", "/w", "/w2", "/w"]
            .into_iter()
            .map(PathBuf::from)
            .collect();
        assert_eq!(live_paths(&paths).unwrap(), "/w\n/w2\n");
    }

    #[test]
    fn live_paths_with_relative_path_is_refused() {
        assert!(live_paths(&[PathBuf::from("x")]).is_err());
    }
}
