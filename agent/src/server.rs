//! The `Agent` ttrpc service: checks what the host sent against the protocol's limits and calls the part that does it.
//!
//! One instance for all connections, owned by the ttrpc server's tasks. Holds no state of its own.

use std::collections::HashMap;
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, get_status};
use vmpod_agent_protocol::PROTOCOL_VERSION;
use vmpod_agent_protocol::messages::{
    HandshakeRequest, HandshakeResponse, NextEventsRequest, NextEventsResponse,
};
use vmpod_agent_protocol::service::{Agent, create_agent};

use crate::boot::ServiceSocket;
use crate::event_log::EventLog;

/// Optional abilities, named in the handshake.
const FEATURES: [&str; 3] = ["exec", "archive", "connect"];

/// The service's implementation.
#[derive(Debug)]
pub struct AgentService {
    events: EventLog,
    ready_at_us: u64,
}

impl AgentService {
    /// A service that reports `ready_at_us` as the moment at which the agent began to listen.
    pub fn new(events: EventLog, ready_at_us: u64) -> Self {
        AgentService {
            events,
            ready_at_us,
        }
    }
}

fn refusal(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    )
}

#[async_trait]
impl Agent for AgentService {
    async fn handshake(
        &self,
        _context: &TtrpcContext,
        request: HandshakeRequest,
    ) -> ttrpc::Result<HandshakeResponse> {
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
        Ok(HandshakeResponse {
            version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.map(str::to_owned).to_vec(),
            kernel_release: kernel_release(),
            ready_at_us: self.ready_at_us,
            ..Default::default()
        })
    }

    async fn next_events(
        &self,
        _context: &TtrpcContext,
        request: NextEventsRequest,
    ) -> ttrpc::Result<NextEventsResponse> {
        Ok(self
            .events
            .next(request.after_sequence, request.wait_ms)
            .await)
    }
}

/// Starts to serve `service` on a listening socket; the tasks live until the runtime ends.
pub async fn serve(service: AgentService, socket: ServiceSocket) -> ttrpc::Result<Server> {
    let methods: HashMap<_, _> = create_agent(Arc::new(service));
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
