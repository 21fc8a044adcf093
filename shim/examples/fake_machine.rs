//! A VMM that boots nothing: it speaks the control protocol, surfaces a vsock, and answers as an agent would. The sandbox
//! tests put it in the place of `vmpod-vmm`, so that the host's side of a pod is tested without KVM.
//!
//! Its name says how it behaves, because a VMM gets no environment: `machine-run` or any other as usual; it may `refuse` the
//! configuration, `die` before the agent is ready, `restart` each container once, `linger` until it is stopped, send
//! things to other hosts (`outgoing`) and linger, `crash` while the pod runs.

use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use ttrpc::asynchronous::{Server, TtrpcContext};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::service::{Agent, create_agent};
use vmpod_agent_protocol::stream::{
    StdioStream, StreamHeader, StreamReply, decode_line, encode_line,
};
use vmpod_agent_protocol::{AGENT_PORT, PROTOCOL_VERSION, READY_PORT};
use vmpod_vmm_api::{Event, ExitReason, Message, Reply, Request};

/// How long a container works: as long as a host under load may take to see it running and to connect to its output.
const WORK: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap();
    let mode = name.rsplit_once("/machine-").map_or("", |(_, mode)| mode);
    assert_eq!(arguments.next().as_deref(), Some("--control-fd"));
    let number = arguments.next().unwrap().parse().unwrap();
    // SAFETY: the pod host passes this descriptor on for us to own.
    let control = unsafe { std::os::unix::net::UnixStream::from_raw_fd(number) };
    control.set_nonblocking(true).unwrap();
    let (reader, mut writer) = UnixStream::from_std(control).unwrap().into_split();
    let mut lines = BufReader::new(reader).lines();
    let gone = Arc::new(Notify::new());
    // A file beside the console's that tells tests of the request to open the uplink.
    let mut opened = PathBuf::new();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.unwrap(),
            () = gone.notified() => {
                let exit = if mode == "crash" {
                    ExitReason::Panic { message: "Kernel panic - not syncing: fake".into() }
                } else {
                    ExitReason::Reset
                };
                say(&mut writer, &Message::Event(Event::Exited { exit })).await;
                return;
            }
        };
        let Some(line) = line else { return };
        match serde_json::from_str(&line).unwrap() {
            Request::Create(config) => {
                config.validate().unwrap();
                opened = config.console_log.with_file_name("uplink-opened");
                std::fs::write(&config.console_log, "Linux version fake\nRun /init\n").unwrap();
                if mode == "refuse" {
                    let message = "cannot open the kernel".into();
                    say(&mut writer, &Message::Reply(Reply::Error { message })).await;
                    continue;
                }
                say(&mut writer, &Message::Reply(Reply::Done)).await;
                if mode == "die" {
                    let exit = ExitReason::TripleFault;
                    say(&mut writer, &Message::Event(Event::Exited { exit })).await;
                    return;
                }
                let uds = config.vsock.unwrap().uds_path;
                let shared = config.shares[0].path.clone();
                start_guest(uds, shared, mode.to_owned(), Arc::clone(&gone)).await;
                if mode == "outgoing" {
                    let held = config.nets[0].own_network.expect("nothing is to be held");
                    assert!(held.prefix > 0);
                    say(&mut writer, &Message::Event(Event::UplinkWanted)).await;
                }
            }
            Request::OpenUplink => {
                std::fs::write(&opened, "").unwrap();
                say(&mut writer, &Message::Reply(Reply::Done)).await;
            }
            Request::Stop => {
                say(&mut writer, &Message::Reply(Reply::Done)).await;
                return;
            }
            _ => say(&mut writer, &Message::Reply(Reply::Done)).await,
        }
    }
}

async fn say(writer: &mut tokio::net::unix::OwnedWriteHalf, message: &Message) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    writer.write_all(&line).await.unwrap();
}

async fn start_guest(uds: PathBuf, shared: PathBuf, mode: String, gone: Arc<Notify>) {
    let listener = UnixListener::bind(&uds).unwrap();
    let service = uds.with_file_name("fake-agent.sock");
    let guest = Guest {
        shared,
        mode,
        gone,
        state: Arc::default(),
        changed: Arc::new(Notify::new()),
    };
    let mut server = Server::new()
        .bind(&format!("unix://{}", service.display()))
        .unwrap()
        .register_service(create_agent(Arc::new(guest.clone())));
    server.start().await.unwrap();
    std::mem::forget(server);
    let ready = PathBuf::from(format!("{}_{READY_PORT}", uds.display()));
    drop(UnixStream::connect(ready).await.unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, service.clone(), guest.clone()));
        }
    });
}

async fn read_line(stream: &mut UnixStream) -> Vec<u8> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(b'\n') | Err(_) => return line,
            Ok(byte) => line.push(byte),
        }
    }
}

async fn serve(mut stream: UnixStream, service: PathBuf, guest: Guest) {
    let line = String::from_utf8(read_line(&mut stream).await).unwrap();
    let port: u32 = line.strip_prefix("CONNECT ").unwrap().parse().unwrap();
    stream
        .write_all(format!("OK {port}\n").as_bytes())
        .await
        .unwrap();
    if port == AGENT_PORT {
        let mut agent = UnixStream::connect(service).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut agent).await;
        return;
    }
    let line = read_line(&mut stream).await;
    let reply = encode_line(&StreamReply::Ready).unwrap();
    stream.write_all(&reply).await.unwrap();
    match decode_line::<StreamHeader>(&line).unwrap() {
        StreamHeader::Stdio {
            container,
            stream: StdioStream::Stdout,
            ..
        } => {
            let text = guest.output_of(&container);
            stream.write_all(text.as_bytes()).await.unwrap();
        }
        StreamHeader::Stdio { .. } => {}
        other => panic!("{other:?}"),
    }
}

#[derive(Clone)]
struct Guest {
    shared: PathBuf,
    mode: String,
    gone: Arc<Notify>,
    /// Shared by the connections of the service.
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    names: Vec<String>,
    attempts: Vec<u32>,
    events: Vec<m::Event>,
    phase: m::PodPhase,
}

impl Guest {
    /// What a container prints: what its root file system holds.
    fn output_of(&self, id: &str) -> String {
        let root = self.shared.join("containers").join(id).join("rootfs");
        let greeting = std::fs::read_to_string(root.join("greeting")).unwrap_or_default();
        let mark = root.join("mark");
        let fresh = !mark.exists();
        std::fs::write(&mark, "x").unwrap();
        format!("{id} says {} fresh={fresh}\n", greeting.trim())
    }

    fn push(&self, kind: m::EventKind, container: &str, attempt: u32) {
        let mut state = self.state.lock().unwrap();
        let sequence = state.events.len() as u64 + 1;
        state.events.push(m::Event {
            sequence,
            kind: kind.into(),
            at_ns: 1,
            container: container.to_owned(),
            container_id: format!("{container}.{attempt}"),
            attempt,
            ..Default::default()
        });
        drop(state);
        self.changed.notify_waiters();
    }

    fn run_attempt(&self, container: &str, attempt: u32) {
        self.push(m::EventKind::CONTAINER_CREATED, container, attempt);
        self.push(m::EventKind::CONTAINER_STARTED, container, attempt);
    }

    fn finish(&self, phase: m::PodPhase) {
        self.state.lock().unwrap().phase = phase;
        self.push(m::EventKind::POD_FINISHED, "", 0);
    }
}

#[async_trait]
impl Agent for Guest {
    async fn handshake(
        &self,
        _: &TtrpcContext,
        request: m::HandshakeRequest,
    ) -> ttrpc::Result<m::HandshakeResponse> {
        if let Some(sandbox) = request.sandbox.as_ref() {
            assert_eq!(sandbox.interfaces.len(), 1);
            assert!(std::fs::read_to_string(self.shared.join("etc/hosts")).is_ok());
            // What a hostile guest could try: the tree itself is read-only.
            assert!(std::fs::write(self.shared.join("planted"), "x").is_err());
        }
        Ok(m::HandshakeResponse {
            version: PROTOCOL_VERSION,
            agent_version: "fake".into(),
            ..Default::default()
        })
    }

    async fn start_pod(
        &self,
        _: &TtrpcContext,
        request: m::StartPodRequest,
    ) -> ttrpc::Result<m::Empty> {
        let guest = self.clone();
        tokio::spawn(async move {
            for container in &request.containers {
                let mut state = guest.state.lock().unwrap();
                state.names.push(container.name.clone());
                state.attempts.push(0);
            }
            guest.state.lock().unwrap().phase = m::PodPhase::RUNNING;
            for container in &request.containers {
                guest.run_attempt(&container.name, 0);
            }
            tokio::time::sleep(WORK).await;
            match guest.mode.as_str() {
                "restart" => {
                    for container in &request.containers {
                        guest.push(m::EventKind::ROOTFS_WANTED, &container.name, 1);
                    }
                }
                "linger" | "outgoing" => {}
                "crash" => guest.gone.notify_waiters(),
                _ => guest.finish(m::PodPhase::SUCCEEDED),
            }
        });
        Ok(m::Empty::new())
    }

    async fn provide_rootfs(
        &self,
        _: &TtrpcContext,
        request: m::ProvideRootfsRequest,
    ) -> ttrpc::Result<m::Empty> {
        assert_eq!(request.error, "");
        let guest = self.clone();
        tokio::spawn(async move {
            guest.run_attempt(&request.container, request.attempt);
            {
                let mut state = guest.state.lock().unwrap();
                let index = state
                    .names
                    .iter()
                    .position(|n| *n == request.container)
                    .unwrap();
                state.attempts[index] = request.attempt;
            }
            tokio::time::sleep(WORK).await;
            guest.finish(m::PodPhase::SUCCEEDED);
        });
        Ok(m::Empty::new())
    }

    async fn stop_pod(&self, _: &TtrpcContext, _: m::StopPodRequest) -> ttrpc::Result<m::Empty> {
        self.finish(m::PodPhase::FAILED);
        Ok(m::Empty::new())
    }

    async fn get_pod_status(&self, _: &TtrpcContext, _: m::Empty) -> ttrpc::Result<m::PodStatus> {
        let state = self.state.lock().unwrap();
        let code = match state.phase {
            m::PodPhase::FAILED => Some(143),
            m::PodPhase::SUCCEEDED => Some(0),
            _ => None,
        };
        Ok(m::PodStatus {
            phase: state.phase.into(),
            containers: state
                .names
                .iter()
                .zip(&state.attempts)
                .map(|(name, attempt)| m::ContainerStatus {
                    name: name.clone(),
                    attempt: *attempt,
                    state: match code {
                        None => m::ContainerState::STARTED,
                        Some(_) => m::ContainerState::TERMINATED,
                    }
                    .into(),
                    exit: code
                        .map(|code| m::ExitStatus {
                            code,
                            ..Default::default()
                        })
                        .into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }

    async fn next_events(
        &self,
        _: &TtrpcContext,
        request: m::NextEventsRequest,
    ) -> ttrpc::Result<m::NextEventsResponse> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(request.wait_ms.into());
        loop {
            let changed = self.changed.notified();
            let events: Vec<m::Event> = self
                .state
                .lock()
                .unwrap()
                .events
                .iter()
                .filter(|event| event.sequence > request.after_sequence)
                .cloned()
                .collect();
            if !events.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(m::NextEventsResponse {
                    events,
                    first_kept: 1,
                    ..Default::default()
                });
            }
        }
    }

    async fn shutdown(&self, _: &TtrpcContext, _: m::Empty) -> ttrpc::Result<m::Empty> {
        self.gone.notify_waiters();
        Ok(m::Empty::new())
    }
}
