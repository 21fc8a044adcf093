//! What the events of containers ask of the host: logs, and a fresh root file system for each further attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use vmpod_agent_protocol::messages as m;

use super::Pod;
use super::stdio::Outputs;
use crate::pod::agent::Agent;
use crate::pod::clock;
use crate::pod::events::PodEvent;
use crate::pod::guest_paths;
use crate::pod::journal::chain;
use crate::pod::record::ContainerRecord;
use crate::pod::roots::PodPaths;
use crate::pod::status::{self, ContainerState, bounded};
use crate::pod::tree::{SharedTree, TreeError, remove_tree};

/// Logs of earlier attempts that are kept for each container, beside the present one.
const LOGS_KEPT: u32 = 2;

/// The host's part of a pod's containers.
pub(super) struct Containers<'a> {
    tree: &'a SharedTree,
    outputs: Outputs,
    /// The attempt that each container has a root file system for.
    attempts: BTreeMap<String, u32>,
}

impl<'a> Containers<'a> {
    pub(super) fn new(paths: &PodPaths, tree: &'a SharedTree) -> Self {
        Self {
            tree,
            outputs: Outputs::new(paths.vsock()),
            attempts: BTreeMap::new(),
        }
    }

    /// Takes in one event. Containers and attempts that the host does not know of are passed over: the agent's words are
    /// no authority on what exists.
    pub(super) async fn take(&mut self, pod: &mut Pod, agent: &Agent, event: &m::Event) {
        let kind = event.kind.enum_value_or(m::EventKind::UNKNOWN);
        // What becomes of ephemeral containers is said by whoever makes them.
        let mut added = pod.record.ephemeral.iter();
        if added.any(|added| event.container == format!("{}.0", added.container.name)) {
            return;
        }
        log(pod, kind, event);
        let Some(record) = find(pod, &event.container).cloned() else {
            return;
        };
        let known = self.attempts.get(&record.name).copied().unwrap_or(0);
        match kind {
            m::EventKind::CONTAINER_CREATED | m::EventKind::CONTAINER_STARTED
                if event.attempt == known =>
            {
                self.connect(pod, &record, known);
            }
            m::EventKind::ROOTFS_WANTED => {
                self.provide(pod, agent, &record, known, event.attempt)
                    .await;
            }
            _ => {}
        }
    }

    /// Connects what the status says is running: an event may have been lost.
    pub(super) fn connect_running(&mut self, pod: &Pod) {
        let running: Vec<(String, u32)> = pod
            .status
            .all_containers()
            .filter(|container| container.state == ContainerState::Running)
            .map(|container| (container.name.clone(), container.attempt))
            .collect();
        for (name, attempt) in running {
            if let Some(record) = find(pod, &name)
                && self.attempts.get(&name).copied().unwrap_or(0) == attempt
            {
                self.connect(pod, record, attempt);
            }
        }
    }

    /// The root file system and the files of a container that is added.
    pub(super) fn add(&self, record: &ContainerRecord) -> Result<(), TreeError> {
        self.tree.add_container(&record.name)?;
        self.tree.mount_rootfs(record, 0)
    }

    /// Writes the output of a container's first attempt to its log.
    pub(super) fn connect_first(&mut self, pod: &Pod, record: &ContainerRecord) {
        self.connect(pod, record, 0);
    }

    pub(super) async fn drain(&mut self, limit: Duration) {
        self.outputs.drain(limit).await;
    }

    fn connect(&mut self, pod: &Pod, record: &ContainerRecord, attempt: u32) {
        self.outputs.connect(
            &format!("{}.{attempt}", record.name),
            record.tty,
            &pod.paths.log(&record.name, attempt),
        );
    }

    async fn provide(
        &mut self,
        pod: &mut Pod,
        agent: &Agent,
        record: &ContainerRecord,
        known: u32,
        attempt: u32,
    ) {
        // Attempts go up one by one; asking again for the present one is a question repeated.
        let made = if attempt == known && attempt > 0 {
            Ok(())
        } else if known.checked_add(1) == Some(attempt) {
            self.tree
                .mount_rootfs(record, attempt)
                .map_err(|error| chain(&error))
        } else {
            Err(format!("attempt {attempt} does not follow attempt {known}"))
        };
        let mut answer = m::ProvideRootfsRequest {
            container: record.name.clone(),
            attempt,
            ..Default::default()
        };
        match made {
            Ok(()) => {
                self.attempts.insert(record.name.clone(), attempt);
                if known != attempt {
                    self.outputs.forget(&format!("{}.{known}", record.name));
                }
                if let Some(old) = attempt.checked_sub(LOGS_KEPT + 1) {
                    let log = pod.paths.log(&record.name, old);
                    let mut before = log.clone().into_os_string();
                    before.push(".1");
                    let _ = remove_tree(&log);
                    let _ = remove_tree(before.as_ref());
                }
                answer.rootfs = guest_paths::rootfs(&record.name, attempt);
            }
            Err(message) => {
                pod.event("RootfsFailed", &record.name, &message);
                answer.error = message;
            }
        }
        if let Err(error) = agent.provide_rootfs(&answer).await {
            tracing::warn!(
                error = chain(&error),
                "the agent refuses a root file system"
            );
        }
    }
}

fn find<'p>(pod: &'p Pod, name: &str) -> Option<&'p ContainerRecord> {
    pod.record
        .every_container()
        .find(|container| container.name == name)
}

fn log(pod: &mut Pod, kind: m::EventKind, event: &m::Event) {
    let kind = match kind {
        m::EventKind::CONTAINER_CREATED => "ContainerCreated",
        m::EventKind::CONTAINER_STARTED => "ContainerStarted",
        m::EventKind::CONTAINER_EXITED => "ContainerExited",
        m::EventKind::CONTAINER_OOM => "ContainerOutOfMemory",
        m::EventKind::CONTAINER_BACKOFF => "ContainerBackOff",
        m::EventKind::EXEC_STARTED => "ExecStarted",
        m::EventKind::EXEC_EXITED => "ExecExited",
        m::EventKind::POD_PHASE => "PodPhase",
        m::EventKind::PROBE_FAILED => "Unhealthy",
        m::EventKind::CONTAINER_KILLING => "Killing",
        m::EventKind::POST_START_FAILED => "FailedPostStartHook",
        m::EventKind::PRE_STOP_FAILED => "FailedPreStopHook",
        m::EventKind::CONTAINER_READY => "ContainerReady",
        m::EventKind::CONTAINER_NOT_READY => "ContainerNotReady",
        m::EventKind::CONTAINER_STARTUP_PASSED => "ContainerStartupPassed",
        m::EventKind::POST_START_DONE => "PostStartHookDone",
        // The first is between agent and host, the second said by the supervisor itself.
        m::EventKind::ROOTFS_WANTED | m::EventKind::POD_FINISHED | m::EventKind::UNKNOWN => return,
    };
    let exit = event.exit.as_ref().map(status::exit);
    let message = match (&exit, event.message.is_empty()) {
        (Some(exit), true) => exit.reason.clone(),
        _ if kind == "PodPhase" => format!("{:?}", event.phase.enum_value_or_default()),
        _ => bounded(&event.message),
    };
    let line = PodEvent {
        at_ns: if event.at_ns > 0 {
            event.at_ns
        } else {
            clock::now_ns()
        },
        pod: pod.record.id.clone(),
        name: pod.record.name.clone(),
        kind: kind.to_owned(),
        container: bounded(&event.container),
        attempt: event.attempt,
        exit_code: exit.map(|exit| exit.code),
        message,
    };
    pod.events.append(&line);
}
