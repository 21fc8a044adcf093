//! The start of a node, from packages to a command channel that answers. One caller at a time a
//! node (its lock), and one at a time for what all nodes share (the cache's lock).

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ssh::{self, Keys};
use super::state::{Facts, Place};
use super::{initramfs, kernel, now, qemu, stop_process};
use crate::packages::{self, wanted};
use crate::process;
use crate::progress::{Step, seconds};
use crate::workspace;

/// The scratch disk; sparse, so that it takes what is written to it.
const SCRATCH_BYTES: u64 = 20 << 30;

const LAST_CONSOLE_LINES: usize = 30;

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
        // One whose start was interrupted still boots.
        if ssh::connect(place).is_err() {
            let mut step = Step::begin(format!("waiting for node {}", place.name));
            wait_until_ready(place, Instant::now() + start.timeout, &mut step).map_err(|error| {
                error.context(format!(
                    "node {name} runs but does not answer; `cargo xtask node down --name {name}` ends it. The end of its \
                     console:\n{}",
                    last_console_lines(place),
                    name = place.name,
                ))
            })?;
            step.done();
        }
        eprintln!("node {} is up", place.name);
        return Ok(());
    }
    place.forget();
    packages::ensure(wanted::NODE)?;
    packages::ensure_from_backports(wanted::EMULATOR)?;

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
    ssh::configure(place, &keys, port, start.count)?;
    let facts = Facts {
        port,
        count: start.count,
        memory: start.memory,
        started: now(),
        kernel: kernel.release.clone(),
        checkout: workspace::root(),
    };
    place.write_facts(&facts)?;
    let machine = qemu::Machine {
        place,
        kernel: &kernel.image,
        initramfs: &initramfs,
        memory: start.memory,
        port,
        count: start.count,
    };
    let deadline = Instant::now() + start.timeout;
    for attempt in 1.. {
        let mut step = Step::begin(format!("starting node {}", place.name));
        let _ = fs::remove_file(place.console());
        machine.start()?;
        let error = match wait_until_ready(place, deadline, &mut step) {
            Ok(()) => {
                step.done();
                break;
            }
            Err(error) => error,
        };
        let lines = last_console_lines(place);
        let stuck = error.is::<Stuck>();
        stop_process(place);
        if stuck && attempt < ATTEMPTS && Instant::now() < deadline {
            eprintln!("  {error}; trying once more. Its last lines:\n{lines}");
            continue;
        }
        place.forget();
        return Err(error.context(format!(
            "node {} did not come up; the end of its console ({}):\n{lines}",
            place.name,
            place.console().display()
        )));
    }
    Ok(())
}

/// How often a boot that hangs is tried.
const ATTEMPTS: u32 = 3;

/// How long a kernel that boots may say nothing. Emulated machines hang now and then while they
/// boot, without a word; on a busy host the longest healthy silence seen was a tenth of this.
const SILENCE: Duration = Duration::from_secs(60);

/// The boot hangs.
#[derive(Debug)]
struct Stuck;

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its boot has been silent for {}", seconds(SILENCE))
    }
}

impl std::error::Error for Stuck {}

/// Waits for the script's own word on the console, then for ssh.
fn wait_until_ready(place: &Place, deadline: Instant, step: &mut Step) -> Result<()> {
    let mut said = 0;
    let mut said_at = Instant::now();
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
        if console.len() != said {
            said = console.len();
            said_at = Instant::now();
        }
        if Instant::now() > deadline {
            bail!("it did not boot in time (--timeout)");
        }
        if said_at.elapsed() > SILENCE {
            return Err(Stuck.into());
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
    workspace::write_atomically(&place.dir.join("params"), parameters.as_bytes())?;
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
    workspace::write_atomically(&place.dir.join("live"), text.as_bytes())
}

/// Absolute paths, one a line, without those that lie in another.
fn live_paths(paths: &[PathBuf]) -> Result<String> {
    let mut sorted = paths.to_vec();
    sorted.sort();
    sorted.dedup();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in sorted {
        if path.parent().is_none() {
            bail!(
                "{}: the whole root cannot be live, it would hide the node's own",
                path.display()
            );
        }
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
    fn live_paths_with_relative_path_or_root_is_refused() {
        assert!(live_paths(&[PathBuf::from("x")]).is_err());
        assert!(live_paths(&[PathBuf::from("/")]).is_err());
    }
}
