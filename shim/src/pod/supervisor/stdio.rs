//! The output of containers: a stream of the agent each, written to the container's log until it ends.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmpod_agent_protocol::stream::{StdioStream, StreamHeader};

use crate::pod::hybrid_vsock;
use crate::pod::journal::chain;
use crate::pod::logs::{LogStream, LogWriter, ROTATE_BYTES, StreamWriter};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// How long the agent may take to open a stream.
const OPEN_LIMIT: Duration = Duration::from_secs(20);

/// After how long without more a terminal's unfinished line is written: a prompt has no line end.
const PROMPT_PAUSE: Duration = Duration::from_millis(50);

/// The streams of a pod's containers.
#[derive(Debug)]
pub(super) struct Outputs {
    socket: PathBuf,
    /// Container ids that were connected.
    connected: BTreeSet<String>,
    tasks: JoinSet<()>,
}

impl Outputs {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            connected: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Connects the output of container `id` to the log at `log`, once.
    pub(super) fn connect(&mut self, id: &str, tty: bool, log: &std::path::Path) {
        while self.tasks.try_join_next().is_some() {}
        if !self.connected.insert(id.to_owned()) {
            return;
        }
        let writer = match LogWriter::open(log, ROTATE_BYTES) {
            Ok(writer) => Arc::new(Mutex::new(writer)),
            Err(error) => {
                tracing::error!(container = id, %error, "cannot open the container's log");
                return;
            }
        };
        let streams: &[_] = if tty {
            &[(StdioStream::Stdout, LogStream::Stdout)]
        } else {
            &[
                (StdioStream::Stdout, LogStream::Stdout),
                (StdioStream::Stderr, LogStream::Stderr),
            ]
        };
        for &(stream, name) in streams {
            let header = StreamHeader::Stdio {
                container: id.to_owned(),
                exec: String::new(),
                stream,
            };
            let writer = StreamWriter::new(Arc::clone(&writer), name);
            self.tasks
                .spawn(copy(self.socket.clone(), header, writer, tty));
        }
    }

    /// Forgets that `id` was connected: its container is gone for good.
    pub(super) fn forget(&mut self, id: &str) {
        self.connected.remove(id);
    }

    /// Waits for the ends of all streams, at most `limit`: a process that left the container's first one behind can hold
    /// a stream open.
    pub(super) async fn drain(&mut self, limit: Duration) {
        let _ = timeout(limit, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        self.tasks.abort_all();
    }
}

async fn copy(socket: PathBuf, header: StreamHeader, mut writer: StreamWriter, tty: bool) {
    let mut stream = match hybrid_vsock::open_stream(&socket, &header, OPEN_LIMIT).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(?header, error = chain(&error), "no output of this stream");
            return;
        }
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = stream.read(&mut chunk);
        let length = if tty && writer.is_pending() {
            match timeout(PROMPT_PAUSE, read).await {
                Ok(length) => length,
                Err(_) => {
                    writer.flush();
                    continue;
                }
            }
        } else {
            read.await
        };
        match length {
            Ok(0) | Err(_) => break,
            Ok(length) => writer.push(&chunk[..length]),
        }
    }
    writer.flush();
}
