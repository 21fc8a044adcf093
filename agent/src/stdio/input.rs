//! Standard input: from the host's connection into a pipe or a terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex as PlainMutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, Notify};

use super::resize;
use crate::byte_stream::ByteStream;

/// Bytes copied at a time.
const CHUNK: usize = 16 * 1024;

/// The agent's end of a process's standard input.
#[derive(Debug)]
pub struct Input {
    /// Held by the connection that copies; `None` inside: closed.
    sink: Mutex<Option<ByteStream>>,
    /// Master of a terminal, for its size.
    terminal: PlainMutex<Option<OwnedFd>>,
    /// The end of a connection is no end of the input.
    keep: bool,
    /// Number of the newest connection: an older one gives way.
    newest: AtomicU64,
    replaced: Notify,
}

impl Input {
    /// Writes into a pipe, which is closed with the end of the first connection unless it is to be kept.
    pub fn pipe(write: OwnedFd, keep: bool) -> io::Result<Self> {
        Ok(Self::new(ByteStream::new(write)?, None, keep))
    }

    /// Writes to the master side of a terminal.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        let size = master.try_clone()?;
        Ok(Self::new(ByteStream::new(master)?, Some(size), true))
    }

    fn new(sink: ByteStream, terminal: Option<OwnedFd>, keep: bool) -> Self {
        Input {
            sink: Mutex::new(Some(sink)),
            terminal: PlainMutex::new(terminal),
            keep,
            newest: AtomicU64::new(0),
            replaced: Notify::new(),
        }
    }

    /// Copies from `connection` until it ends, which closes a pipe (but no terminal, and no input that is kept), or until another connection
    /// takes its place, or the process has closed its end.
    pub async fn copy_from(&self, connection: &ByteStream) {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        self.replaced.notify_waiters();
        let mut sink = self.sink.lock().await;
        let mut buffer = vec![0; CHUNK];
        loop {
            let replaced = self.replaced.notified();
            tokio::pin!(replaced);
            replaced.as_mut().enable();
            if self.newest.load(Ordering::Relaxed) != number {
                return;
            }
            let Some(open) = sink.as_ref() else {
                return;
            };
            let length = tokio::select! {
                () = &mut replaced => return,
                length = connection.read(&mut buffer) => length,
            };
            let bytes = match length {
                // A connection that broke says nothing about the end of the input; one that ended does.
                Err(_) => return,
                Ok(0) => {
                    if !self.keep {
                        *sink = None;
                    }
                    return;
                }
                Ok(length) => buffer.get(..length).unwrap_or_default(),
            };
            if open.write_all(bytes).await.is_err() {
                *sink = None;
                return;
            }
        }
    }

    /// Sets the terminal's size; false: this is a pipe.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<bool> {
        use std::os::fd::AsRawFd as _;
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        match terminal.as_ref() {
            Some(master) => resize(master.as_raw_fd(), rows, columns).map(|()| true),
            None => Ok(false),
        }
    }
}
