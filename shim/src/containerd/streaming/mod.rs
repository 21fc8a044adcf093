//! Streams that containerd opens to the shim instead of fifos (`io_type = "streaming"` of a runtime of the CRI plugin, from
//! containerd 2.1 on): stdin, stdout and stderr are named `ttrpc+unix:///SOCKET?streaming_id=ID`, and containerd opens stream
//! ID of its streaming service at the shim's own socket.
//!
//! A stream comes before its process or after: whoever comes first waits. Both sides say how much they take, so that a
//! process waits for a slow reader, and a writer for a slow process. A stream outlives its connection as long as its
//! process is known.

mod connection;
mod guest_end;
mod lane;
mod wire;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

pub use self::connection::Rewound;
use self::lane::Lane;
pub use self::lane::{Direction, Input, Output};
use self::wire::WireError;
use super::stdio::decoded;

/// Streams at most whose processes are not there yet: containerd opens them when it creates a container, or an exec.
const WAITING: usize = 1024;

/// How long accepting rests after a failure.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Connections that wait for the other services.
const BACKLOG: usize = 16;

/// A stream cannot be had for a process.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somewhere else.
    #[error("{uri} is not a stream of this shim, which are {ours}?streaming_id=ID")]
    Elsewhere {
        /// As containerd names it.
        uri: String,
        /// The shim's address.
        ours: String,
    },
    /// It belongs to a process.
    #[error("stream {id} belongs to another process")]
    Taken {
        /// Its id.
        id: String,
    },
}

/// The streams of a shim. A handle that all connections share.
#[derive(Clone, Debug)]
pub struct Streams {
    /// As containerd names it.
    address: Arc<str>,
    /// By their ids. Never held across an await.
    lanes: Arc<Mutex<HashMap<String, Arc<Lane>>>>,
}

impl Streams {
    /// No streams yet, of the shim that listens at `socket` (`unix:///path`).
    #[must_use]
    pub fn new(socket: &str) -> Self {
        Self {
            address: format!("ttrpc+{socket}").into(),
            lanes: Arc::default(),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<String, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the stream that containerd names `uri` to a process. With `returns`, a connection that breaks is not its end.
    /// `None`: it is no stream.
    ///
    /// # Errors
    /// When it is another shim's or another process's.
    pub fn claim(
        &self,
        uri: &str,
        direction: Direction,
        returns: bool,
    ) -> Result<Option<Claim>, ClaimError> {
        let Some((address, query)) = uri.split_once('?') else {
            return Ok(None);
        };
        let id = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("streaming_id="));
        let Some(id) = id.map(decoded) else {
            return Ok(None);
        };
        if address != &*self.address || id.is_empty() {
            return Err(ClaimError::Elsewhere {
                uri: uri.to_owned(),
                ours: self.address.to_string(),
            });
        }
        let lane = Arc::clone(self.lanes().entry(id.clone()).or_default());
        if !lane.claim(direction, returns) {
            return Err(ClaimError::Taken { id });
        }
        Ok(Some(Claim {
            streams: self.clone(),
            id,
            lane,
        }))
    }

    /// A new connection of stream `id`. `None`: too many wait.
    fn enter(&self, id: &str) -> Option<Entered<'_>> {
        let mut lanes = self.lanes();
        let lane = match lanes.get(id) {
            Some(lane) => Arc::clone(lane),
            None => {
                let waiting = lanes.values().filter(|lane| !lane.is_claimed()).count();
                if waiting >= WAITING {
                    return None;
                }
                Arc::clone(lanes.entry(id.to_owned()).or_default())
            }
        };
        // Under the lock: a former connection that leaves would forget the lane.
        let generation = lane.enter();
        drop(lanes);
        Some(Entered {
            streams: self,
            id: id.to_owned(),
            generation,
            lane,
        })
    }

    /// Accepts connections at `listener`. Those of streams are served; the others come out, each with a hold on `open`.
    /// When nobody else has one any more, no more come out.
    pub fn sort(
        &self,
        listener: UnixListener,
        open: mpsc::WeakSender<Infallible>,
    ) -> impl Stream<Item = io::Result<Rewound>> + Send + 'static {
        let (others, receiver) = mpsc::channel(BACKLOG);
        let streams = self.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = others.closed() => return,
                };
                let connection = match accepted {
                    Ok((connection, _)) => connection,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_REST).await;
                        continue;
                    }
                };
                let (streams, others, open) = (streams.clone(), others.clone(), open.clone());
                tokio::spawn(async move {
                    // One that ends before it asks for anything was a try.
                    let Ok((mut connection, ours)) = Rewound::of(connection).await else {
                        return;
                    };
                    if !ours {
                        let Some(open) = open.upgrade() else {
                            return;
                        };
                        connection.hold(open);
                        let _ = others.send(Ok(connection)).await;
                        return;
                    }
                    match connection::serve(connection, &streams).await {
                        Ok(()) => {}
                        Err(WireError::Connection(error)) => {
                            tracing::debug!(%error, "the connection of a stream ended");
                        }
                        Err(error) => tracing::warn!(%error, "a stream is given up"),
                    }
                });
            }
        });
        unfold(receiver, |mut receiver| async {
            let connection = receiver.recv().await?;
            Some((connection, receiver))
        })
    }
}

/// A connection of a stream.
#[derive(Debug)]
struct Entered<'a> {
    streams: &'a Streams,
    id: String,
    generation: u64,
    lane: Arc<Lane>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut lanes = self.streams.lanes();
        if self.lane.leave(self.generation) && !self.lane.is_claimed() {
            lanes.remove(&self.id);
        }
    }
}

/// A stream that belongs to a process, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    streams: Streams,
    id: String,
    lane: Arc<Lane>,
}

impl Claim {
    /// The process's side of an output. To be had once.
    #[must_use]
    pub fn output(&self) -> Output {
        Output(Arc::clone(&self.lane))
    }

    /// The process's side of an input. To be had once.
    #[must_use]
    pub fn input(&self) -> Input {
        Input(Arc::clone(&self.lane))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.lane.abandon();
        self.streams.lanes().remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
