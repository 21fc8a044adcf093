//! Connections to the guest through the Unix socket that surfaces its vsock: `CONNECT <port>\n` and `OK <port>\n`,
//! then plain bytes. Every wait is bounded; what the guest answers is hostile input.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use vmpod_agent_protocol::STREAM_PORT;
use vmpod_agent_protocol::limits::STREAM_HEADER_BYTES;
use vmpod_agent_protocol::stream::{
    StreamHeader, StreamLineError, StreamReply, decode_line, encode_line,
};

/// Bytes of the VMM's answer to `CONNECT`.
const ANSWER_BYTES: usize = 64;

/// How often a connection is tried that is closed unread, and the pause in between.
const ATTEMPTS: u32 = 3;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// The guest cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum GuestConnectError {
    /// The socket does not take a connection.
    #[error("cannot connect to the machine's socket {}; the machine is not running", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to port {port} of the guest broke")]
    Broken {
        /// vsock port.
        port: u32,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Nobody answered in time.
    #[error("port {port} of the guest did not answer within {} s", limit.as_secs_f32())]
    Silent {
        /// vsock port.
        port: u32,
        /// The bound.
        limit: Duration,
    },
    /// Nobody listens in the guest.
    #[error("nobody listens on port {port} of the guest (the VMM answered {answer:?})")]
    Refused {
        /// vsock port.
        port: u32,
        /// The VMM's answer.
        answer: String,
    },
    /// The agent's line is not one.
    #[error("the agent's answer to a stream header is not valid")]
    Line(#[from] StreamLineError),
    /// The agent refused the stream.
    #[error("{}", super::status::bounded(.0))]
    StreamRefused(String),
}

/// Connects to `port` of the guest behind `socket`. A connection that was closed before anybody read from it is tried
/// again: it has reached nobody.
///
/// # Errors
/// When nobody answers within `limit` or nobody listens.
pub async fn connect(
    socket: &Path,
    port: u32,
    limit: Duration,
) -> Result<UnixStream, GuestConnectError> {
    let attempts = async {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match attempt(socket, port).await {
                Err(GuestConnectError::Broken { source, .. })
                    if closed_unread(&source) && left > 0 =>
                {
                    tracing::warn!(%source, port, "the VMM closed a connection unread");
                    tokio::time::sleep(ATTEMPT_PAUSE).await;
                }
                other => return other,
            }
        }
    };
    timeout(limit, attempts)
        .await
        .unwrap_or(Err(GuestConnectError::Silent { port, limit }))
}

/// Whether a peer went before it had read what was sent, or before anything was.
fn closed_unread(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

async fn attempt(socket: &Path, port: u32) -> Result<UnixStream, GuestConnectError> {
    let mut stream =
        UnixStream::connect(socket)
            .await
            .map_err(|source| GuestConnectError::Connect {
                path: socket.to_owned(),
                source,
            })?;
    let broken = |source| GuestConnectError::Broken { port, source };
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await
        .map_err(broken)?;
    let line = read_line(&mut stream, ANSWER_BYTES)
        .await
        .map_err(broken)?
        .unwrap_or_default();
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(GuestConnectError::Refused {
            port,
            answer: String::from_utf8_lossy(&line).into_owned(),
        })
    }
}

/// Connects to `port` and says at once that nothing will come; returns when the guest has closed its end as well. Its
/// listener has been at work then, and nothing of the connection is left on either side.
///
/// # Errors
/// As [`connect`], and when the guest keeps its end open for `limit`.
pub async fn touch(socket: &Path, port: u32, limit: Duration) -> Result<(), GuestConnectError> {
    let mut stream = connect(socket, port, limit).await?;
    let attempt = async {
        stream.shutdown().await?;
        while stream.read(&mut [0; 64]).await? > 0 {}
        Ok(())
    };
    timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|source| GuestConnectError::Broken { port, source })
}

/// Opens a byte stream of the agent.
///
/// # Errors
/// As [`connect`], and when the agent refuses the stream.
pub async fn open_stream(
    socket: &Path,
    header: &StreamHeader,
    limit: Duration,
) -> Result<UnixStream, GuestConnectError> {
    let mut stream = connect(socket, STREAM_PORT, limit).await?;
    let line = encode_line(header)?;
    let broken = |source| GuestConnectError::Broken {
        port: STREAM_PORT,
        source,
    };
    let attempt = async {
        stream.write_all(&line).await.map_err(broken)?;
        read_reply(&mut stream).await
    };
    timeout(limit, attempt)
        .await
        .unwrap_or(Err(GuestConnectError::Silent {
            port: STREAM_PORT,
            limit,
        }))?;
    Ok(stream)
}

/// Reads one reply line of the agent.
///
/// # Errors
/// When the connection breaks, the line is no reply, or the agent refuses.
pub async fn read_reply(stream: &mut UnixStream) -> Result<(), GuestConnectError> {
    let broken = |source| GuestConnectError::Broken {
        port: STREAM_PORT,
        source,
    };
    let line = read_line(stream, STREAM_HEADER_BYTES)
        .await
        .map_err(broken)?
        .ok_or_else(|| broken(std::io::ErrorKind::UnexpectedEof.into()))?;
    match decode_line(&line)? {
        StreamReply::Ready => Ok(()),
        StreamReply::Refused { message } => Err(GuestConnectError::StreamRefused(message)),
    }
}

/// Reads up to a newline and no further: what follows the line belongs to somebody else, and is only looked at. `None` at the
/// end of the stream; a line over `bound` bytes is an error.
async fn read_line(stream: &mut UnixStream, bound: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut seen = [0; 128];
    loop {
        let there = stream
            .async_io(Interest::READABLE, || {
                let (_, there) = recv(&*stream, &mut seen[..], RecvFlags::PEEK)?;
                Ok(there)
            })
            .await?;
        let seen = seen.get(..there).unwrap_or_default();
        let end = seen.iter().position(|&byte| byte == b'\n');
        let part = seen.get(..end.unwrap_or(there)).unwrap_or_default();
        if line.len() + part.len() > bound {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line is longer than {bound} bytes"),
            ));
        }
        line.extend_from_slice(part);
        // It is there, so that this does not wait; and it is taken off, with the newline.
        let mut taken = [0; 128];
        let taken = taken
            .get_mut(..part.len() + usize::from(end.is_some()))
            .unwrap_or_default();
        stream.read_exact(taken).await?;
        if end.is_some() {
            return Ok(Some(line));
        }
        if there == 0 {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_millis(300);

    async fn answering(answer: &'static [u8]) -> Result<UnixStream, GuestConnectError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let line = read_line(&mut peer, 64).await.unwrap().unwrap();
            assert_eq!(line, b"CONNECT 1024");
            peer.write_all(answer).await.unwrap();
            // Held open until the client has made up its mind.
            tokio::time::sleep(2 * LIMIT).await;
        };
        tokio::select! {
            result = connect(&path, 1024, LIMIT) => result,
            () = server => panic!("the client did not come to an end"),
        }
    }

    #[tokio::test]
    async fn connect_answered_ok_leaves_the_bytes_after_the_line() {
        let mut stream = answering(b"OK 1024\nrest").await.unwrap();
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[tokio::test]
    async fn connect_closed_unread_is_tried_again_and_not_for_ever() {
        for closed in [ATTEMPTS - 1, ATTEMPTS] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let server = async {
                for _ in 0..closed {
                    let (peer, _) = listener.accept().await.unwrap();
                    // Closed with a line in it that nobody has read.
                    peer.readable().await.unwrap();
                }
                let (mut peer, _) = listener.accept().await.unwrap();
                read_line(&mut peer, 64).await.unwrap().unwrap();
                peer.write_all(b"OK 1\n").await.unwrap();
                std::future::pending::<()>().await;
            };
            let connected = tokio::select! {
                result = connect(&path, 1024, Duration::from_secs(10)) => result,
                () = server => unreachable!(),
            };
            match connected {
                Ok(_) => assert!(closed < ATTEMPTS),
                Err(error @ GuestConnectError::Broken { .. }) => {
                    assert_eq!(closed, ATTEMPTS, "{error:?}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn connect_unanswered_is_silent() {
        assert!(matches!(
            answering(b"OK").await,
            Err(GuestConnectError::Silent { port: 1024, .. })
        ));
    }

    #[tokio::test]
    async fn connect_answered_without_end_is_broken() {
        assert!(matches!(
            answering(&[b'x'; 4096]).await,
            Err(GuestConnectError::Broken { .. })
        ));
    }

    #[tokio::test]
    async fn connect_refused_shows_the_answer() {
        assert!(matches!(
            answering(b"ERR\n").await,
            Err(GuestConnectError::Refused { answer, .. }) if answer == "ERR"
        ));
    }
}
