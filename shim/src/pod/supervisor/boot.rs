//! From nothing to an agent that has the pod: VMM, readiness, handshake, sandbox; by booting, or from a template.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{Instant, sleep_until};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::{AGENT_PORT, READY_PORT, SHARE_TAG};
use vmpod_vmm_api::{
    JailConfig, KernelConfig, MachineConfig, NetConfig, SenderConfig, ShareConfig, VsockConfig,
};

use super::setup::Prepared;
use super::{Pod, StartError, requests};
use crate::pod::agent::{Agent, AgentError};
use crate::pod::clock;
use crate::pod::hybrid_vsock;
use crate::pod::journal::{Entry, chain};
use crate::pod::status::bounded;
use crate::pod::template::{Shape, Templates};
use crate::pod::vmm::{Vmm, VmmStart};

/// How long a machine may take from its start to a ready agent. Hardware takes well under a second; an emulated host that
/// is loaded takes many.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the handshake may take once the agent has said that it is ready.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// How long the agent may take to close an empty connection before a template is made.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// How long a VMM may take to go after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Bytes after which the guest's console log starts anew.
const CONSOLE_BYTES: u64 = 256 * 1024;

/// Lines and bytes of the console that go into a message.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 8192;

/// MAC address of the card of every machine: machines that go on from one template have the same. The agent gives it the
/// pod's own before it is used.
pub(super) const CARD_MAC: &str = "02:00:00:00:00:01";

/// Context id of every guest: each VMM has a vsock of its own, so that ids never meet.
const GUEST_CID: u32 = 3;

/// A machine whose agent has answered.
type Up = (Vmm, Agent, m::HandshakeResponse);

/// Starts the machine and hands the pod to its agent.
pub(super) async fn boot(
    pod: &mut Pod,
    prepared: &mut Prepared,
) -> Result<(Vmm, Agent), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    for (directory, mode) in [(pod.paths.machine(), 0o700), (pod.paths.jail(), 0o755)] {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(directory)
            .map_err(system("make the VMM's directories"))?;
    }
    give_to_vmm(pod, &pod.paths.machine()).map_err(system("give the VMM its directory"))?;
    let tap = prepared.network.as_mut().and_then(|n| n.tap.take());
    let config = machine(pod, prepared, tap.as_ref());
    config.validate()?;
    let sandbox = requests::sandbox(pod, prepared).map_err(system(
        "draw random bytes for the guest, which must not share them with another",
    ))?;
    let started = Instant::now();
    let shape = shape(pod, &config);
    let restored = match &shape {
        Some(shape) => restore(pod, prepared, tap.as_ref(), &config, shape, &sandbox).await?,
        None => None,
    };
    let (mut vmm, agent, answer) = match restored {
        Some(up) => up,
        None => cold_boot(pod, prepared, tap.as_ref(), config, shape, &sandbox).await?,
    };
    // The VMM has descriptors of its own.
    drop(tap);
    drop(prepared.cgroup.take());
    pod.status.boot_ns = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
    let begun = while_alive(pod, &mut vmm, async {
        agent
            .start_pod(&requests::start_request(pod))
            .await
            .map_err(|e| (e, "start the pod in the guest"))
    })
    .await;
    begun?;
    pod.status
        .guest
        .insert("agent".into(), bounded(&answer.agent_version));
    pod.status
        .guest
        .insert("kernel".into(), bounded(&answer.kernel_release));
    Ok((vmm, agent))
}

/// The name of the machine's template; `None` when the pod wants none.
fn shape(pod: &mut Pod, config: &MachineConfig) -> Option<Shape> {
    if !pod.record.machine.template {
        return None;
    }
    match Shape::of(config, &pod.record.machine.vmm) {
        Ok(shape) => Some(shape),
        Err(error) => {
            pod.event("TemplateFailed", "", &chain(&error));
            None
        }
    }
}

/// Has the machine go on from the template of its shape. `None` when there is none, or none that works: it is taken away
/// then, and the pod's events say why. What the agent refuses it would refuse after a boot as well, so that it is an error.
async fn restore(
    pod: &mut Pod,
    prepared: &mut Prepared,
    tap: Option<&OwnedFd>,
    config: &MachineConfig,
    shape: &Shape,
    sandbox: &m::ConfigureSandboxRequest,
) -> Result<Option<Up>, StartError> {
    let templates = Templates::of(&pod.roots);
    let Some(directory) = templates.find(shape) else {
        return Ok(None);
    };
    let config = MachineConfig {
        restore: Some(directory),
        ..config.clone()
    };
    let mut vmm = start_vmm(pod, prepared, tap)?;
    let up = async {
        vmm.create(config).await?;
        greet(pod, &mut vmm, sandbox).await
    };
    match up.await {
        Ok((agent, answer)) => {
            let how = format!("restored from template {shape}");
            pod.event("MachineRestored", "", &how);
            pod.status.guest.insert("start".into(), how);
            Ok(Some((vmm, agent, answer)))
        }
        Err(error) if is_refusal(&error) => Err(error),
        Err(error) => {
            // Gone before another takes its sockets and its place.
            let _ = vmm.kill(KILL_LIMIT).await;
            templates.discard(shape);
            let message = format!(
                "template {shape} is of no use and was removed; the machine boots: {}",
                bounded(&chain(&error))
            );
            tracing::warn!(message);
            pod.event("TemplateFailed", "", &message);
            Ok(None)
        }
    }
}

fn is_refusal(error: &StartError) -> bool {
    matches!(error, StartError::Agent { source, .. } if source.is_refusal())
}

/// Boots the machine; when it has a `shape` it is saved as the template of that as soon as its agent is ready.
async fn cold_boot(
    pod: &mut Pod,
    prepared: &mut Prepared,
    tap: Option<&OwnedFd>,
    mut config: MachineConfig,
    shape: Option<Shape>,
    sandbox: &m::ConfigureSandboxRequest,
) -> Result<Up, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    // The listener is there before the guest can connect.
    let ready = UnixListener::bind(pod.paths.vsock_listener(READY_PORT))
        .map_err(system("listen for the agent"))?;
    give_to_vmm(pod, &pod.paths.vsock_listener(READY_PORT)).map_err(system(
        "let the VMM connect to the socket that waits for the agent",
    ))?;
    let templates = Templates::of(&pod.roots);
    let mut saving = None;
    if let Some(shape) = shape {
        match templates.begin(&pod.paths, &config) {
            Ok(scratch) => {
                config.snapshot_to = Some(scratch.clone());
                saving = Some((shape, scratch));
            }
            Err(error) => pod.event("TemplateFailed", "", &chain(&error)),
        }
    }
    let started = Instant::now();
    let mut vmm = start_vmm(pod, prepared, tap)?;
    vmm.create(config).await?;
    tokio::select! {
        accepted = ready.accept() => {
            accepted.map_err(system("take the agent's connection"))?;
        }
        end = vmm.ended() => {
            return Err(StartError::Died { end, console: pod.console_tail() });
        }
        () = sleep_until(started + READY_LIMIT) => {
            return Err(StartError::NotReady {
                limit: READY_LIMIT,
                console: pod.console_tail(),
            });
        }
    }
    drop(ready);
    let _ = fs::remove_file(pod.paths.vsock_listener(READY_PORT));
    if let Some((shape, scratch)) = saving {
        match save(pod, &mut vmm, &templates, &shape, &scratch).await {
            Ok(()) => pod.event("TemplateSaved", "", &shape.to_string()),
            Err(message) => pod.event(
                "TemplateFailed",
                "",
                &format!("template {shape} could not be saved: {message}"),
            ),
        }
    }
    let (agent, answer) = greet(pod, &mut vmm, sandbox).await?;
    pod.status.guest.insert("start".into(), "booted".into());
    Ok((vmm, agent, answer))
}

/// Saves the machine as a template, before the agent knows anything of the pod. A pod that leaves none runs all the same.
async fn save(
    pod: &Pod,
    vmm: &mut Vmm,
    templates: &Templates,
    shape: &Shape,
    scratch: &Path,
) -> Result<(), String> {
    // The agent said that it listens; this waits until it works, and leaves no connection in the template.
    hybrid_vsock::touch(&pod.paths.vsock(), AGENT_PORT, SETTLE_LIMIT)
        .await
        .map_err(|error| chain(&error))?;
    vmm.snapshot().await.map_err(|error| chain(&error))?;
    templates
        .publish(scratch, shape)
        .map_err(|error| chain(&error))
}

fn start_vmm(
    pod: &mut Pod,
    prepared: &mut Prepared,
    tap: Option<&OwnedFd>,
) -> Result<Vmm, StartError> {
    let vmm = Vmm::start(VmmStart {
        program: &pod.record.machine.vmm,
        log: &pod.paths.vmm_log(),
        cgroup: prepared.cgroup.as_ref(),
        alone: pod.record.machine.jail,
        inherited: tap.map(AsFd::as_fd).into_iter().collect(),
    })?;
    pod.status.vmm = vmm.identity();
    if let Some(identity) = vmm.identity() {
        prepared.journal.record(&Entry::Process {
            role: "VMM".into(),
            identity,
        })?;
    }
    pod.save();
    Ok(vmm)
}

/// Shakes hands with the agent and gives it the pod's surroundings. Its clock and random pool come first of them, so that
/// nothing happens in a restored machine with those of its template.
async fn greet(
    pod: &Pod,
    vmm: &mut Vmm,
    sandbox: &m::ConfigureSandboxRequest,
) -> Result<(Agent, m::HandshakeResponse), StartError> {
    while_alive(pod, vmm, async {
        let (agent, answer) = Agent::connect(&pod.paths.vsock(), HANDSHAKE_LIMIT)
            .await
            .map_err(|e| (e, "shake hands with the agent"))?;
        let mut sandbox = sandbox.clone();
        sandbox.clock_realtime_ns = clock::now_ns();
        agent
            .configure_sandbox(&sandbox)
            .await
            .map_err(|e| (e, "set up the pod's sandbox in the guest"))?;
        Ok((agent, answer))
    })
    .await
}

/// Waits for something of the agent as long as its machine lives.
async fn while_alive<T>(
    pod: &Pod,
    vmm: &mut Vmm,
    calls: impl Future<Output = Result<T, (AgentError, &'static str)>>,
) -> Result<T, StartError> {
    let done = tokio::select! {
        done = calls => done,
        end = vmm.ended() => {
            return Err(StartError::Died { end, console: pod.console_tail() });
        }
    };
    done.map_err(|(source, what)| StartError::Agent {
        what,
        source,
        console: pod.console_tail(),
    })
}

fn machine(pod: &Pod, prepared: &Prepared, tap: Option<&OwnedFd>) -> MachineConfig {
    let wish = &pod.record.machine;
    MachineConfig {
        id: pod.record.id.clone(),
        vcpus: wish.vcpus,
        memory_mib: wish.memory_mib,
        kernel: KernelConfig {
            vmlinux: wish.vmlinux.clone(),
            initramfs: Some(wish.initramfs.clone()),
            extra_cmdline: wish.extra_cmdline.clone(),
        },
        console_log: pod.paths.console(),
        console_log_bytes: CONSOLE_BYTES,
        shares: vec![ShareConfig {
            tag: SHARE_TAG.into(),
            path: pod.paths.shared(),
            queues: 1,
            read_only: false,
        }],
        nets: prepared
            .network
            .iter()
            .filter_map(|network| {
                Some(NetConfig {
                    tap_fd: tap?.as_raw_fd(),
                    mac: CARD_MAC.into(),
                    mtu: network.place.mtu,
                    sender: Some(SenderConfig {
                        mac: network.place.mac(),
                        ipv4: vec![network.place.address],
                    }),
                })
            })
            .collect(),
        blocks: vec![],
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            uds_path: pod.paths.vsock(),
        }),
        balloon: true,
        snapshot_to: None,
        restore: None,
        jail: wish.jail.then(|| JailConfig {
            root: pod.paths.jail(),
            open_files: 1 << 16,
            user: Some(vmm_user(&pod.record.id)),
        }),
    }
}

/// The user and group that the VMM of pod `id` runs as: one of 16 million in the range that no convention gives to anybody
/// (systemd, "Users, Groups, UIDs and GIDs on systemd Systems"), by the beginning of the id.
fn vmm_user(id: &str) -> u32 {
    const FIRST: u32 = 0x7000_0000;
    let number = id.get(..6).and_then(|d| u32::from_str_radix(d, 16).ok());
    FIRST + number.unwrap_or(0)
}

/// Makes the user of the pod's VMM the owner of `path`; a VMM that is not confined is root and needs no such thing.
fn give_to_vmm(pod: &Pod, path: &Path) -> std::io::Result<()> {
    if !pod.record.machine.jail {
        return Ok(());
    }
    let user = vmm_user(&pod.record.id);
    std::os::unix::fs::lchown(path, Some(user), Some(user))
}

/// Whether a kernel's line is part of a call trace without names, which the guest's kernel does not carry: after a panic
/// they are most of what there is, and its reason stands before them.
fn is_bare_trace(line: &str) -> bool {
    let message = line.split_once("] ").map_or(line, |(_, message)| message);
    let message = message.trim_start().trim_start_matches("? ");
    message.starts_with("0xffffffff") || matches!(message, "Call Trace:" | "<TASK>" | "</TASK>")
}

/// The last lines of the console at `path` with a heading; empty when there are none.
pub(super) fn console_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        // The VMM writes in that directory: what it puts there is not followed anywhere else.
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    // A line that begins before what was read says nothing.
    let cut = usize::from(bytes.len() as u64 == TAIL_BYTES);
    let lines: Vec<&str> = text
        .lines()
        .skip(cut)
        .filter(|line| !line.is_empty() && !is_bare_trace(line))
        .collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if tail.is_empty() {
        String::new()
    } else {
        format!(
            "; the guest's console ends with:\n{}",
            bounded(&tail.join("\n"))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_user_of_a_pod_is_its_own_and_nobody_elses() {
        assert_eq!(vmm_user("00000f123456"), 0x7000_000f);
        assert_eq!(vmm_user("ffffffffffff"), 0x70ff_ffff);
        assert_ne!(vmm_user("0123456789ab"), vmm_user("0123466789ab"));
    }

    #[test]
    fn console_tail_is_the_last_lines_made_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        assert_eq!(console_tail(&path), "");
        let mut text = String::new();
        for number in 0..100 {
            text.push_str(&format!("line {number}\u{1b}[0m\r\n"));
        }
        fs::write(&path, text).unwrap();
        let tail = console_tail(&path);
        assert!(tail.ends_with("line 99\u{fffd}[0m"), "{tail}");
        assert_eq!(tail.lines().count(), TAIL_LINES + 1);
    }

    #[test]
    fn console_tail_of_a_panic_is_its_words_without_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut text = String::from(
            "[    2.18] Kernel panic - not syncing: why\n[    2.22] Call Trace:\n[    2.22]  <TASK>\n",
        );
        for _ in 0..TAIL_LINES {
            text.push_str("[    2.23]  ? 0xffffffff8104e60b\n[    2.23]  0xffffffff8104e60b\n");
        }
        text.push_str("[    2.26]  </TASK>\n[    2.27] Kernel Offset: disabled\n");
        fs::write(&path, text).unwrap();
        let tail = console_tail(&path);
        assert!(
            tail.ends_with("with:\n[    2.18] Kernel panic - not syncing: why\n[    2.27] Kernel Offset: disabled"),
            "{tail}"
        );
    }
}
