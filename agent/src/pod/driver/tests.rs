//! The driver with containers that do not exist: they end when the test says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use vmpod_agent_protocol::messages::{ContainerState, EventKind, PodPhase};

use super::*;
use crate::container::{ContainerError, CreateExec, ExecOutcome};
use crate::event_log::EventLog;

#[derive(Clone, Default)]
struct Fake {
    // Shared between the test and the driver's tasks.
    inner: Arc<Mutex<Inner>>,
    log: EventLog,
}

#[derive(Default)]
struct Inner {
    live: HashMap<String, watch::Sender<Option<ExitStatus>>>,
    created: Vec<(String, Option<String>)>,
    signals: Vec<(String, u32)>,
    refuse: HashMap<String, ContainerError>,
    /// Commands that were run in containers, and the code that the next ones end with.
    ran: Vec<(String, String)>,
    code: u32,
}

impl Fake {
    fn end(&self, id: &str, code: u32) {
        let exit = ExitStatus {
            code,
            ..Default::default()
        };
        self.inner.lock().unwrap().live[id].send_replace(Some(exit));
    }

    fn created(&self) -> Vec<String> {
        self.inner
            .lock()
            .unwrap()
            .created
            .iter()
            .map(|(id, _)| id.clone())
            .collect()
    }
}

impl Containers for Fake {
    async fn create(&self, request: CreateContainer) -> Result<u32, ContainerError> {
        let mut inner = self.inner.lock().unwrap();
        if let Some(error) = inner.refuse.get(&request.id) {
            return Err(error.clone());
        }
        inner.created.push((request.id.clone(), request.rootfs));
        inner.live.insert(request.id, watch::Sender::new(None));
        Ok(7)
    }
    async fn create_exec(&self, _: CreateExec) -> Result<u32, ContainerError> {
        Err(ContainerError::Internal("no execs here".into()))
    }
    async fn start(&self, _: &ProcessName) -> Result<(), ContainerError> {
        Ok(())
    }
    fn signal(&self, process: &ProcessName, signal: u32, _: bool) -> Result<(), ContainerError> {
        let mut inner = self.inner.lock().unwrap();
        inner.signals.push((process.container.clone(), signal));
        Ok(())
    }
    async fn wait(&self, process: &ProcessName) -> Result<ExitStatus, ContainerError> {
        let mut watcher = {
            let inner = self.inner.lock().unwrap();
            inner.live[&process.container].subscribe()
        };
        let exit = watcher.wait_for(Option::is_some).await.unwrap();
        Ok(exit.clone().unwrap())
    }
    async fn delete(&self, _: &ProcessName) -> Result<ExitStatus, ContainerError> {
        Ok(ExitStatus::default())
    }
    async fn run(
        &self,
        container: &str,
        process: Vec<u8>,
        _: Duration,
        _: usize,
    ) -> Result<ExecOutcome, ContainerError> {
        let mut inner = self.inner.lock().unwrap();
        let process: serde_json::Value = serde_json::from_slice(&process).unwrap();
        let command = process["args"][0].as_str().unwrap().to_owned();
        inner.ran.push((container.to_owned(), command));
        Ok(ExecOutcome {
            exit: Some(ExitStatus {
                code: inner.code,
                ..Default::default()
            }),
            output: b"its words".to_vec(),
        })
    }
    fn output_tail(&self, _: &str) -> Vec<u8> {
        b"last words".to_vec()
    }
    fn events(&self) -> &EventLog {
        &self.log
    }
}

fn container(name: &str) -> PodContainer {
    PodContainer {
        name: name.into(),
        rootfs: format!("/{name}.0"),
        message_from_logs: true,
        ..Default::default()
    }
}

fn request(policy: messages::RestartPolicy, init: &[&str], main: &[&str]) -> StartPodRequest {
    StartPodRequest {
        restart_policy: policy.into(),
        init_containers: init.iter().map(|n| container(n)).collect(),
        containers: main.iter().map(|n| container(n)).collect(),
        termination_grace_seconds: 30,
        ..Default::default()
    }
}

/// Waits, in the paused clock of the test, until something holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn kinds(response: &messages::NextEventsResponse) -> Vec<EventKind> {
    response
        .events
        .iter()
        .map(|e| e.kind.enum_value().unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn pod_with_an_init_container_runs_to_success() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    pod.start(request(messages::RestartPolicy::NEVER, &["i"], &["a"]))
        .unwrap();
    until("init is created", || fake.created() == ["i.0"]).await;
    assert_eq!(
        pod.status().unwrap().containers[0].reason,
        "PodInitializing"
    );
    fake.end("i.0", 0);
    until("main is created", || fake.created() == ["i.0", "a.0"]).await;
    until("running", || {
        pod.status().unwrap().phase == PodPhase::RUNNING.into()
    })
    .await;
    fake.end("a.0", 0);
    until("finished", || {
        pod.status().unwrap().phase == PodPhase::SUCCEEDED.into()
    })
    .await;
    let status = pod.status().unwrap();
    assert_eq!(status.init_containers[0].reason, "Completed");
    assert!(status.finished_at_ns >= status.started_at_ns);
    let events = fake.log.next(0, 0).await;
    assert_eq!(
        kinds(&events),
        [
            EventKind::POD_PHASE,
            EventKind::POD_PHASE,
            EventKind::POD_FINISHED
        ]
    );
    assert_eq!(
        fake.inner.lock().unwrap().created[1].1.as_deref(),
        Some("/a.0")
    );
}

#[tokio::test(start_paused = true)]
async fn failed_container_is_restarted_on_the_rootfs_that_the_host_provides() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    pod.start(request(messages::RestartPolicy::ON_FAILURE, &[], &["a"]))
        .unwrap();
    until("created", || fake.created().len() == 1).await;
    fake.end("a.0", 3);
    let wanted = |attempt| ProvideRootfsRequest {
        container: "a".into(),
        attempt,
        rootfs: format!("/a.{attempt}"),
        ..Default::default()
    };
    until("asks", || pod.provide_rootfs(wanted(1)).is_ok()).await;
    assert!(
        matches!(
            pod.provide_rootfs(wanted(1)),
            Err(PodError::NotWanted { .. })
        ),
        "once only"
    );
    until("second attempt", || fake.created() == ["a.0", "a.1"]).await;
    assert_eq!(
        fake.inner.lock().unwrap().created[1].1.as_deref(),
        Some("/a.1")
    );
    fake.end("a.1", 4);
    until("backs off", || {
        pod.status().unwrap().containers[0].reason == "CrashLoopBackOff"
    })
    .await;
    let status = pod.status().unwrap().containers[0].clone();
    assert_eq!(status.message, "back-off 10s restarting failed container=a");
    assert_eq!(
        (status.last_exit.code, status.last_exit.message.as_str()),
        (4, "last words")
    );
    pod.provide_rootfs(wanted(2)).unwrap();
    let before = Instant::now();
    until("third attempt", || fake.created().len() == 3).await;
    assert!(
        before.elapsed() >= Duration::from_secs(9),
        "{:?}",
        before.elapsed()
    );
    fake.end("a.2", 0);
    until("succeeded", || {
        pod.status().unwrap().phase == PodPhase::SUCCEEDED.into()
    })
    .await;
    assert_eq!(pod.status().unwrap().containers[0].restart_count, 2);
}

#[tokio::test(start_paused = true)]
async fn container_that_cannot_start_fails_with_its_words() {
    let fake = Fake::default();
    let words = "exec: \"nope\": executable file not found in $PATH";
    fake.inner
        .lock()
        .unwrap()
        .refuse
        .insert("a.0".into(), ContainerError::Start(words.into()));
    let pod = PodDriver::new(fake.clone());
    pod.start(request(messages::RestartPolicy::NEVER, &[], &["a"]))
        .unwrap();
    until("failed", || {
        pod.status().unwrap().phase == PodPhase::FAILED.into()
    })
    .await;
    let status = pod.status().unwrap().containers[0].clone();
    assert_eq!(status.state, ContainerState::TERMINATED.into());
    assert_eq!(
        (
            status.reason.as_str(),
            status.message.as_str(),
            status.exit.code
        ),
        ("StartError", words, 128)
    );
}

#[tokio::test(start_paused = true)]
async fn container_whose_rootfs_the_host_cannot_make_fails_with_the_hosts_words() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    pod.start(request(messages::RestartPolicy::ALWAYS, &[], &["a"]))
        .unwrap();
    until("created", || fake.created().len() == 1).await;
    fake.end("a.0", 0);
    let answer = ProvideRootfsRequest {
        container: "a".into(),
        attempt: 1,
        error: "disk full".into(),
        ..Default::default()
    };
    until("asks", || pod.provide_rootfs(answer.clone()).is_ok()).await;
    until("tells", || {
        pod.status().unwrap().containers[0].last_exit.message == "disk full"
    })
    .await;
    assert_eq!(fake.created().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn stop_signals_then_kills_and_says_why() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    assert!(matches!(
        pod.stop(&StopPodRequest::default()),
        Err(PodError::NotStarted(_))
    ));
    pod.start(request(messages::RestartPolicy::ALWAYS, &[], &["a"]))
        .unwrap();
    assert_eq!(
        pod.start(request(messages::RestartPolicy::ALWAYS, &[], &["a"])),
        Err(PodError::AlreadyStarted)
    );
    until("running", || {
        pod.status().unwrap().phase == PodPhase::RUNNING.into()
    })
    .await;
    let stop = StopPodRequest {
        has_grace: true,
        grace_seconds: 2,
        reason: "asked to".into(),
        ..Default::default()
    };
    pod.stop(&stop).unwrap();
    let signals = || fake.inner.lock().unwrap().signals.clone();
    until("killed", || {
        signals() == [("a.0".to_owned(), 15), ("a.0".to_owned(), 9)]
    })
    .await;
    fake.end("a.0", 137);
    until("failed", || {
        pod.status().unwrap().phase == PodPhase::FAILED.into()
    })
    .await;
    assert_eq!(pod.status().unwrap().message, "asked to");
}

fn exec(command: &str) -> Option<messages::Handler> {
    Some(messages::Handler {
        exec: Some(messages::ExecHandler {
            command: vec![command.into()],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn liveness_that_fails_ends_and_restarts_the_container_and_says_so_in_order() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    let mut request = request(messages::RestartPolicy::ALWAYS, &[], &["a"]);
    request.containers[0].liveness_probe = Some(messages::Probe {
        handler: exec("alive").into(),
        initial_delay_seconds: 5,
        period_seconds: 2,
        failure_threshold: 2,
        ..Default::default()
    })
    .into();
    request.containers[0].pre_stop = exec("bye").into();
    pod.start(request).unwrap();
    fake.inner.lock().unwrap().code = 1;
    let began = Instant::now();
    until("signal", || {
        fake.inner.lock().unwrap().signals == [("a.0".to_owned(), 15)]
    })
    .await;
    // 5 s of delay, then two attempts.
    assert_eq!(began.elapsed().as_secs(), 7);
    let ran = |command: &str| ("a.0".to_owned(), command.to_owned());
    assert_eq!(
        fake.inner.lock().unwrap().ran,
        [ran("alive"), ran("alive"), ran("bye")]
    );
    fake.end("a.0", 0);
    until("asks for a root", || {
        pod.provide_rootfs(ProvideRootfsRequest {
            container: "a".into(),
            attempt: 1,
            rootfs: "/a.1".into(),
            ..Default::default()
        })
        .is_ok()
    })
    .await;
    until("runs again", || {
        let status = pod.status().unwrap().containers[0].clone();
        status.attempt == 1 && status.ready
    })
    .await;
    let events = fake.log.next(0, 0).await.events;
    let words: Vec<_> = events
        .iter()
        .filter(|e| !e.message.is_empty())
        .map(|e| e.message.as_str())
        .collect();
    assert_eq!(
        words,
        [
            "Liveness probe failed: its words",
            "Liveness probe failed: its words",
            "Container a failed liveness probe, will be restarted",
            "PreStopHook failed: command \"bye\" failed: its words",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn readiness_is_in_the_status_and_an_event() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    let mut request = request(messages::RestartPolicy::ALWAYS, &[], &["a"]);
    request.containers[0].readiness_probe = Some(messages::Probe {
        handler: exec("ready").into(),
        period_seconds: 1,
        ..Default::default()
    })
    .into();
    pod.start(request).unwrap();
    let ready = || pod.status().unwrap().containers[0].ready;
    until("ready", ready).await;
    fake.inner.lock().unwrap().code = 1;
    until("not ready", || !ready()).await;
    let status = pod.status().unwrap().containers[0].clone();
    assert!(status.started);
    assert_eq!(status.state, ContainerState::STARTED.into());
    let kinds = kinds(&fake.log.next(0, 0).await);
    let at = |kind| kinds.iter().position(|k| *k == kind).unwrap();
    assert!(at(EventKind::CONTAINER_READY) < at(EventKind::PROBE_FAILED));
    assert!(at(EventKind::PROBE_FAILED) < at(EventKind::CONTAINER_NOT_READY));
}

#[tokio::test(start_paused = true)]
async fn post_start_hook_that_fails_ends_its_container() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    let mut request = request(messages::RestartPolicy::NEVER, &[], &["a", "b"]);
    request.containers[0].post_start = exec("hello").into();
    fake.inner.lock().unwrap().code = 3;
    pod.start(request).unwrap();
    until("signal", || !fake.inner.lock().unwrap().signals.is_empty()).await;
    let status = pod.status().unwrap().containers[0].clone();
    assert_eq!(status.reason, "ContainerCreating");
    assert!(!status.started && !status.ready);
    assert_eq!(fake.created(), ["a.0"], "the next one waits for the hook");
    fake.end("a.0", 143);
    until("the next one", || fake.created() == ["a.0", "b.0"]).await;
}

#[tokio::test(start_paused = true)]
async fn status_that_comes_with_events_waits_for_what_they_tell() {
    let fake = Fake::default();
    let pod = PodDriver::new(fake.clone());
    let told = |kind: EventKind, attempt| messages::Event {
        kind: kind.into(),
        container: "a".into(),
        attempt,
        ..Default::default()
    };
    assert!(
        pod.status_after(&[told(EventKind::CONTAINER_STARTED, 0)])
            .await
            .is_none()
    );
    pod.start(request(messages::RestartPolicy::NEVER, &[], &["a"]))
        .unwrap();
    // The engine says so before the driver has heard of it.
    let started = pod
        .status_after(&[told(EventKind::CONTAINER_STARTED, 0)])
        .await
        .expect("the start is soon in the status");
    assert_eq!(started.containers[0].state, ContainerState::STARTED.into());
    assert!(pod.status_after(&[]).await.is_none());
    let ended = [told(EventKind::CONTAINER_EXITED, 0)];
    let before = Instant::now();
    assert!(pod.status_after(&ended).await.is_none(), "it runs still");
    assert!(before.elapsed() < Duration::from_secs(1));
    fake.end("a.0", 3);
    let status = pod.status_after(&ended).await.expect("its end");
    assert_eq!(
        status.containers[0].state,
        ContainerState::TERMINATED.into()
    );
    assert_eq!(status.phase, PodPhase::FAILED.into());
}
