//! Probes and lifecycle hooks (Kubernetes API, Probe and LifecycleHandler): what is asked of a container, one attempt of
//! it, the count of attempts, and the tasks that watch a container.
//!
//! Everything connects to the pod's own address from inside the guest, as the kubelet does from outside: a server that
//! listens on the loopback address alone does not answer a probe. Nothing here decides about containers: what a probe
//! says goes to the pod's driver.

mod attempt;
mod grpc;
mod http;
mod request;
mod tally;
mod tls;
mod watch;

use std::time::Duration;

pub(crate) use attempt::address_or_loopback;
pub use attempt::{Outcome, Place, attempt, run_hook};
pub use request::{HandlerError, handler, probe};
pub use watch::{Told, Watched, watch};

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whether it has started; the others wait for it.
    Startup,
    /// Whether it may be sent requests.
    Readiness,
    /// Whether it still works.
    Liveness,
}

impl Kind {
    /// As the kubelet's events begin.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A probe, its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is done.
    pub handler: Handler,
    /// Time between the container's start and the first attempt.
    pub initial_delay: Duration,
    /// Longest time of an attempt.
    pub timeout: Duration,
    /// Time between attempts.
    pub period: Duration,
    /// Successes in a row that make a success.
    pub success_threshold: u32,
    /// Failures in a row that make a failure.
    pub failure_threshold: u32,
    /// Grace of the kill that follows; `None`: the pod's own.
    pub grace: Option<Duration>,
}

/// What a probe or hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Runs a command in the container; 0 is success.
    Exec(Vec<String>),
    /// Gets a page; 200 to 399 is success.
    Http(HttpTarget),
    /// Opens a connection.
    Tcp {
        /// Address; empty: the pod's.
        host: String,
        /// Port.
        port: u16,
    },
    /// Asks grpc.health.v1.Health/Check; SERVING is success.
    Grpc {
        /// Port.
        port: u16,
        /// Service to ask for.
        service: String,
    },
    /// Waits. Hooks alone.
    Sleep(Duration),
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    /// Address; empty: the pod's.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// TLS; the certificate is not checked, as the kubelet does not.
    pub https: bool,
    /// Header fields in order; `Host` takes the place of the usual one.
    pub headers: Vec<(String, String)>,
}
