//! From the start of the VMM's process to an agent that says that it is ready, without a pod around it: one vCPU, 256 MiB,
//! an empty share, vsock and balloon, confined as in a pod. What a pod adds to that is `starts`' business.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::ground::{Ground, exits};
use crate::bench::result::{MEGA_INSTRUCTIONS, Row};
use crate::bench::rows;

/// The vsock port on which the host hears that the agent is ready (`vmpod-agent-protocol`).
const READY_PORT: u32 = 1026;

/// How long a machine may take.
const LIMIT: Duration = Duration::from_secs(60);

pub fn measure(ground: &Ground) -> Result<Vec<Row>> {
    // The first boot fills the page cache with the program, the kernel and the initramfs.
    once(ground)?;
    let mut row = Row::new(rows::BOOT, MEGA_INSTRUCTIONS, Vec::new());
    for _ in 0..ground.plan.runs {
        let (took, exits) = once(ground)?;
        row.samples.push(took.as_secs_f64() * 1e3);
        row.exits.push(exits);
    }
    Ok(vec![row])
}

fn once(ground: &Ground) -> Result<(Duration, u64)> {
    let dir = ground.dir.join("boot");
    for part in ["machine", "jail", "share"] {
        let path = dir.join(part);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    let vsock = dir.join("machine/vsock.sock");
    let ready = dir.join(format!("machine/vsock.sock_{READY_PORT}"));
    let ready =
        UnixListener::bind(&ready).with_context(|| format!("listening on {}", ready.display()))?;
    let mut request = serde_json::to_vec(&json!({
        "request": "create",
        "id": "bench",
        "vcpus": 1,
        "memory_mib": 256,
        "kernel": {
            "vmlinux": ground.plan.bundle.join("lib/vmpod/vmlinux"),
            "initramfs": ground.plan.bundle.join("lib/vmpod/initramfs.cpio"),
        },
        "console_log": dir.join("machine/console.log"),
        "console_log_bytes": 65536,
        "shares": [{"tag": "vmpod", "path": dir.join("share")}],
        "vsock": {"guest_cid": 3, "uds_path": vsock},
        "balloon": true,
        "jail": {"root": dir.join("jail"), "open_files": 65536},
    }))
    .context("writing the machine's configuration")?;
    request.push(b'\n');
    let (mut ours, theirs) = UnixStream::pair().context("creating the control socket")?;
    ours.set_read_timeout(Some(LIMIT))
        .context("bounding the control socket")?;
    inherit(&theirs)?;
    let mut command = Command::new(ground.plan.bundle.join("bin/vmpod-vmm"));
    command
        .arg("--control-fd")
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::null());

    let begun = Instant::now();
    let mut vmm = Vmm(command.spawn().context("starting the VMM")?);
    ours.write_all(&request).context("writing to the VMM")?;
    drop(theirs);
    let accepted = accept(&ready, &mut vmm.0, &dir.join("machine/console.log"))?;
    let took = begun.elapsed();
    let exits = exits()?;
    drop(accepted);

    let mut replies = BufReader::new(ours.try_clone().context("reading from the VMM")?);
    expect_done(&mut replies)?;
    ours.write_all(b"{\"request\":\"stop\"}\n")
        .context("stopping the VMM")?;
    expect_done(&mut replies)?;
    let status = vmm.0.wait().context("waiting for the VMM")?;
    if !status.success() {
        bail!("the VMM ended with {status} when it was stopped");
    }
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    Ok((took, exits))
}

/// Kills the VMM, should a measurement end early.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inherit(socket: &UnixStream) -> Result<()> {
    // SAFETY: the call takes numbers alone, and the descriptor is open.
    if unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
        return Err(std::io::Error::last_os_error()).context("handing the control socket on");
    }
    Ok(())
}

/// Waits in the kernel for the agent's connection, so that waiting costs no instructions.
fn accept(ready: &UnixListener, vmm: &mut Child, console: &Path) -> Result<UnixStream> {
    let mut polled = libc::pollfd {
        fd: ready.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = i32::try_from(LIMIT.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer leads to one pollfd, which outlives the call.
    let found = unsafe { libc::poll(&raw mut polled, 1, limit) };
    if found == 1 {
        return Ok(ready.accept().context("taking the agent's connection")?.0);
    }
    let state = vmm.try_wait().ok().flatten();
    bail!(
        "the agent was not ready in {} s; the VMM {}; its console: {:?}",
        LIMIT.as_secs(),
        state.map_or_else(|| "still runs".to_owned(), |s| format!("ended with {s}")),
        fs::read_to_string(console).unwrap_or_default()
    )
}

fn expect_done(replies: &mut impl BufRead) -> Result<()> {
    loop {
        let mut line = String::new();
        let read = replies
            .read_line(&mut line)
            .context("reading the VMM's answer")?;
        if read == 0 {
            bail!("the VMM closed its control socket");
        }
        let message: Value = serde_json::from_str(&line).context("reading the VMM's answer")?;
        if message.get("event").is_some() {
            continue;
        }
        if message.get("reply").and_then(Value::as_str) == Some("done") {
            return Ok(());
        }
        bail!("the VMM refused: {}", line.trim());
    }
}
