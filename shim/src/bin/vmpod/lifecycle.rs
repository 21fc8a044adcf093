//! The end of pods: stop, kill, rm, wait, gc.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vmpod_agent_protocol::messages as m;
use vmpod_shim::host::bundle::Bundle;
use vmpod_shim::images::{Digest, Store};
use vmpod_shim::pod::durable;
use vmpod_shim::pod::prepare::images_in_use;
use vmpod_shim::pod::process::ProcessIdentity;
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::{ContainerState, PodStatus};
use vmpod_shim::pod::template::Templates;

use crate::cli::{GcArguments, KillArguments, Output, RmArguments, StopArguments, WaitArguments};
use crate::follow::Wakeup;
use crate::{guest, table};

/// How long a machine may take to go once it is killed, and its supervisor to clean up.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How much longer than its grace period a pod may take to end.
const STOP_SLACK: Duration = Duration::from_secs(15);

/// Status of `wait` when it gives up, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Signals a process that is told from others with its number.
pub fn signal(identity: &ProcessIdentity, signal: Signal) {
    let Some(pid) = Pid::from_raw(identity.pid) else {
        return;
    };
    if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
        && identity.is_alive()
    {
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}

/// Runs `work` on each pod; says what went wrong with each, and fails if anything did.
fn each(
    roots: &Roots,
    selectors: &[String],
    mut work: impl FnMut(&FoundPod) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let mut failed = 0;
    for selector in selectors {
        let done = registry::find(roots, selector)
            .map_err(anyhow::Error::from)
            .and_then(|pod| work(&pod));
        match done {
            Ok(()) => writeln!(io::stdout(), "{selector}")?,
            Err(error) => {
                failed += 1;
                let text = vmpod_shim::pod::journal::chain(error.as_ref());
                writeln!(io::stderr(), "vmpod: {text}")?;
            }
        }
    }
    Ok(if failed == 0 { 0 } else { crate::OWN_ERROR })
}

/// `vmpod stop`
pub fn stop(roots: &Roots, arguments: &StopArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    each(roots, &arguments.pods, |pod| stop_pod(pod, arguments.time))
}

fn stop_pod(pod: &FoundPod, time: Option<u32>) -> anyhow::Result<()> {
    if pod.has_ended() {
        return Ok(());
    }
    let record: PodRecord = durable::read_json(&pod.paths.config())
        .with_context(|| format!("pod {:?} is being prepared", pod.reservation.name))?;
    let grace = time.unwrap_or(record.termination_grace_seconds);
    let supervisor = pod.status.as_ref().and_then(|status| status.supervisor);
    let asked = guest::runtime()?.block_on(async {
        let agent = guest::agent(&pod.paths).await?;
        agent
            .stop_pod(&m::StopPodRequest {
                has_grace: time.is_some(),
                grace_seconds: grace,
                reason: "the pod was stopped by vmpod stop".to_owned(),
                ..Default::default()
            })
            .await
            .map_err(anyhow::Error::from)
    });
    if let Err(error) = asked {
        // The agent is not there yet or hangs: its supervisor knows what to do.
        tracing::info!(%error, "the agent cannot be asked");
        match &supervisor {
            Some(supervisor) => signal(supervisor, Signal::TERM),
            None => bail!(
                "pod {:?} has no supervisor to stop it",
                pod.reservation.name
            ),
        }
    }
    let limit = Duration::from_secs(u64::from(grace)) + STOP_SLACK;
    if wait_end(pod, Some(limit)).is_some() {
        return Ok(());
    }
    kill_pod(pod)
}

/// Asks a pod to end in order, by its supervisor, and waits for nothing.
pub fn terminate(pod: &FoundPod) {
    if let Some(supervisor) = pod.status.as_ref().and_then(|status| status.supervisor) {
        signal(&supervisor, Signal::TERM);
    }
}

/// `vmpod kill`
pub fn kill(roots: &Roots, arguments: &KillArguments) -> anyhow::Result<u8> {
    let number = arguments.signal.as_deref().map(signal_number).transpose()?;
    registry::reap(roots)?;
    each(roots, &arguments.pods, |pod| {
        if pod.has_ended() {
            bail!("pod {:?} is not running", pod.reservation.name);
        }
        match number {
            None => kill_pod(pod),
            Some(number) => signal_containers(pod, arguments.container.as_deref(), number),
        }
    })
}

/// Kills the machine by way of its supervisor, or the supervisor itself when it does not react.
fn kill_pod(pod: &FoundPod) -> anyhow::Result<()> {
    let status: Option<PodStatus> = durable::read_json(&pod.paths.status()).ok();
    let Some(supervisor) = status.and_then(|status| status.supervisor) else {
        bail!(
            "pod {:?} is still being prepared by another command; end that one",
            pod.reservation.name
        );
    };
    signal(&supervisor, Signal::INT);
    if wait_end(pod, Some(KILL_LIMIT)).is_some() {
        return Ok(());
    }
    if !supervisor.kill_and_wait(KILL_LIMIT) {
        bail!(
            "the supervising process {} of pod {:?} does not end after SIGKILL",
            supervisor.pid,
            pod.reservation.name
        );
    }
    Ok(())
}

fn signal_containers(pod: &FoundPod, container: Option<&str>, number: u32) -> anyhow::Result<()> {
    let status = pod
        .status
        .as_ref()
        .with_context(|| format!("pod {:?} has no status yet", pod.reservation.name))?;
    let running: Vec<String> = status
        .every_container()
        .filter(|c| c.state == ContainerState::Running)
        .filter(|c| container.is_none_or(|wanted| c.name == wanted))
        .map(|c| format!("{}.{}", c.name, c.attempt))
        .collect();
    if running.is_empty() {
        bail!(
            "no container of pod {:?} that could be signalled is running",
            pod.reservation.name
        );
    }
    guest::runtime()?.block_on(async {
        let agent = guest::agent(&pod.paths).await?;
        for container_id in running {
            agent
                .signal_process(&m::SignalRequest {
                    container_id,
                    signal: number,
                    ..Default::default()
                })
                .await?;
        }
        Ok(())
    })
}

/// A signal by number, or by name with or without `SIG`.
fn signal_number(text: &str) -> anyhow::Result<u32> {
    if let Ok(number) = text.parse::<u32>() {
        if (1..=64).contains(&number) {
            return Ok(number);
        }
        bail!("{number} is no signal: expected 1 to 64");
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| (signal as i32).unsigned_abs())
        .map_err(|_| {
            anyhow::anyhow!("{text:?} is no signal; expected a name such as TERM or a number")
        })
}

/// `vmpod rm`
pub fn rm(roots: &Roots, arguments: &RmArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let selectors = if arguments.all {
        registry::list(roots)?
            .into_iter()
            .filter(|pod| arguments.force || pod.has_ended())
            .map(|pod| pod.reservation.id)
            .collect()
    } else {
        arguments.pods.clone()
    };
    each(roots, &selectors, |pod| {
        if !pod.has_ended() {
            if !arguments.force {
                return Err(registry::RegistryError::Running {
                    name: pod.reservation.name.clone(),
                }
                .into());
            }
            kill_pod(pod)?;
        }
        Ok(registry::remove(pod, KILL_LIMIT)?)
    })
}

/// `vmpod wait`
pub fn wait(roots: &Roots, arguments: &WaitArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let deadline = arguments
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut result = 0;
    for selector in &arguments.pods {
        let pod = registry::find(roots, selector)?;
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match wait_end(&pod, limit) {
            Some(status) => {
                let code = status
                    .and_then(|status| status.exit_code)
                    .unwrap_or(crate::OWN_ERROR);
                writeln!(io::stdout(), "{code}")?;
                if result == 0 {
                    result = code;
                }
            }
            None => {
                writeln!(
                    io::stderr(),
                    "vmpod: pod {selector:?} has not ended in time"
                )?;
                return Ok(TIMED_OUT);
            }
        }
    }
    Ok(result)
}

/// Waits until the pod has ended and everything of it was taken back, at most `limit`. `None`: it has not;
/// `Some(None)`: it has, and its status is gone with it or was never final.
fn wait_end(pod: &FoundPod, limit: Option<Duration>) -> Option<Option<PodStatus>> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut wakeup = Wakeup::new();
    let mut last: Option<PodStatus> = None;
    loop {
        let fresh = wakeup.watch_directory(pod.paths.run.clone());
        if let Ok(status) = durable::read_json::<PodStatus>(&pod.paths.status()) {
            last = Some(status);
        }
        let is_final = last.as_ref().is_some_and(|s| s.phase.is_final());
        let attended = vmpod_shim::pod::process::is_locked(&pod.paths.lock());
        if !attended {
            if let Ok(status) = durable::read_json::<PodStatus>(&pod.paths.status()) {
                last = Some(status);
            }
            return Some(last.filter(|status| status.phase.is_final()));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        if is_final {
            // What is left is the supervisor's clean-up, which changes no file that is watched.
            std::thread::sleep(Duration::from_millis(5));
        } else if !fresh {
            wakeup.wait(&[]);
        }
    }
}

/// `vmpod gc`
pub fn gc(roots: &Roots, arguments: &GcArguments) -> anyhow::Result<u8> {
    let collected = registry::collect(roots, arguments.ended)?;
    let templates = Templates::of(roots).collect(&Bundle::locate())?;
    let images = if arguments.images {
        let store = Store::open(&roots.state)?;
        Some(store.gc_unreferenced(&used_digests(roots))?)
    } else {
        None
    };
    match arguments.output {
        Output::Json => table::json(&serde_json::json!({
            "pods": collected,
            "templates": templates,
            "images": images,
        }))?,
        Output::Text => {
            for pod in &collected {
                let what = if pod.removed {
                    "removed"
                } else {
                    "ended; its record stays until `vmpod rm`"
                };
                writeln!(io::stdout(), "pod {} {}: {what}", pod.id, pod.name)?;
            }
            for template in &templates {
                writeln!(
                    io::stdout(),
                    "template {template} of another build: removed"
                )?;
            }
            if let Some(images) = images {
                writeln!(
                    io::stdout(),
                    "images: {} layers and {} blobs removed, {}",
                    images.layers,
                    images.blobs,
                    table::bytes(images.bytes)
                )?;
            }
        }
    }
    Ok(0)
}

/// Manifest digests of the images that pods on record run from.
pub fn used_digests(roots: &Roots) -> std::collections::BTreeSet<Digest> {
    images_in_use(roots)
        .iter()
        .filter_map(|text| Digest::parse(text).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signal_by_name_or_number_is_its_number() {
        assert_eq!(signal_number("TERM").unwrap(), 15);
        assert_eq!(signal_number("sighup").unwrap(), 1);
        assert_eq!(signal_number("9").unwrap(), 9);
        assert!(signal_number("0").is_err());
        assert!(signal_number("NOPE").is_err());
    }
}
