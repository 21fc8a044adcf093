//! A running pod: events of the agent become logs, root file systems and status, until the pod or its machine ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use vmpod_agent_protocol::messages as m;
use vmpod_vmm_api::{NetworkConfig, SenderConfig};

use super::containers::Containers;
use super::ephemeral::Ephemeral;
use super::handover::{Report, Reporter};
use super::resources::Resources;
use super::setup::Prepared;
use super::{Pod, StartError, disks, requests};
use crate::network::{self, PodNetwork};
use crate::pod::agent::{Agent, AgentError};
use crate::pod::boot::{self, Boot, CARD_MAC, Card};
use crate::pod::clock;
use crate::pod::host_mounts;
use crate::pod::journal::chain;
use crate::pod::lesson::Lesson;
use crate::pod::record::VolumeSource;
use crate::pod::status::bounded;
use crate::pod::tree::disk_usage;
use crate::pod::vmm::{MachineNews, Vmm};

/// Longest wait of one call for events.
const EVENT_WAIT: Duration = Duration::from_secs(25);

/// How long streams may stay open after the pod's end.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How long the guest may take to power off, and the VMM to go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// How long a machine may live whose agent is not there any more.
const LOST_LIMIT: Duration = Duration::from_secs(3);

/// How much longer than its grace period a pod may take to end before the machine is killed.
const STOP_SLACK: Duration = Duration::from_secs(10);

/// How long after its first container's start a pod's machine is asked what it has written to, if nobody knows of its kind:
/// later it has written more, and other things than the next. One that ends sooner is asked at its end.
const LESSON_DELAY: Duration = Duration::from_millis(100);

/// How often the size of emptyDir volumes is looked at.
const USAGE_INTERVAL: Duration = Duration::from_secs(10);

/// Why the pod's life came to an end.
enum End {
    /// The agent said so.
    Finished,
    /// The agent said so after the pod was told to end because it took too much.
    Evicted(String),
    /// Something else did: reason and message.
    Broken(&'static str, String),
}

/// Boots the machine and drives the pod to its end. Errors are of the start alone.
pub(super) async fn run(
    pod: &mut Pod,
    mut prepared: Prepared,
    reporter: &mut Reporter,
) -> Result<(), StartError> {
    let system = |source| StartError::System {
        what: "listen for signals",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    let mut ephemeral = Ephemeral::new().map_err(system)?;
    let started = tokio::select! {
        started = start(pod, &mut prepared) => started,
        _ = terminate.recv() => Err(stopped_while_starting()),
        _ = interrupt.recv() => Err(stopped_while_starting()),
    };
    let (mut vmm, agent, mut lesson) = match started {
        Ok(started) => started,
        Err(error) => {
            // The VMM was dropped, and with that killed.
            prepared.tree.unmount();
            return Err(error);
        }
    };
    pod.status
        .enter(crate::pod::status::Phase::Pending, clock::now_ns());
    pod.save();
    pod.event("PodStarted", "", "");
    reporter.send(&Report::Started);

    let mut containers = Containers::new(&pod.paths, &prepared.tree);
    let end = watch(
        pod,
        &mut containers,
        &mut vmm,
        &agent,
        (&mut terminate, &mut interrupt),
        &mut ephemeral,
        &mut lesson,
    )
    .await;
    if let Some(lesson) = lesson {
        lesson.learn(&mut vmm).await;
    }
    match &end {
        End::Finished => containers.drain(DRAIN_LIMIT).await,
        End::Evicted(message) => {
            containers.drain(DRAIN_LIMIT).await;
            pod.status.evict(message, clock::now_ns());
        }
        End::Broken(reason, message) => {
            // A machine that is gone ends its streams: what it has said is read, and nothing waited for.
            let _ = vmm.kill(SHUTDOWN_LIMIT).await;
            containers.drain(DRAIN_LIMIT).await;
            pod.status.fail(reason, message, clock::now_ns());
        }
    }
    pod.status.end_ephemeral(clock::now_ns());
    pod.event(
        "PodFinished",
        "",
        &format!("{} {}", pod.status.phase, pod.status.message),
    );
    pod.save();
    if !matches!(end, End::Broken(..)) {
        // A guest that goes before it has answered has done what it was asked.
        let _ = agent.shutdown(SHUTDOWN_LIMIT).await;
        let _ = timeout(SHUTDOWN_LIMIT, vmm.ended()).await;
    }
    let _ = vmm.kill(SHUTDOWN_LIMIT).await;
    if let Some(mounts) = &prepared.mounts {
        host_mounts::forget_all(mounts);
    }
    prepared.tree.unmount();
    drop(prepared.ports);
    Ok(())
}

/// Starts the machine and hands the pod to its agent.
async fn start(
    pod: &mut Pod,
    prepared: &mut Prepared,
) -> Result<(Vmm, Agent, Option<Lesson>), StartError> {
    let sandbox = requests::sandbox(pod, prepared)?;
    let (roots, paths) = (pod.roots.clone(), pod.paths.clone());
    let (id, machine) = (pod.record.id.clone(), pod.record.machine.clone());
    let boot = Boot {
        roots: &roots,
        paths: &paths,
        id: &id,
        machine: &machine,
        cards: prepared
            .network
            .as_mut()
            .and_then(card)
            .into_iter()
            .collect(),
        cgroup: prepared.cgroup.take(),
        journal: &mut prepared.journal,
        sandbox,
    };
    let mut booted = boot.run(pod).await?;
    pod.status.boot_ns = i64::try_from(booted.took.as_nanos()).unwrap_or(i64::MAX);
    let agent = booted.agent;
    disks::attach(pod, &mut booted.vmm, &agent).await?;
    if let Some(mounts) = &prepared.mounts {
        host_mounts::locked(mounts).belong_to(booted.vmm.identity());
        tokio::spawn(host_mounts::follow(agent.clone(), Arc::clone(mounts)));
    }
    boot::while_alive(&paths.console(), &mut booted.vmm, async {
        agent
            .start_pod(&requests::start_request(pod))
            .await
            .map_err(|e| (e, "start the pod in the guest"))
    })
    .await?;
    let told = [
        ("start", booted.how),
        ("agent", bounded(&booted.answer.agent_version)),
        ("kernel", bounded(&booted.answer.kernel_release)),
    ];
    for (what, value) in told {
        pod.status.guest.insert(what.into(), value);
    }
    Ok((booted.vmm, agent, booted.lesson))
}

/// The pod's card, once.
fn card(network: &mut PodNetwork) -> Option<Card> {
    Some(Card {
        tap: network.tap.take()?,
        mac: CARD_MAC.into(),
        mtu: network.place.mtu,
        sender: Some(SenderConfig {
            mac: network.place.mac(),
            ipv4: vec![network.place.address],
        }),
        own_network: (!network.uplink).then(|| NetworkConfig {
            address: network.place.subnet.address(),
            prefix: network.place.subnet.prefix(),
        }),
    })
}

fn stopped_while_starting() -> StartError {
    StartError::System {
        what: "go on with the start",
        source: std::io::Error::other("the pod was stopped while it started"),
    }
}

async fn watch(
    pod: &mut Pod,
    containers: &mut Containers<'_>,
    vmm: &mut Vmm,
    agent: &Agent,
    (terminate, interrupt): (&mut Signal, &mut Signal),
    ephemeral: &mut Ephemeral,
    lesson: &mut Option<Lesson>,
) -> End {
    let (sender, mut batches) = mpsc::channel(1);
    let poll = tokio::spawn(poll_events(agent.clone(), sender));
    let mut resources = Resources::new(pod);
    let mut usage = interval(USAGE_INTERVAL);
    usage.set_missed_tick_behavior(MissedTickBehavior::Delay);
    usage.tick().await;
    let far = Instant::now() + Duration::from_secs(u64::from(u32::MAX));
    let mut stop_deadline = far;
    let mut evicted: Option<String> = None;
    let mut lesson_at = far;
    let end = loop {
        tokio::select! {
            // What the agent said last comes before the end of its machine.
            biased;
            batch = batches.recv() => match batch {
                Some(Ok(batch)) => {
                    if lesson_at == far && batch.events.iter().any(is_start) {
                        lesson_at = Instant::now() + LESSON_DELAY;
                    }
                    if take_events(pod, containers, agent, batch).await {
                        break match evicted.take() {
                            Some(message) => End::Evicted(message),
                            None => End::Finished,
                        };
                    }
                }
                lost => {
                    let why = match lost {
                        Some(Err(error)) => chain(&error),
                        _ => "the connection to it ended".to_owned(),
                    };
                    break lost_agent(pod, vmm, &why).await;
                }
            },
            news = vmm.news() => match news {
                MachineNews::UplinkWanted => {
                    if let Err(message) = open_uplink(pod, vmm).await {
                        break End::Broken("NetworkFailed", message);
                    }
                }
                MachineNews::Ended(end) => {
                    let message = format!("the pod's machine ended by itself: {end}{}", pod.console_tail());
                    break End::Broken("MachineFailed", message);
                }
            },
            _ = interrupt.recv() => {
                break End::Broken("Killed", "the pod's machine was killed on request".to_owned());
            }
            _ = terminate.recv() => {
                stop_deadline = stop(pod, agent, "the pod was asked to stop").await;
            }
            () = sleep_until(stop_deadline) => {
                break End::Broken(
                    "Killed",
                    "the pod did not end in its grace period; its machine was killed".to_owned(),
                );
            }
            news = ephemeral.next() => ephemeral.take(pod, containers, agent, news),
            () = resources.wait() => resources.look(pod).await,
            () = sleep_until(lesson_at), if lesson.is_some() => {
                if let Some(lesson) = lesson.take() {
                    lesson.learn(vmm).await;
                }
            }
            _ = usage.tick() => {
                if evicted.is_none() && let Some(message) = over_limit(pod) {
                    pod.event("PodEvicted", "", &message);
                    stop_deadline = stop(pod, agent, &message).await;
                    evicted = Some(message);
                }
            }
        }
    };
    poll.abort();
    end
}

/// Makes the way from the pod to others than pods and this host, now that it wants to use it.
async fn open_uplink(pod: &Pod, vmm: &mut Vmm) -> Result<(), String> {
    let Some(place) = &pod.record.network else {
        return Ok(());
    };
    let failed = |error: &dyn std::error::Error| {
        format!(
            "the pod cannot send beyond the pods' network, which it tried: {}",
            chain(error)
        )
    };
    network::open_uplink(&pod.roots.network(), place.address, &pod.record.id)
        .map_err(|error| failed(&error))?;
    vmm.open_uplink().await.map_err(|error| failed(&error))
}

/// Asks the agent to end the pod. Returns when it must have ended.
async fn stop(pod: &Pod, agent: &Agent, reason: &str) -> Instant {
    let request = m::StopPodRequest {
        reason: reason.to_owned(),
        ..Default::default()
    };
    let grace = Duration::from_secs(u64::from(pod.record.termination_grace_seconds));
    match agent.stop_pod(&request).await {
        Ok(_) => Instant::now() + grace + STOP_SLACK,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the agent does not stop the pod");
            Instant::now()
        }
    }
}

/// The agent is not there any more: its machine most likely ends as well, and then says why.
async fn lost_agent(pod: &Pod, vmm: &mut Vmm, why: &str) -> End {
    match timeout(LOST_LIMIT, vmm.ended()).await {
        Ok(end) => End::Broken(
            "MachineFailed",
            format!(
                "the pod's machine ended by itself: {end}{}",
                pod.console_tail()
            ),
        ),
        Err(_) => End::Broken(
            "AgentLost",
            format!(
                "the pod's agent is gone while its machine still runs ({why}); the machine was killed{}",
                pod.console_tail()
            ),
        ),
    }
}

/// Takes in a batch of events and brings the status up to date. Returns whether the pod has ended: the status may say so
/// before the last events are here.
async fn take_events(
    pod: &mut Pod,
    containers: &mut Containers<'_>,
    agent: &Agent,
    batch: m::NextEventsResponse,
) -> bool {
    if batch.events.is_empty() {
        return false;
    }
    for event in &batch.events {
        containers.take(pod, agent, event).await;
    }
    let told = match batch.status.into_option() {
        Some(told) => Ok(told),
        None => agent.get_pod_status(&m::Empty::new()).await,
    };
    match told {
        Ok(told) => {
            let before = pod.status.phase;
            pod.status.update(&told, clock::now_ns());
            containers.connect_running(pod);
            // The final status is written when the last output is in the logs.
            if !pod.status.phase.is_final()
                && (pod.status.phase != before || !batch.events.is_empty())
            {
                pod.save();
            }
        }
        Err(error) => tracing::warn!(error = chain(&error), "the agent does not tell its status"),
    }
    let last = |event: &m::Event| {
        event.kind.enum_value_or(m::EventKind::UNKNOWN) == m::EventKind::POD_FINISHED
    };
    pod.status.phase.is_final() && batch.events.iter().any(last)
}

/// Whether a container has started.
fn is_start(event: &m::Event) -> bool {
    event.kind.enum_value_or(m::EventKind::UNKNOWN) == m::EventKind::CONTAINER_STARTED
}

/// The first emptyDir volume that has outgrown its limit, in the kubelet's words.
fn over_limit(pod: &Pod) -> Option<String> {
    pod.record.volumes.iter().find_map(|volume| {
        let VolumeSource::EmptyDir {
            size_limit: Some(limit),
        } = volume.source
        else {
            return None;
        };
        (disk_usage(&pod.paths.volume(&volume.name), limit) > limit).then(|| {
            format!(
                "Usage of EmptyDir volume {:?} exceeds the limit of {limit} bytes.",
                volume.name
            )
        })
    })
}

async fn poll_events(
    agent: Agent,
    sender: mpsc::Sender<Result<m::NextEventsResponse, AgentError>>,
) {
    let mut after = 0;
    loop {
        let batch = agent.next_events(after, EVENT_WAIT).await;
        let failed = batch.is_err();
        if let Ok(batch) = &batch
            && let Some(last) = batch.events.iter().map(|event| event.sequence).max()
        {
            // An agent that repeats itself would keep this loop busy: it is made to wait instead.
            if last <= after {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            after = after.max(last);
        }
        if sender.send(batch).await.is_err() || failed {
            return;
        }
    }
}
