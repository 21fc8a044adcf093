//! From nothing to an agent that has the pod: VMM, readiness, handshake, sandbox.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{Instant, sleep_until};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::{GUEST_SHARED, READY_PORT, SHARE_TAG};
use vmpod_vmm_api::{JailConfig, KernelConfig, MachineConfig, NetConfig, ShareConfig, VsockConfig};

use super::setup::Prepared;
use super::{Pod, StartError};
use crate::manifest::plan::RestartPolicy;
use crate::pod::agent::Agent;
use crate::pod::clock;
use crate::pod::guest_paths;
use crate::pod::journal::Entry;
use crate::pod::record::ContainerRecord;
use crate::pod::status::bounded;
use crate::pod::vmm::{Vmm, VmmStart};

/// How long a machine may take from its start to a ready agent. Hardware takes well under a second; an emulated host that
/// is loaded takes many.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the handshake may take once the agent has said that it is ready.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// Bytes after which the guest's console log starts anew.
const CONSOLE_BYTES: u64 = 256 * 1024;

/// Lines and bytes of the console that go into a message.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 2048;

/// Name of the network interface in the pod.
const INTERFACE: &str = "eth0";

/// Context id of every guest: each VMM has a vsock of its own, so that ids never meet.
const GUEST_CID: u32 = 3;

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
    // The listener is there before the guest can connect.
    let ready = UnixListener::bind(pod.paths.vsock_listener(READY_PORT))
        .map_err(system("listen for the agent"))?;

    let config = machine(pod, prepared);
    config.validate()?;
    let started = Instant::now();
    let tap = prepared.network.as_mut().and_then(|n| n.tap.take());
    let mut vmm = Vmm::start(VmmStart {
        program: &pod.record.machine.vmm,
        log: &pod.paths.vmm_log(),
        cgroup: prepared.cgroup.take(),
        inherited: tap.into_iter().collect(),
    })?;
    pod.status.vmm = vmm.identity();
    if let Some(identity) = vmm.identity() {
        prepared.journal.record(&Entry::Process {
            role: "VMM".into(),
            identity,
        })?;
    }
    pod.save();
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
    pod.status.boot_ns = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);

    let greet = async {
        let (agent, answer) = Agent::connect(&pod.paths.vsock(), HANDSHAKE_LIMIT)
            .await
            .map_err(|e| (e, "shake hands with the agent"))?;
        agent
            .configure_sandbox(&sandbox(pod, prepared))
            .await
            .map_err(|e| (e, "set up the pod's sandbox in the guest"))?;
        agent
            .start_pod(&start_request(pod))
            .await
            .map_err(|e| (e, "start the pod in the guest"))?;
        Ok((agent, answer))
    };
    let greeted = tokio::select! {
        greeted = greet => greeted,
        end = vmm.ended() => {
            return Err(StartError::Died { end, console: pod.console_tail() });
        }
    };
    let (agent, answer) = greeted.map_err(|(source, what)| StartError::Agent {
        what,
        source,
        console: pod.console_tail(),
    })?;
    pod.status
        .guest
        .insert("agent".into(), bounded(&answer.agent_version));
    pod.status
        .guest
        .insert("kernel".into(), bounded(&answer.kernel_release));
    Ok((vmm, agent))
}

fn machine(pod: &Pod, prepared: &Prepared) -> MachineConfig {
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
                    tap_fd: network.tap.as_ref()?.as_raw_fd(),
                    mac: network.place.mac(),
                    mtu: network.place.mtu,
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
        }),
    }
}

fn sandbox(pod: &Pod, prepared: &Prepared) -> m::ConfigureSandboxRequest {
    let record = &pod.record;
    let mut entropy = vec![0_u8; 64];
    // An error leaves zeroes, which harm nothing: the guest mixes them into its own pool.
    let _ = rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty());
    m::ConfigureSandboxRequest {
        hostname: record.hostname.clone(),
        interfaces: prepared
            .network
            .iter()
            .map(|network| m::NetworkInterface {
                mac: network.place.mac(),
                name: INTERFACE.into(),
                mtu: u32::from(network.place.mtu),
                addresses: vec![format!(
                    "{}/{}",
                    network.place.address,
                    network.place.subnet.prefix()
                )],
                ..Default::default()
            })
            .collect(),
        routes: prepared
            .network
            .iter()
            .map(|network| m::Route {
                gateway: network.place.subnet.gateway().to_string(),
                device: INTERFACE.into(),
                ..Default::default()
            })
            .collect(),
        sysctls: record
            .sysctls
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        share_process_namespace: record.share_process_namespace,
        shares: vec![m::ShareMount {
            tag: SHARE_TAG.into(),
            guest_path: GUEST_SHARED.into(),
            ..Default::default()
        }],
        memory_volumes: record
            .memory_volumes
            .iter()
            .map(|volume| m::MemoryVolume {
                guest_path: volume.guest_path.clone(),
                size_bytes: volume.size_bytes,
                mode: volume.mode,
                gid: volume.gid,
                ..Default::default()
            })
            .collect(),
        clock_realtime_ns: clock::now_ns(),
        entropy,
        ..Default::default()
    }
}

fn start_request(pod: &Pod) -> m::StartPodRequest {
    let record = &pod.record;
    let containers = |records: &[ContainerRecord]| records.iter().map(container).collect();
    m::StartPodRequest {
        restart_policy: match record.restart_policy {
            RestartPolicy::Always => m::RestartPolicy::ALWAYS,
            RestartPolicy::OnFailure => m::RestartPolicy::ON_FAILURE,
            RestartPolicy::Never => m::RestartPolicy::NEVER,
        }
        .into(),
        init_containers: containers(&record.init_containers),
        containers: containers(&record.containers),
        termination_grace_seconds: record.termination_grace_seconds,
        active_deadline_seconds: record.active_deadline_seconds,
        ..Default::default()
    }
}

fn container(record: &ContainerRecord) -> m::PodContainer {
    m::PodContainer {
        name: record.name.clone(),
        // A value made by serde_json is always written again.
        oci_spec: serde_json::to_vec(&record.oci_spec).unwrap_or_default(),
        stdio: Some(m::Stdio {
            stdin: record.stdin,
            stdout: true,
            stderr: !record.tty,
            terminal: record.tty,
            rows: 24,
            columns: 80,
            ..Default::default()
        })
        .into(),
        sidecar: record.sidecar,
        termination_message_path: record.termination_message_path.clone(),
        stop_signal: record.stop_signal,
        message_from_logs: record.message_from_logs,
        rootfs: guest_paths::rootfs(&record.name, 0),
        ..Default::default()
    }
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
    let text = bounded(&String::from_utf8_lossy(&bytes).replace('\r', ""));
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if tail.is_empty() {
        String::new()
    } else {
        format!("; the guest's console ends with:\n{}", tail.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
