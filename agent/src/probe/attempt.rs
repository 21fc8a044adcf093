//! One attempt of a probe or hook, in the kubelet's words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Handler, grpc, http};
use crate::container::Containers;

/// Bytes of a command's output that are kept for words (kubelet, maxProbeMessageLength is of this order).
const OUTPUT_BYTES: usize = 1024;

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Success,
    /// It is not; in words.
    Failure(String),
    /// It could not be found out; in words. Counts neither way.
    Error(String),
}

/// Where attempts are made.
#[derive(Clone, Debug)]
pub struct Place<C> {
    /// The engine.
    pub containers: C,
    /// Container id.
    pub container: String,
    /// The pod's address.
    pub address: IpAddr,
}

impl<C> Place<C> {
    /// The address of `host`: the pod's where it names none.
    fn address(&self, host: &str) -> IpAddr {
        host.parse().unwrap_or(self.address)
    }
}

/// The address that a pod without one has.
pub(crate) fn address_or_loopback(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Makes one attempt of a probe.
pub async fn attempt<C: Containers>(
    place: &Place<C>,
    handler: &Handler,
    limit: Duration,
) -> Outcome {
    match handler {
        Handler::Exec(command) => exec(place, command, limit).await,
        Handler::Http(target) => {
            let address = place.address(&target.host);
            match http::get(target, address, limit, "kube-probe/1.35").await {
                Ok(200..=399) => Outcome::Success,
                Ok(code) => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
                Err(why) => Outcome::Failure(why),
            }
        }
        Handler::Tcp { host, port } => {
            match connect(SocketAddr::new(place.address(host), *port), limit).await {
                Ok(_) => Outcome::Success,
                Err(why) => Outcome::Failure(why),
            }
        }
        Handler::Grpc { port, service } => {
            grpc::check(SocketAddr::new(place.address, *port), service, limit).await
        }
        Handler::Sleep(time) => {
            tokio::time::sleep((*time).min(limit)).await;
            Outcome::Success
        }
    }
}

/// Runs a hook within `limit`. Any answer to an HTTP request is a success, as it is to the kubelet.
///
/// # Errors
/// In words.
pub async fn run_hook<C: Containers>(
    place: &Place<C>,
    handler: &Handler,
    limit: Duration,
) -> Result<(), String> {
    let outcome = match handler {
        Handler::Http(target) => {
            let address = place.address(&target.host);
            return http::get(target, address, limit, "kube-lifecycle/1.35")
                .await
                .map(drop);
        }
        other => attempt(place, other, limit).await,
    };
    match (outcome, handler) {
        (Outcome::Success, _) => Ok(()),
        (Outcome::Failure(why), Handler::Exec(command)) if !why.contains("timed out") => {
            Err(format!("command {:?} failed: {why}", command.join(" ")))
        }
        (Outcome::Failure(why) | Outcome::Error(why), _) => Err(why),
    }
}

/// Opens a connection within `limit`.
pub(super) async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, String> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", words(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// The system's words without Rust's number behind them.
pub(super) fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

async fn exec<C: Containers>(place: &Place<C>, command: &[String], limit: Duration) -> Outcome {
    let process = json!({ "args": command, "terminal": false }).to_string();
    let run = place
        .containers
        .run(&place.container, process.into_bytes(), limit, OUTPUT_BYTES);
    match run.await {
        Err(error) => Outcome::Error(error.to_string()),
        Ok(ran) => match ran.exit {
            None => Outcome::Failure(format!(
                "command {:?} timed out after {}s",
                command.join(" "),
                limit.as_secs()
            )),
            Some(exit) if exit.code == 0 => Outcome::Success,
            Some(exit) => {
                let output = String::from_utf8_lossy(&ran.output);
                let output = output.trim_end();
                Outcome::Failure(if output.is_empty() {
                    format!("command exited with {}", exit.code)
                } else {
                    output.to_owned()
                })
            }
        },
    }
}
