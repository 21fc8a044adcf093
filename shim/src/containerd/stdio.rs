//! Standard streams between the guest and what containerd names for them: a fifo, a file (`file:///path`), a logging
//! program (`binary:///path?key=value`), or a stream that containerd opens to the shim ([`streaming`]). One task a stream;
//! back-pressure reaches the guest. Owned by the process whose streams they are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio as ChildStdio;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::stream::{StdioStream, StreamHeader};

use std::sync::Arc;

use super::streaming::{self, Claim, ClaimError, Direction, Streams};
use crate::pod::hybrid_vsock::{self, GuestConnectError};

/// Bytes copied at a time.
const CHUNK_BYTES: usize = 32 * 1024;

/// How long the agent may take to open a stream.
const OPEN_LIMIT: Duration = Duration::from_secs(20);

/// How long a logging program may take until it says that it reads.
const LOGGER_LIMIT: Duration = Duration::from_secs(10);

/// Streams that cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The host's end.
    #[error("cannot open {uri} for the {stream} of {process}")]
    Open {
        /// As containerd names it.
        uri: String,
        /// Which stream.
        stream: &'static str,
        /// Whose.
        process: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A way that is not known.
    #[error("{uri}: streams go to a fifo, file://, binary:// or ttrpc+unix://, not to {scheme}://")]
    Scheme {
        /// As containerd names it.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// A stream that containerd opens.
    #[error("cannot use the {stream} of {process}")]
    Stream {
        /// Which stream.
        stream: &'static str,
        /// Whose.
        process: String,
        /// Why.
        #[source]
        source: ClaimError,
    },
    /// The guest's end.
    #[error("cannot connect the {stream} of {process}")]
    Guest {
        /// Which stream.
        stream: &'static str,
        /// Whose.
        process: String,
        /// Why.
        #[source]
        source: GuestConnectError,
    },
}

/// Where a process's streams go, as containerd names it; empty: nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioUris {
    /// Standard input.
    pub stdin: String,
    /// Standard output, or the terminal's output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// A terminal.
    pub terminal: bool,
}

impl StdioUris {
    /// What the agent is told.
    #[must_use]
    pub fn wanted(&self) -> m::Stdio {
        m::Stdio {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
            terminal: self.terminal,
            ..Default::default()
        }
    }
}

/// A place of the host for output.
#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
    Stream(streaming::Output),
}

/// A place of the host for input.
#[derive(Debug)]
enum Source {
    Fifo(pipe::Receiver),
    Stream(streaming::Input),
}

/// The connected streams of a process.
#[derive(Debug)]
pub struct ProcessStdio {
    outputs: JoinSet<()>,
    input: Option<AbortHandle>,
    close_input: Arc<Notify>,
    /// The streams among them that containerd opens: they are known as long as this is.
    claims: Vec<Claim>,
    /// Runs as long as there is something to log.
    _logger: Option<tokio::process::Child>,
}

impl ProcessStdio {
    /// Connects the streams of process `exec` (empty: the first one) of `container` behind the machine's `socket`.
    ///
    /// # Errors
    /// When an end cannot be opened; nothing is connected then.
    pub async fn connect(
        socket: &Path,
        container: &str,
        exec: &str,
        uris: &StdioUris,
        namespace: &str,
        streams: &Streams,
    ) -> Result<Self, StdioError> {
        let process = if exec.is_empty() {
            format!("container {container}")
        } else {
            format!("exec {exec} of container {container}")
        };
        let open = |stream: &'static str, uri: &str| {
            let (process, uri) = (process.clone(), uri.to_owned());
            move |source| StdioError::Open {
                uri,
                stream,
                process,
                source,
            }
        };
        let claim = |stream: &'static str, uri: &str, direction| {
            let claimed = streams.claim(uri, direction, exec.is_empty());
            claimed.map_err(|source| StdioError::Stream {
                stream,
                process: process.clone(),
                source,
            })
        };
        let mut claims = Vec::new();
        let mut logger = None;
        let mut sinks = Vec::new();
        if let Some(program) = LoggerUri::parse(&uris.stdout) {
            let (child, stdout, stderr) = program
                .start(container, namespace)
                .await
                .map_err(open("output", &uris.stdout))?;
            logger = Some(child);
            sinks.push((StdioStream::Stdout, "stdout", Sink::Fifo(stdout)));
            if !uris.terminal {
                sinks.push((StdioStream::Stderr, "stderr", Sink::Fifo(stderr)));
            }
        } else {
            let wanted = uris.wanted();
            let outputs = [
                (wanted.stdout, StdioStream::Stdout, "stdout", &uris.stdout),
                (wanted.stderr, StdioStream::Stderr, "stderr", &uris.stderr),
            ];
            for (_, stream, name, uri) in outputs.into_iter().filter(|output| output.0) {
                let sink = match claim(name, uri, Direction::Output)? {
                    Some(claim) => {
                        let sink = Sink::Stream(claim.output());
                        claims.push(claim);
                        sink
                    }
                    None => Sink::open(uri, open(name, uri))?,
                };
                sinks.push((stream, name, sink));
            }
        }
        let source = if uris.stdin.is_empty() {
            None
        } else if let Some(claim) = claim("stdin", &uris.stdin, Direction::Input)? {
            let source = Source::Stream(claim.input());
            claims.push(claim);
            Some(source)
        } else {
            // Not for writing as well: the end of the last writer is the end of the input.
            let opened = pipe::OpenOptions::new().open_receiver(&uris.stdin);
            Some(Source::Fifo(opened.map_err(open("stdin", &uris.stdin))?))
        };
        let guest = async |stream: StdioStream, name: &'static str| {
            let header = StreamHeader::Stdio {
                container: container.to_owned(),
                exec: exec.to_owned(),
                stream,
            };
            hybrid_vsock::open_stream(socket, &header, OPEN_LIMIT)
                .await
                .map_err(|source| StdioError::Guest {
                    stream: name,
                    process: process.clone(),
                    source,
                })
        };
        let mut outputs = JoinSet::new();
        for (stream, name, sink) in sinks {
            let from = guest(stream, name).await?;
            match sink {
                Sink::Fifo(to) => outputs.spawn(copy(from, to)),
                Sink::File(to) => outputs.spawn(copy(from, to)),
                Sink::Stream(to) => outputs.spawn(to.copy(from)),
            };
        }
        let close_input = Arc::new(Notify::new());
        let input = match source {
            Some(from) => {
                let to = guest(StdioStream::Stdin, "stdin").await?;
                let close = Arc::clone(&close_input);
                let fed = match from {
                    Source::Fifo(from) => tokio::spawn(feed(from, to, close)),
                    Source::Stream(from) => tokio::spawn(from.feed(to, close)),
                };
                Some(fed.abort_handle())
            }
            None => None,
        };
        Ok(Self {
            outputs,
            input,
            close_input,
            claims,
            _logger: logger,
        })
    }

    /// Ends the input after what is in the fifo already.
    pub fn close_input(&self) {
        self.close_input.notify_one();
    }

    /// Waits until containerd has all output that goes through its streams, at most `limit`. It reads no more of them once
    /// it knows that a container has ended; a fifo keeps what was not read.
    pub async fn deliver(&mut self, limit: Duration) {
        if self.claims.is_empty() {
            return;
        }
        let _ = timeout(limit, async {
            while self.outputs.join_next().await.is_some() {}
        })
        .await;
    }

    /// Waits for the end of the output, at most `limit`: somebody else may hold a stream open. Nothing is copied after.
    pub async fn drain(&mut self, limit: Duration) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let _ = timeout(limit, async {
            while self.outputs.join_next().await.is_some() {}
        })
        .await;
        self.outputs.abort_all();
    }
}

impl Sink {
    fn open(uri: &str, fail: impl FnOnce(io::Error) -> StdioError) -> Result<Self, StdioError> {
        let path = match uri.split_once("://") {
            None => Path::new(uri),
            Some(("fifo", path)) => Path::new(path),
            Some(("file", path)) => {
                let opened = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path);
                return opened.map(|file| Self::File(file.into())).map_err(fail);
            }
            Some((scheme, _)) => {
                return Err(StdioError::Scheme {
                    uri: uri.to_owned(),
                    scheme: scheme.to_owned(),
                });
            }
        };
        // Open for reading as well: a containerd that is restarted leaves the fifo without a reader, which is no end.
        let opened = pipe::OpenOptions::new().read_write(true).open_sender(path);
        opened.map(Self::Fifo).map_err(fail)
    }
}

/// Copies until either end closes; what cannot be written any more is read all the same, so that the process is not held up.
async fn copy(mut from: UnixStream, mut to: impl AsyncWrite + Unpin) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut lost = false;
    loop {
        let length = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        if !lost && let Err(error) = to.write_all(chunk.get(..length).unwrap_or_default()).await {
            tracing::warn!(%error, "output is lost");
            lost = true;
        }
    }
    let _ = to.flush().await;
}

/// Copies input to the guest until its end, or until `close` and the fifo is empty.
async fn feed(mut from: impl AsyncRead + Unpin, mut to: UnixStream, close: Arc<Notify>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut closing = false;
    loop {
        let length = tokio::select! {
            // What is there comes before the end.
            biased;
            length = from.read(&mut chunk) => length,
            () = close.notified(), if !closing => {
                closing = true;
                continue;
            }
            () = std::future::ready(()), if closing => Ok(0),
        };
        match length {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                if to.write_all(bytes).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown().await;
}

/// `binary:///path?key=value`: a program that reads standard output from its descriptor 3 and standard error from 4, and
/// closes 5 when it does (containerd, runtime/v2/README.md, "Logging").
#[derive(Debug, PartialEq, Eq)]
struct LoggerUri {
    program: PathBuf,
    arguments: Vec<String>,
}

impl LoggerUri {
    fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("binary://")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut arguments = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            arguments.push(decoded(key));
            if !value.is_empty() {
                arguments.push(decoded(value));
            }
        }
        Some(Self {
            program: decoded(path).into(),
            arguments,
        })
    }

    async fn start(
        &self,
        container: &str,
        namespace: &str,
    ) -> io::Result<(tokio::process::Child, pipe::Sender, pipe::Sender)> {
        let (out, our_out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, our_err) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, their_ready) = pipe_with(PipeFlags::CLOEXEC)?;
        let theirs = [out, err, their_ready];
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("CONTAINER_ID", container)
            .env("CONTAINER_NAMESPACE", namespace)
            .stdin(ChildStdio::null())
            .stdout(ChildStdio::null())
            .stderr(ChildStdio::null());
        place_descriptors(&mut command, &theirs)?;
        let child = command.spawn()?;
        // With both goes the last copy of the other end of `ready` but the program's own.
        drop((command, theirs));
        let mut ready = pipe::Receiver::from_owned_fd(ready)?;
        // The end, or any byte.
        timeout(LOGGER_LIMIT, ready.read(&mut [0]))
            .await
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the logging program did not close its descriptor 5 within {} s",
                        LOGGER_LIMIT.as_secs()
                    ),
                )
            })??;
        Ok((
            child,
            pipe::Sender::from_owned_fd(our_out)?,
            pipe::Sender::from_owned_fd(our_err)?,
        ))
    }
}

/// Has `command` find `descriptors` under the numbers from 3 on.
fn place_descriptors(command: &mut Command, descriptors: &[OwnedFd; 3]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // Copies far above the numbers that they get, so that none is overwritten before its turn.
    let mut far = Vec::new();
    for descriptor in descriptors {
        far.push(rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), 64)?);
    }
    // SAFETY: between fork and exec nothing is done but dup2(2), which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(move || {
            for (number, descriptor) in (3..).zip(&far) {
                if libc::dup2(descriptor.as_raw_fd(), number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// `text` with `%xx` and `+` as what they stand for.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let number = std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(number.unwrap_or(b'%'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logger_is_a_program_with_its_arguments() {
        assert_eq!(
            LoggerUri::parse("binary:///usr/bin/log?--id&x=a%20b&y="),
            Some(LoggerUri {
                program: "/usr/bin/log".into(),
                arguments: vec!["--id".into(), "x".into(), "a b".into(), "y".into()],
            })
        );
        assert_eq!(LoggerUri::parse("/run/fifo"), None);
    }

    #[tokio::test]
    async fn logger_gets_output_under_its_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let got = dir.path().join("got");
        let script = dir.path().join("logger.sh");
        let text = format!(
            "#!/bin/sh\nexec 5>&-\n(cat <&3; cat <&4; echo $CONTAINER_ID $CONTAINER_NAMESPACE $1) > {}\n",
            got.display()
        );
        std::fs::write(&script, text).unwrap();
        let mut permissions = std::fs::metadata(&script).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&script, permissions).unwrap();
        let uri = LoggerUri::parse(&format!("binary://{}?word", script.display())).unwrap();
        let (mut child, mut out, mut err) = uri.start("c", "n").await.unwrap();
        out.write_all(b"out\n").await.unwrap();
        err.write_all(b"err\n").await.unwrap();
        drop((out, err));
        child.wait().await.unwrap();
        assert_eq!(
            std::fs::read_to_string(got).unwrap(),
            "out\nerr\nc n word\n"
        );
    }

    #[tokio::test]
    async fn input_closed_by_hand_is_passed_on_to_its_end() {
        let (from, mut writer) = tokio::io::duplex(64);
        let (to, mut guest) = UnixStream::pair().unwrap();
        let close = Arc::new(Notify::new());
        writer.write_all(b"some").await.unwrap();
        close.notify_one();
        feed(from, to, close).await;
        let mut got = String::new();
        guest.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "some");
    }

    #[test]
    fn scheme_that_is_not_known_is_refused_by_name() {
        let fail = |_| unreachable!("nothing is opened");
        let error = Sink::open("npipe://x", fail).unwrap_err();
        assert!(error.to_string().contains("not to npipe://"), "{error}");
    }
}
