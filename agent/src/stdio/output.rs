//! Standard output and error: from a pipe or a terminal to the host's connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use super::Tail;
use super::is_gone;
use crate::byte_stream::ByteStream;

/// Bytes copied at a time.
const CHUNK: usize = 32 * 1024;

/// How often a connection whose host only stopped sending is asked whether it is gone by now.
const GONE_CHECK: Duration = Duration::from_millis(500);

/// The agent's end of an output stream.
#[derive(Debug)]
pub struct Output {
    /// Held by the connection that copies.
    source: Mutex<Source>,
    tail: Tail,
    drained: AtomicBool,
    newest: AtomicU64,
    replaced: Notify,
}

#[derive(Debug)]
struct Source {
    stream: ByteStream,
    /// Read, but not yet accepted by a connection.
    pending: Vec<u8>,
    ended: bool,
}

impl Output {
    /// Reads from `stream`; what passes is noted in `tail`.
    pub fn new(stream: ByteStream, tail: &Tail) -> Self {
        Output {
            source: Mutex::new(Source {
                stream,
                pending: Vec::new(),
                ended: false,
            }),
            tail: tail.clone(),
            drained: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            replaced: Notify::new(),
        }
    }

    /// Whether the end was seen and everything before it handed over.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Copies to `connection` until the stream ends, which ends the connection's direction, or until the connection
    /// breaks or another one takes its place.
    pub async fn copy_to(&self, connection: &ByteStream) {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        self.replaced.notify_waiters();
        let mut source = self.source.lock().await;
        let Source {
            stream,
            pending,
            ended,
        } = &mut *source;
        let mut buffer = vec![0; CHUNK];
        loop {
            let replaced = self.replaced.notified();
            tokio::pin!(replaced);
            replaced.as_mut().enable();
            if self.newest.load(Ordering::Relaxed) != number {
                return;
            }
            if pending.is_empty() {
                if *ended {
                    self.drained.store(true, Ordering::Relaxed);
                    // The other side may have gone; then there is nobody to tell.
                    let _ = connection.shutdown_write();
                    return;
                }
                let length = tokio::select! {
                    biased;
                    () = &mut replaced => return,
                    length = stream.read(&mut buffer) => length,
                    () = gone(connection) => return,
                };
                match length {
                    // An error of a pipe cannot pass; it is its end.
                    Ok(0) | Err(_) => *ended = true,
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        self.tail.push(bytes);
                        pending.extend_from_slice(bytes);
                    }
                }
                continue;
            }
            let written = tokio::select! {
                () = &mut replaced => return,
                written = connection.write(pending) => written,
            };
            match written {
                Ok(written) => {
                    pending.drain(..written.min(pending.len()));
                }
                Err(_) => return,
            }
        }
    }

    /// Reads to the end, or until `limit` bytes are there; more is thrown away so that the writer does not block.
    pub async fn collect(&self, limit: usize, into: &std::sync::Mutex<Vec<u8>>) {
        let mut source = self.source.lock().await;
        let mut buffer = vec![0; CHUNK];
        while let Ok(length) = source.stream.read(&mut buffer).await {
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let mut collected = into
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let room = limit.saturating_sub(collected.len()).min(bytes.len());
            collected.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
        source.ended = true;
        self.drained.store(true, Ordering::Relaxed);
    }

    /// Reads what is in the pipe into the pending bytes, so that the tail knows it, unless a connection is copying.
    pub(super) fn look_ahead(&self) {
        let Ok(mut source) = self.source.try_lock() else {
            return;
        };
        let mut buffer = vec![0; CHUNK];
        // Enough for any tail, and bounded.
        if source.pending.len() < CHUNK
            && let Ok(length) = source.stream.read_now(&mut buffer)
        {
            let bytes = buffer.get(..length).unwrap_or_default();
            self.tail.push(bytes);
            source.pending.extend_from_slice(bytes);
            source.ended |= length == 0;
        }
    }
}

/// Waits until nobody is on the other side any more.
async fn gone(connection: &ByteStream) {
    connection.closed().await;
    // The host has stopped sending, which it may well do on a stream that it only reads.
    while !is_gone(connection) {
        tokio::time::sleep(GONE_CHECK).await;
    }
}
