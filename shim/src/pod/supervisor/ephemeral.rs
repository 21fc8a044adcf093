//! What a running pod is asked for by a file in its directory and SIGUSR1: ephemeral containers, made by the agent's
//! primitives beside the pod's own containers, never restarted and of no say in the pod's life; and conditions of the pod.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use vmpod_agent_protocol::messages as m;

use super::Pod;
use super::containers::Containers;
use crate::pod::agent::{Agent, AgentError};
use crate::pod::clock;
use crate::pod::conditions;
use crate::pod::durable;
use crate::pod::journal::chain;
use crate::pod::record::{ContainerRecord, EphemeralRecord};
use crate::pod::status::{self, ContainerState, ContainerStatus, Exit, bounded};

/// Exit code of a container that could not be started, as elsewhere in Kubernetes.
const NOT_STARTED: u8 = 128;

/// How long the last output of a container that has ended may be on its way before its process is removed.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// What happened.
pub(super) enum News {
    /// There may be new requests.
    Asked,
    /// Of a container.
    Of(String, Step),
}

pub(super) enum Step {
    Created,
    Started,
    Ended(m::ExitStatus),
    Failed(String),
}

pub(super) struct Ephemeral {
    asked: Signal,
    tell: mpsc::UnboundedSender<(String, Step)>,
    told: mpsc::UnboundedReceiver<(String, Step)>,
}

impl Ephemeral {
    /// From now on SIGUSR1 is no end of this process.
    pub(super) fn new() -> io::Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        Ok(Self {
            asked: signal(SignalKind::user_defined1())?,
            tell,
            told,
        })
    }

    /// The next news; waits for ever when there are none.
    pub(super) async fn next(&mut self) -> News {
        tokio::select! {
            Some(()) = self.asked.recv() => News::Asked,
            Some((name, step)) = self.told.recv() => News::Of(name, step),
            else => std::future::pending().await,
        }
    }

    pub(super) fn take(
        &mut self,
        pod: &mut Pod,
        containers: &mut Containers<'_>,
        agent: &Agent,
        news: News,
    ) {
        match news {
            News::Asked => {
                for record in requests(pod) {
                    self.begin(pod, containers, agent, record);
                }
                take_conditions(pod);
            }
            News::Of(name, step) => advance(pod, containers, &name, step),
        }
        pod.save();
    }

    fn begin(
        &self,
        pod: &mut Pod,
        containers: &Containers<'_>,
        agent: &Agent,
        record: EphemeralRecord,
    ) {
        let name = record.container.name.clone();
        let status = ContainerStatus::waiting(&record.container, "ContainerCreating");
        pod.status.ephemeral.push(status);
        pod.record.ephemeral.push(record.clone());
        if let Err(error) = durable::write_json(&pod.paths.config(), &pod.record) {
            tracing::error!(error = chain(&error), "cannot write the pod's record");
        }
        if let Err(error) = containers.add(&record.container) {
            let _ = self.tell.send((name, Step::Failed(chain(&error))));
            return;
        }
        tokio::spawn(live(agent.clone(), record, self.tell.clone()));
    }
}

/// Takes over the conditions that were set.
fn take_conditions(pod: &mut Pod) {
    let set: BTreeMap<String, bool> =
        durable::read_json(&pod.paths.conditions()).unwrap_or_default();
    for (kind, holds) in set {
        conditions::set(&mut pod.status, &kind, holds, clock::now_ns());
    }
}

/// Records of containers that are asked for and not there yet.
fn requests(pod: &Pod) -> Vec<EphemeralRecord> {
    let mut found: Vec<EphemeralRecord> = std::fs::read_dir(pod.paths.ephemeral())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .filter_map(|path| durable::read_json(&path).ok())
        .collect();
    found.retain(|asked| {
        pod.record
            .every_container()
            .all(|known| known.name != asked.container.name)
    });
    found.sort_by(|one, other| one.container.name.cmp(&other.container.name));
    found
}

fn advance(pod: &mut Pod, containers: &mut Containers<'_>, name: &str, step: Step) {
    let now = clock::now_ns();
    let record = pod.record.ephemeral.iter().map(|added| &added.container);
    let Some(record) = record.clone().find(|record| record.name == name).cloned() else {
        return;
    };
    let Some(status) = pod.status.ephemeral.iter_mut().find(|c| c.name == name) else {
        return;
    };
    match step {
        Step::Created => {
            containers.connect_first(pod, &record);
            pod.event("ContainerCreated", name, "");
        }
        Step::Started => {
            status.state = ContainerState::Running;
            status.reason.clear();
            status.started_at_ns = now;
            status.started = true;
            pod.event("ContainerStarted", name, "");
        }
        Step::Ended(told) => {
            let exit = status::exit(&told);
            let reason = exit.reason.clone();
            status.terminate(exit);
            pod.event("ContainerExited", name, &reason);
        }
        Step::Failed(message) => {
            let message = bounded(&message);
            status.terminate(Exit {
                code: NOT_STARTED,
                signal: 0,
                oom_killed: false,
                started_at_ns: now,
                finished_at_ns: now,
                reason: "StartError".into(),
                message: message.clone(),
            });
            pod.event("ContainerExited", name, &message);
        }
    }
}

/// The life of one container.
async fn live(agent: Agent, record: EphemeralRecord, tell: mpsc::UnboundedSender<(String, Step)>) {
    let name = record.container.name.clone();
    let say = |step| tell.send((name.clone(), step)).is_ok();
    let process = m::ProcessRef {
        container_id: format!("{name}.0"),
        ..Default::default()
    };
    let wanted = match request(&agent, &record).await {
        Ok(wanted) => wanted,
        Err(why) => {
            say(Step::Failed(why));
            return;
        }
    };
    let begun: Result<(), AgentError> = async {
        agent.create_container(&wanted).await?;
        say(Step::Created);
        if let Err(error) = agent.start_container(&process).await {
            let _ = agent.delete_container(&process).await;
            return Err(error);
        }
        Ok(())
    }
    .await;
    if let Err(error) = begun {
        say(Step::Failed(chain(&error)));
        return;
    }
    say(Step::Started);
    // An agent that is not there any more is noticed elsewhere.
    if let Ok(exit) = agent.wait_process(&process).await {
        tokio::time::sleep(LAST_OUTPUT).await;
        say(Step::Ended(exit));
        let _ = agent.delete_container(&process).await;
    }
}

async fn request(
    agent: &Agent,
    record: &EphemeralRecord,
) -> Result<m::CreateContainerRequest, String> {
    let ContainerRecord {
        name,
        oci_spec,
        stdin,
        tty,
        termination_message_path,
        ..
    } = &record.container;
    let mut spec = oci_spec.clone();
    let mut pids = m::PidNamespace::PID_NAMESPACE_OF_SANDBOX;
    if let Some(target) = &record.target {
        let pid = first_process(agent, target).await?;
        join_pids(&mut spec, pid);
        pids = m::PidNamespace::PID_NAMESPACE_OWN;
    }
    Ok(m::CreateContainerRequest {
        container_id: format!("{name}.0"),
        // A value made by serde_json is always written again.
        oci_spec: serde_json::to_vec(&spec).unwrap_or_default(),
        stdio: Some(m::Stdio {
            stdin: *stdin,
            stdout: true,
            stderr: !*tty,
            terminal: *tty,
            rows: 24,
            columns: 80,
            ..Default::default()
        })
        .into(),
        termination_message_path: termination_message_path.clone(),
        pids: pids.into(),
        ..Default::default()
    })
}

/// The guest's number of a container's first process.
async fn first_process(agent: &Agent, target: &str) -> Result<u32, String> {
    let status = agent
        .get_pod_status(&m::Empty::new())
        .await
        .map_err(|error| chain(&error))?;
    status
        .init_containers
        .iter()
        .chain(&status.containers)
        .find(|container| container.name == target)
        .filter(|container| container.state == m::ContainerState::STARTED.into())
        .map(|container| container.pid)
        .filter(|pid| *pid > 0)
        .ok_or_else(|| format!("target container {target:?} is not running"))
}

/// Puts the container's processes among those of the guest's process `pid`.
fn join_pids(spec: &mut Value, pid: u32) {
    let joined = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
    if let Some(namespaces) = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut)
    {
        namespaces.retain(|namespace| namespace["type"] != "pid");
        namespaces.push(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_pids_takes_the_place_of_an_own_namespace() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}});
        join_pids(&mut spec, 7);
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"}])
        );
    }
}
