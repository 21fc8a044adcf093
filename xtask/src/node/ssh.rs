//! The command channel: keys and configuration of our own, one shared connection a node, and
//! running a command over it as if it ran here (streams, exit status, signals). The machine's own
//! ssh configuration, keys and agents are neither read nor written.

use std::env;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use super::signals::{self, Signal};
use super::state::Place;
use crate::process::{self, Invocation};
use crate::workspace;

/// Directory in the node where a running command leaves its process group.
const EXEC_DIR: &str = "/run/vmpod-node/exec";

/// Names of variables that a command takes along into the node; a trailing `*` stands for any
/// rest.
const CARRIED: &[&str] = &[
    "CI",
    "LANG",
    "LC_*",
    "NO_COLOR",
    "PATH",
    "PROPTEST_*",
    "RUST_*",
    "TERM",
    "VMPOD_*",
    "CARGO_*",
];

/// Key files of the command channel, made once a cache.
#[derive(Debug)]
pub struct Keys {
    /// The client's private key; the public one has `.pub` appended.
    pub identity: PathBuf,
    /// The server's private key.
    pub host: PathBuf,
}

impl Keys {
    /// # Errors
    /// When ssh-keygen fails.
    pub fn ensure(cache: &Path) -> Result<Self> {
        let dir = cache.join("ssh");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("restricting {}", dir.display()))?;
        let keys = Self {
            identity: dir.join("identity"),
            host: dir.join("host"),
        };
        for key in [&keys.identity, &keys.host] {
            if !key.with_extension("pub").is_file() {
                let _ = fs::remove_file(key);
                process::output(
                    Command::new("ssh-keygen")
                        .args(["-q", "-t", "ed25519", "-N", "", "-C", "vmpod-node", "-f"])
                        .arg(key),
                )?;
            }
        }
        Ok(keys)
    }
}

/// Writes the client's configuration for a node that listens on `port`.
///
/// A node that does not count instructions hears of the client once a second. QEMU's VMRUN changes the set of pending
/// interrupts without its lock, so that an interrupt which comes at that moment can be lost; when it was the timer of an idle
/// processor, the node stands still until another comes, which without this are the router advertisements of QEMU's network,
/// 200 to 600 s apart. In a node that counts, the packets would be in its figures.
///
/// # Errors
/// When a file cannot be read or written.
pub fn configure(place: &Place, keys: &Keys, port: u16, count: bool) -> Result<()> {
    let public = keys.host.with_extension("pub");
    let host_key =
        fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))?;
    workspace::write_atomically(
        &place.dir.join("known_hosts"),
        format!("vmpod-node {host_key}").as_bytes(),
    )?;
    let text = format!(
        "Host node\n\
         HostName 127.0.0.1\n\
         Port {port}\n\
         User root\n\
         HostKeyAlias vmpod-node\n\
         IdentityFile \"{identity}\"\n\
         IdentitiesOnly yes\n\
         IdentityAgent none\n\
         UserKnownHostsFile \"{dir}/known_hosts\"\n\
         GlobalKnownHostsFile none\n\
         StrictHostKeyChecking yes\n\
         UpdateHostKeys no\n\
         ControlPath \"{control}\"\n\
         BatchMode yes\n\
         ConnectTimeout 30\n\
         ServerAliveInterval {alive}\n\
         ServerAliveCountMax 1000000\n\
         TCPKeepAlive no\n\
         Compression no\n\
         KexAlgorithms curve25519-sha256\n\
         Ciphers aes128-gcm@openssh.com,chacha20-poly1305@openssh.com\n\
         LogLevel ERROR\n",
        alive = u8::from(!count),
        identity = keys.identity.display(),
        dir = place.dir.display(),
        control = place.control().display(),
    );
    workspace::write_atomically(&place.dir.join("ssh_config"), text.as_bytes())
}

fn ssh(place: &Place) -> Command {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(place.dir.join("ssh_config"));
    command
}

/// Opens the shared connection unless it is open. Its streams lead nowhere: a master that kept the
/// caller's standard error would hold a pipe open for as long as the node lives.
///
/// # Errors
/// When the node does not answer, with ssh's own words.
pub fn connect(place: &Place) -> Result<()> {
    if place.control().exists() {
        let alive = bounded(place, 10)
            .args(["-O", "check", "node"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("starting ssh")?;
        if alive.success() {
            return Ok(());
        }
        let _ = fs::remove_file(place.control());
    }
    let log = place.dir.join("ssh.log");
    let errors = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let status = bounded(place, 60)
        .args(["-M", "-N", "-f", "node"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .status()
        .context("starting ssh")?;
    // Another command may have been first; its connection serves as well.
    if status.success() || place.control().exists() {
        return Ok(());
    }
    let words = fs::read_to_string(&log).unwrap_or_default();
    bail!("connecting to node {}: {}", place.name, words.trim())
}

/// Ends the shared connection, if there is one.
pub fn disconnect(place: &Place) {
    if place.control().exists() {
        let _ = bounded(place, 10)
            .args(["-O", "exit", "node"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Runs a short script in the node and returns what it printed. A node that does not answer within
/// `seconds` is an error: it may be frozen, and nothing here waits for ever.
///
/// # Errors
/// When the node does not answer or the script fails.
pub fn capture(place: &Place, script: &str, seconds: u32) -> Result<String> {
    connect(place)?;
    process::output(
        bounded(place, seconds)
            .arg("-S")
            .arg(place.control())
            .args(["-T", "node", script]),
    )
}

/// Has the node write out what its scratch disk is to keep, unless it does not answer. No pipe is
/// opened: the shared connection would hold it open for a node that is frozen.
pub fn sync(place: &Place) {
    if connect(place).is_ok() {
        let _ = bounded(place, 25)
            .arg("-S")
            .arg(place.control())
            .args(["-T", "node", "sync /scratch"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// ssh that is ended after `seconds`.
fn bounded(place: &Place, seconds: u32) -> Command {
    let mut command = Command::new("timeout");
    command.arg(seconds.to_string()).arg("ssh");
    command.arg("-F").arg(place.dir.join("ssh_config"));
    command
}

/// The script for the node's shell. The group's number is left in a file, so that a signal can be
/// sent after it: ssh itself forwards none.
fn script(invocation: &Invocation, id: &str) -> String {
    let mut script = format!(
        "cd {} 2>/dev/null || cd /\n",
        quote(&invocation.directory.to_string_lossy())
    );
    let carried = env::vars().filter(|(name, _)| is_carried(name));
    for (name, value) in carried.chain(invocation.environment.iter().cloned()) {
        script.push_str(&format!("export {name}={}\n", quote(&value)));
    }
    let words: Vec<String> = invocation
        .arguments
        .iter()
        .map(|word| quote(word))
        .collect();
    let command = words.join(" ");
    if invocation.terminal {
        script.push_str(&format!("exec {command}\n"));
    } else {
        // A handler that does nothing lets this shell outlive the signal and report the status of
        // the command, which gets the signal itself.
        script.push_str(&format!(
            "echo $$ > {EXEC_DIR}/{id}\ntrap : HUP INT QUIT TERM\n{command}\nstatus=$?\n\
             rm -f {EXEC_DIR}/{id}\nexit $status\n"
        ));
    }
    script
}

fn is_carried(name: &str) -> bool {
    CARRIED
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *pattern,
        })
}

/// A word as the shell reads it back unchanged.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Runs `invocation` in the node with this process's streams and returns its exit status as a
/// shell counts it: a command that a signal ended gives 128 plus the signal's number. With `lines`
/// its standard output goes there.
///
/// # Errors
/// When the node cannot be reached.
pub fn run(
    place: &Place,
    invocation: &Invocation,
    lines: Option<&mut dyn FnMut(&str)>,
) -> Result<u8> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    connect(place)?;
    let id = format!(
        "{}-{}",
        std::process::id(),
        RUNS.fetch_add(1, Ordering::Relaxed)
    );
    let mut command = ssh(place);
    command.arg("-S").arg(place.control());
    command.arg(if invocation.terminal { "-tt" } else { "-T" });
    command.arg("node").arg(script(invocation, &id));
    if invocation.terminal {
        // With a terminal ssh needs to be in front, and control characters travel by themselves.
        let status = command.status().context("starting ssh")?;
        return Ok(process::code(status));
    }
    // ssh stands apart from this process's group: Ctrl-C is ours to forward, and would otherwise
    // end ssh before the command could say its last words. A terminal must not be read by a
    // process that stands apart, so its lines are passed on by a thread.
    command.process_group(0);
    let pump = std::io::stdin().is_terminal();
    command.stdin(if pump {
        Stdio::piped()
    } else {
        Stdio::inherit()
    });
    if lines.is_some() {
        command.stdout(Stdio::piped());
    }
    let signals = signals::block()?;
    let mut child = command.spawn().context("starting ssh")?;
    if pump {
        pump_standard_input(&mut child);
    }
    let forward = Forward {
        place,
        id: &id,
        ssh: child.id(),
    };
    let ended = AtomicBool::new(false);
    let status = thread::scope(|scope| {
        scope.spawn(|| forward.run(&signals, &ended));
        if let Some(lines) = lines {
            process::each_line(&mut child, lines);
        }
        let status = child.wait();
        ended.store(true, Ordering::Relaxed);
        status
    });
    Ok(process::code(status.context("waiting for ssh")?))
}

fn pump_standard_input(child: &mut Child) {
    let Some(mut sink) = child.stdin.take() else {
        return;
    };
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut sink);
        let _ = sink.flush();
    });
}

/// Sends what this process is told to the command in the node.
struct Forward<'a> {
    place: &'a Place,
    id: &'a str,
    ssh: u32,
}

impl Forward<'_> {
    /// How many requests to end are passed on as they are before one is meant.
    const POLITE: u32 = 2;

    fn run(&self, signals: &signals::Blocked, ended: &AtomicBool) {
        let mut seen = 0;
        while !ended.load(Ordering::Relaxed) {
            let Some(signal) = signals.wait_shortly() else {
                continue;
            };
            seen += 1;
            let name = if seen > Self::POLITE {
                Signal::KILL
            } else {
                signal.name()
            };
            let sent = ssh(self.place)
                .arg("-S")
                .arg(self.place.control())
                .args(["-T", "node"])
                .arg(format!("kill -s {name} -- -$(cat {EXEC_DIR}/{})", self.id))
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if name == Signal::KILL || !sent.is_ok_and(|status| status.success()) {
                signals::terminate(self.ssh);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quote_with_quotes_and_newline_survives_a_shell() {
        let word = "a'b \"$HOME\" \\ `x`\n*";
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("printf %s {}", quote(word)))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }

    #[test]
    fn is_carried_with_home_is_false() {
        assert!(is_carried("VMPOD_BIN") && is_carried("CI") && is_carried("LC_ALL"));
        assert!(!is_carried("HOME") && !is_carried("CIRCLE") && !is_carried("SSH_AUTH_SOCK"));
    }
}
