//! The `Agent` ttrpc service: checks what the host sent against the protocol's limits and calls the part that does it.
//!
//! One instance for all connections, owned by the ttrpc server's tasks. Holds no state of its own.

use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, get_status};
use vmpod_agent_protocol::PROTOCOL_VERSION;
use vmpod_agent_protocol::limits::{NAME_BYTES, OCI_SPEC_BYTES};
use vmpod_agent_protocol::messages::{
    AttachBlockRequest, BlockDevice, CreateContainerRequest, CreateExecRequest, Empty, ExitStatus,
    HandshakeRequest, HandshakeResponse, ListProcessesResponse, NextEventsRequest,
    NextEventsResponse, NextMountsRequest, NextMountsResponse, PidNamespace, PodStatus, ProcessRef,
    ProcessStarted, ProvideRootfsRequest, ResizeTerminalRequest, SignalRequest, StartPodRequest,
    StatsRequest, StatsResponse, StopPodRequest, UpdateContainerRequest,
};
use vmpod_agent_protocol::service::{Agent, create_agent};

use crate::boot::ServiceSocket;
use crate::container::{
    ContainerError, Containers as _, CreateContainer, CreateExec, Engine, ProcessName,
};
use crate::pod::{PodDriver, PodError};
use crate::sandbox::Sandbox;

/// Optional abilities, named in the handshake.
const FEATURES: [&str; 5] = ["pod", "exec", "archive", "connect", "mounts"];

/// How long the deaths of all processes are waited for at the end of the guest.
const DEATH_WAIT: Duration = Duration::from_secs(5);

/// What is left between the answer to Shutdown and the end, for the answer to leave.
const ANSWER_TIME: Duration = Duration::from_millis(10);

/// The service's implementation.
#[derive(Debug)]
pub struct AgentService {
    engine: Engine,
    pod: PodDriver<Engine>,
    sandbox: Sandbox,
    ready_at_us: u64,
    // The connection that said "ready"; taken by the first handshake.
    ready: Mutex<Option<OwnedFd>>,
}

impl AgentService {
    /// A service on `engine`. `ready` is the connection that told the host of the agent, `ready_at_us` the moment at
    /// which the agent began to listen.
    pub fn new(engine: Engine, ready: Option<OwnedFd>, ready_at_us: u64) -> Self {
        AgentService {
            pod: PodDriver::new(engine.clone()),
            sandbox: Sandbox::new(engine.clone()),
            engine,
            ready_at_us,
            ready: Mutex::new(ready),
        }
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    )
}

fn refusal(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text))
}

fn of_container(error: ContainerError) -> ttrpc::Error {
    let code = match error {
        ContainerError::NotFound(_) => Code::NOT_FOUND,
        ContainerError::AlreadyExists(_) => Code::ALREADY_EXISTS,
        ContainerError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
        ContainerError::InvalidArgument(_) => Code::INVALID_ARGUMENT,
        // The command or the container's own set-up is to blame, not the agent.
        ContainerError::Start(_) => Code::ABORTED,
        ContainerError::Internal(_) => Code::INTERNAL,
    };
    refusal(code, error)
}

fn of_pod(error: PodError) -> ttrpc::Error {
    let code = match error {
        PodError::Invalid(_) => Code::INVALID_ARGUMENT,
        PodError::AlreadyStarted => Code::ALREADY_EXISTS,
        PodError::NotStarted(_) | PodError::NotWanted { .. } => Code::FAILED_PRECONDITION,
    };
    refusal(code, error)
}

fn bounded(what: &str, length: usize, limit: usize) -> ttrpc::Result<()> {
    if length > limit {
        return Err(refusal(
            Code::INVALID_ARGUMENT,
            format!("{what} of {length} bytes exceeds the limit of {limit} bytes"),
        ));
    }
    Ok(())
}

fn name(container_id: String, exec_id: String) -> ttrpc::Result<ProcessName> {
    bounded("container_id", container_id.len(), NAME_BYTES)?;
    bounded("exec_id", exec_id.len(), NAME_BYTES)?;
    Ok(ProcessName {
        container: container_id,
        exec: exec_id,
    })
}

fn named(request: ProcessRef) -> ttrpc::Result<ProcessName> {
    name(request.container_id, request.exec_id)
}

type Answer<T = Empty> = ttrpc::Result<T>;

#[async_trait]
impl Agent for AgentService {
    async fn handshake(
        &self,
        _context: &TtrpcContext,
        request: HandshakeRequest,
    ) -> Answer<HandshakeResponse> {
        drop(
            self.ready
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        if request.version != PROTOCOL_VERSION {
            return Err(refusal(
                Code::FAILED_PRECONDITION,
                format!(
                    "the host speaks protocol version {}, this agent speaks {PROTOCOL_VERSION}: install a guest image \
                     of the same release as the host's programs",
                    request.version
                ),
            ));
        }
        if let Some(sandbox) = request.sandbox.as_ref() {
            self.sandbox.configure(sandbox).map_err(of_container)?;
        }
        Ok(HandshakeResponse {
            version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.map(str::to_owned).to_vec(),
            kernel_release: kernel_release(),
            ready_at_us: self.ready_at_us,
            ..Default::default()
        })
    }

    async fn attach_block(
        &self,
        _context: &TtrpcContext,
        request: AttachBlockRequest,
    ) -> Answer<BlockDevice> {
        self.sandbox.attach_block(&request).map_err(of_container)
    }

    async fn create_container(
        &self,
        _context: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<ProcessStarted> {
        bounded(
            "termination_message_path",
            request.termination_message_path.len(),
            NAME_BYTES,
        )?;
        let pids = request.pids.enum_value_or_default();
        if pids == PidNamespace::PID_NAMESPACE_POD {
            self.sandbox.share_pids().map_err(of_container)?;
        }
        let pid = self
            .engine
            .create(CreateContainer {
                id: request.container_id,
                spec: request.oci_spec,
                rootfs: None,
                stdio: request.stdio.unwrap_or_default(),
                termination_message_path: request.termination_message_path,
                label: None,
                own_pids: pids == PidNamespace::PID_NAMESPACE_OWN,
            })
            .await
            .map_err(of_container)?;
        Ok(ProcessStarted {
            pid,
            ..Default::default()
        })
    }

    async fn start_container(&self, _context: &TtrpcContext, request: ProcessRef) -> Answer {
        let process = ProcessName::container(named(request)?.container);
        self.engine.start(&process).await.map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn delete_container(
        &self,
        _context: &TtrpcContext,
        request: ProcessRef,
    ) -> Answer<ExitStatus> {
        let process = named(request)?;
        self.engine.delete(&process).await.map_err(of_container)
    }

    async fn pause_container(&self, _context: &TtrpcContext, request: ProcessRef) -> Answer {
        let process = named(request)?;
        self.engine
            .freeze(&process.container, true)
            .await
            .map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn resume_container(&self, _context: &TtrpcContext, request: ProcessRef) -> Answer {
        let process = named(request)?;
        self.engine
            .freeze(&process.container, false)
            .await
            .map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn update_container(
        &self,
        _context: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer {
        bounded("oci_resources", request.oci_resources.len(), OCI_SPEC_BYTES)?;
        self.engine
            .update(&request.container_id, &request.oci_resources)
            .map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn container_stats(
        &self,
        _context: &TtrpcContext,
        request: StatsRequest,
    ) -> Answer<StatsResponse> {
        self.engine
            .statistics(&request.container_id)
            .map_err(of_container)
    }

    async fn list_processes(
        &self,
        _context: &TtrpcContext,
        request: ProcessRef,
    ) -> Answer<ListProcessesResponse> {
        let process = named(request)?;
        self.engine
            .processes(&process.container)
            .map_err(of_container)
    }

    async fn create_exec(
        &self,
        _context: &TtrpcContext,
        request: CreateExecRequest,
    ) -> Answer<ProcessStarted> {
        let pid = self
            .engine
            .create_exec(CreateExec {
                container: request.container_id,
                exec: request.exec_id,
                process: request.oci_process,
                stdio: request.stdio.unwrap_or_default(),
            })
            .await
            .map_err(of_container)?;
        Ok(ProcessStarted {
            pid,
            ..Default::default()
        })
    }

    async fn start_exec(&self, _context: &TtrpcContext, request: ProcessRef) -> Answer {
        let process = named(request)?;
        if process.is_container() {
            return Err(refusal(
                Code::INVALID_ARGUMENT,
                "start exec: exec_id is empty",
            ));
        }
        self.engine.start(&process).await.map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn signal_process(&self, _context: &TtrpcContext, request: SignalRequest) -> Answer {
        let process = name(request.container_id, request.exec_id)?;
        self.engine
            .signal(&process, request.signal, request.all)
            .map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn wait_process(
        &self,
        _context: &TtrpcContext,
        request: ProcessRef,
    ) -> Answer<ExitStatus> {
        let process = named(request)?;
        self.engine.wait(&process).await.map_err(of_container)
    }

    async fn resize_terminal(
        &self,
        _context: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Answer {
        let process = name(request.container_id, request.exec_id)?;
        self.engine
            .resize(&process, request.rows, request.columns)
            .map_err(of_container)?;
        Ok(Empty::default())
    }

    async fn start_pod(&self, _context: &TtrpcContext, request: StartPodRequest) -> Answer {
        self.pod.start(request).map_err(of_pod)?;
        Ok(Empty::default())
    }

    async fn provide_rootfs(
        &self,
        _context: &TtrpcContext,
        request: ProvideRootfsRequest,
    ) -> Answer {
        self.pod.provide_rootfs(request).map_err(of_pod)?;
        Ok(Empty::default())
    }

    async fn stop_pod(&self, _context: &TtrpcContext, request: StopPodRequest) -> Answer {
        self.pod.stop(&request).map_err(of_pod)?;
        Ok(Empty::default())
    }

    async fn get_pod_status(&self, _context: &TtrpcContext, _request: Empty) -> Answer<PodStatus> {
        self.pod.status().map_err(of_pod)
    }

    async fn next_events(
        &self,
        _context: &TtrpcContext,
        request: NextEventsRequest,
    ) -> Answer<NextEventsResponse> {
        let events = self.engine.events();
        let mut answer = events.next(request.after_sequence, request.wait_ms).await;
        answer.status = self.pod.status_after(&answer.events).await.into();
        Ok(answer)
    }

    async fn next_mounts(
        &self,
        _context: &TtrpcContext,
        request: NextMountsRequest,
    ) -> Answer<NextMountsResponse> {
        let mounts = self.engine.volume_mounts();
        Ok(mounts.next(request.done, request.wait_ms).await)
    }

    async fn shutdown(&self, _context: &TtrpcContext, _request: Empty) -> Answer {
        self.engine.kill_all(DEATH_WAIT).await;
        nix::unistd::sync();
        self.sandbox.unmount();
        tokio::spawn(async {
            tokio::time::sleep(ANSWER_TIME).await;
            crate::boot::end_machine();
        });
        Ok(Empty::default())
    }
}

/// Starts to serve `service` on a listening socket; the tasks live until the runtime ends.
pub async fn serve(service: AgentService, socket: ServiceSocket) -> ttrpc::Result<Server> {
    let methods = create_agent(Arc::new(service));
    let server = Server::new();
    let mut server = match socket {
        // SAFETY: the descriptor listens, is open, and its ownership ends here.
        ServiceSocket::Vsock(fd) => unsafe { server.add_vsock_listener(fd.into_raw_fd())? },
        // SAFETY: as above.
        ServiceSocket::Unix(fd) => unsafe { server.add_unix_listener(fd.into_raw_fd())? },
    }
    .register_service(methods);
    server.start().await?;
    Ok(server)
}
