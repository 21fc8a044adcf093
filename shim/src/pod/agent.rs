//! The host's end of the agent's service: each call bounded in time, each error saying which call on which pod.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::service::AgentClient;
use vmpod_agent_protocol::{AGENT_PORT, PROTOCOL_VERSION};
use vmpod_vmm_api::Attached;

use super::hybrid_vsock::{self, GuestConnectError};
use super::status::bounded;

/// Bound of an ordinary call. A guest under full load answers within it; a hung one does not hang the host.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection.
    #[error("cannot reach the pod's agent")]
    Connect(#[from] GuestConnectError),
    /// No answer in time.
    #[error("the agent did not answer {call} within {} s", limit.as_secs_f32())]
    Silent {
        /// Name of the call.
        call: &'static str,
        /// The bound.
        limit: Duration,
    },
    /// The agent refused.
    #[error("{}", bounded(message))]
    Refused {
        /// Name of the call.
        call: &'static str,
        /// Status code of the answer.
        code: ttrpc::Code,
        /// The agent's words.
        message: String,
    },
    /// The connection or the encoding failed.
    #[error("{call} failed on the connection to the agent")]
    Transport {
        /// Name of the call.
        call: &'static str,
        /// What went wrong.
        #[source]
        source: ttrpc::Error,
    },
    /// The agent speaks another version.
    #[error(
        "the agent speaks protocol version {theirs}, this vmpod speaks {PROTOCOL_VERSION}; the guest image and vmpod are not of one build"
    )]
    Version {
        /// The agent's version.
        theirs: u32,
    },
}

impl AgentError {
    /// Whether the agent itself said no, as opposed to not being there.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the agent does not know what the call was about.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: ttrpc::Code::NOT_FOUND,
                ..
            }
        )
    }
}

/// A connection to the agent after the handshake.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// When the agent refuses or does not answer in [`CALL_LIMIT`].
            pub async fn $name(&self, request: &m::$request) -> Result<m::$response, AgentError> {
                within(
                    stringify!($name),
                    CALL_LIMIT,
                    self.client.$name(context::with_duration(CALL_LIMIT), request),
                )
                .await
            }
        )*
    };
}

impl Agent {
    /// Connects through `socket` and shakes hands.
    ///
    /// # Errors
    /// When the agent cannot be reached within `limit` or speaks another version.
    pub async fn connect(
        socket: &Path,
        limit: Duration,
    ) -> Result<(Self, m::HandshakeResponse), AgentError> {
        Self::greet(socket, limit, None).await
    }

    /// Connects through `socket`, shakes hands, and has the agent make the pod's namespaces, network and mounts by `sandbox`.
    ///
    /// # Errors
    /// When the agent cannot be reached within `limit`, speaks another version, or refuses.
    pub async fn greet(
        socket: &Path,
        limit: Duration,
        sandbox: Option<m::SandboxConfig>,
    ) -> Result<(Self, m::HandshakeResponse), AgentError> {
        let stream = hybrid_vsock::connect(socket, AGENT_PORT, limit).await?;
        let agent = Self {
            client: AgentClient::new(Client::new(Socket::new(stream))),
        };
        let request = m::HandshakeRequest {
            version: PROTOCOL_VERSION,
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
            sandbox: sandbox.into(),
            ..Default::default()
        };
        let answer = within(
            "handshake",
            limit,
            agent
                .client
                .handshake(context::with_duration(limit), &request),
        )
        .await?;
        if answer.version != PROTOCOL_VERSION {
            return Err(AgentError::Version {
                theirs: answer.version,
            });
        }
        Ok((agent, answer))
    }

    /// Has the guest's kernel find the block device that was attached as `place`. Returns its major and minor number.
    ///
    /// # Errors
    /// When the agent refuses or does not answer in [`CALL_LIMIT`].
    pub async fn attach_block(
        &self,
        place: &Attached,
        serial: String,
    ) -> Result<(u32, u32), AgentError> {
        let request = m::AttachBlockRequest {
            address: place.address,
            size: place.size,
            irq: place.irq,
            serial,
            ..Default::default()
        };
        let call = self
            .client
            .attach_block(context::with_duration(CALL_LIMIT), &request);
        let found = within("attach_block", CALL_LIMIT, call).await?;
        Ok((found.major, found.minor))
    }

    calls! {
        /// Hands the whole pod over.
        start_pod(StartPodRequest) -> Empty;
        /// Answers a wish for a root file system.
        provide_rootfs(ProvideRootfsRequest) -> Empty;
        /// Asks the pod to end.
        stop_pod(StopPodRequest) -> Empty;
        /// The pod's status.
        get_pod_status(Empty) -> PodStatus;
        /// Makes a container, waiting.
        create_container(CreateContainerRequest) -> ProcessStarted;
        /// Lets it go.
        start_container(ProcessRef) -> Empty;
        /// Removes a process that has ended or was never started.
        delete_container(ProcessRef) -> ExitStatus;
        /// Freezes a container.
        pause_container(ProcessRef) -> Empty;
        /// Thaws it.
        resume_container(ProcessRef) -> Empty;
        /// Changes a container's limits.
        update_container(UpdateContainerRequest) -> Empty;
        /// Makes a further process, waiting.
        create_exec(CreateExecRequest) -> ProcessStarted;
        /// Lets it go.
        start_exec(ProcessRef) -> Empty;
        /// Signals a process.
        signal_process(SignalRequest) -> Empty;
        /// Sets a terminal's size.
        resize_terminal(ResizeTerminalRequest) -> Empty;
        /// Counters of containers and interfaces.
        container_stats(StatsRequest) -> StatsResponse;
        /// Processes of a container.
        list_processes(ProcessRef) -> ListProcessesResponse;
    }

    /// Waits for events after `after`, at most `wait`.
    ///
    /// # Errors
    /// When the agent refuses or does not answer some time after `wait`.
    pub async fn next_events(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<m::NextEventsResponse, AgentError> {
        let limit = wait + CALL_LIMIT;
        let request = m::NextEventsRequest {
            after_sequence: after,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        within(
            "next_events",
            limit,
            self.client
                .next_events(context::with_duration(limit), &request),
        )
        .await
    }

    /// Waits for other mounts in shared volumes than those of generation `done`, at most `wait`.
    ///
    /// # Errors
    /// When the agent refuses or does not answer some time after `wait`.
    pub async fn next_mounts(
        &self,
        done: u64,
        wait: Duration,
    ) -> Result<m::NextMountsResponse, AgentError> {
        let limit = wait + CALL_LIMIT;
        let request = m::NextMountsRequest {
            done,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        within(
            "next_mounts",
            limit,
            self.client
                .next_mounts(context::with_duration(limit), &request),
        )
        .await
    }

    /// Waits for a process to end, for as long as it takes: ends with the connection.
    ///
    /// # Errors
    /// When the agent does not know the process or the connection ends.
    pub async fn wait_process(&self, process: &m::ProcessRef) -> Result<m::ExitStatus, AgentError> {
        self.client
            .wait_process(ttrpc::context::Context::default(), process)
            .await
            .map_err(|error| refusal("wait_process", error))
    }

    /// Lets the machine go.
    ///
    /// # Errors
    /// When the agent does not answer within `limit`: it may have been quicker to go than to answer.
    pub async fn shutdown(&self, limit: Duration) -> Result<(), AgentError> {
        within(
            "shutdown",
            limit,
            self.client
                .shutdown(context::with_duration(limit), &m::Empty::new()),
        )
        .await
        .map(|_| ())
    }
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(refusal(call, error)),
        Err(_) => Err(AgentError::Silent { call, limit }),
    }
}

fn refusal(call: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => AgentError::Refused {
            call,
            code: status.code.enum_value_or(ttrpc::Code::UNKNOWN),
            message: status.message,
        },
        source => AgentError::Transport { call, source },
    }
}
