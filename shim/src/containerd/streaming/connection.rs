//! A connection with one stream, as containerd makes one for each: told apart from the connections of other services by its
//! first bytes, then served to its end.
//!
//! Not left to the ttrpc library's server: that one would keep a connection whose stream is over for as long as containerd
//! does (which is, up to 2.1, for good), and has no bound for messages that nobody took yet.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::ttrpc::Code;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::lane::{Direction, Step};
use super::wire::{self, Frame, HEADER_BYTES, SERVICE, Said, WireError, wrong};
use super::{Entered, Streams};

/// How long containerd may take to say which stream it opens.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long a stream is kept that was closed before a process had it.
const KEPT: Duration = Duration::from_secs(60);

/// How long containerd may take to read the last bytes and close.
const LINGER: Duration = Duration::from_secs(10);

/// The window at the end of an input: whoever waits to write shall hear of the end instead.
const END_WINDOW: i32 = 1 << 30;

/// Bytes of a stream's id at most; containerd's have up to 71.
const ID_BYTES: usize = 256;

/// A connection whose first bytes were read already, and are read once more.
#[derive(Debug)]
pub struct Rewound {
    head: Vec<u8>,
    /// How many of them were read once more.
    given: usize,
    rest: UnixStream,
    /// Held as long as the connection is.
    open: Option<mpsc::Sender<Infallible>>,
}

impl Rewound {
    /// Reads from `connection` as much as shows which service is asked for. Returns whether it is [`SERVICE`].
    ///
    /// # Errors
    /// When it ends before.
    pub async fn of(mut connection: UnixStream) -> io::Result<(Self, bool)> {
        let mut head = vec![0; HEADER_BYTES];
        connection.read_exact(&mut head).await?;
        let length = head
            .first_chunk()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes));
        // The request's first field (1, of bytes), whose length fits into one byte.
        let mut wanted = vec![0x0a, u8::try_from(SERVICE.len()).unwrap_or(u8::MAX)];
        wanted.extend(SERVICE.bytes());
        let mut ours = length as usize >= wanted.len();
        if ours {
            let mut start = vec![0; wanted.len()];
            connection.read_exact(&mut start).await?;
            ours = start == wanted;
            head.extend(start);
        }
        let rewound = Self {
            head,
            given: 0,
            rest: connection,
            open: None,
        };
        Ok((rewound, ours))
    }

    /// Keeps `open` as long as the connection is there.
    pub fn hold(&mut self, open: mpsc::Sender<Infallible>) {
        self.open = Some(open);
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let head = self.head.get(self.given..).unwrap_or_default();
        if head.is_empty() {
            return Pin::new(&mut self.rest).poll_read(context, into);
        }
        let length = head.len().min(into.remaining());
        into.put_slice(head.get(..length).unwrap_or_default());
        self.given += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.rest.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(context)
    }
}

/// Serves the stream of `connection` to its end, or to that of the connection.
///
/// # Errors
/// Why it ended otherwise.
pub async fn serve(
    connection: impl AsyncRead + AsyncWrite,
    streams: &Streams,
) -> Result<(), WireError> {
    let (mut from, mut to) = tokio::io::split(connection);
    let (stream, id) = timeout(OPEN_LIMIT, opened(&mut from))
        .await
        .map_err(|_| wrong("no stream was named in time"))??;
    let refused = |code: Code, why: &str| wire::refusal(stream, code as i32, why);
    if id.is_empty() || id.len() > ID_BYTES {
        let why = format!("a stream's id has 1 to {ID_BYTES} bytes, not {}", id.len());
        to.write_all(&refused(Code::INVALID_ARGUMENT, &why)).await?;
        return Err(wrong(why));
    }
    let Some(entered) = streams.enter(&id) else {
        let why = format!("stream {id}: too many streams wait for their processes");
        to.write_all(&refused(Code::RESOURCE_EXHAUSTED, &why))
            .await?;
        return Err(wrong(why));
    };
    to.write_all(&wire::ack(stream)).await?;
    let receiving = receive(&mut from, stream, &entered);
    tokio::pin!(receiving);
    let closed = tokio::select! {
        error = &mut receiving => return Err(error),
        closed = transmit(&mut to, stream, &entered) => closed?,
    };
    if closed {
        // Its answer says that it has read everything.
        let answer = async {
            tokio::select! {
                _ = receiving => {}
                () = entered.lane.peer_closed() => {}
            }
        };
        let _ = timeout(LINGER, answer).await;
        entered.lane.delivered();
    }
    Ok(())
}

/// The stream's number on its connection, and its id.
async fn opened(from: &mut (impl AsyncRead + Unpin)) -> Result<(u32, String), WireError> {
    let open = Frame::read(from).await?;
    if open.said != Said::Open {
        return Err(wrong("a connection does not begin with a request"));
    }
    loop {
        let frame = Frame::read(from).await?;
        match frame.said {
            Said::Init(id) if frame.stream == open.stream && !frame.last => {
                return Ok((open.stream, id));
            }
            Said::Nothing if !frame.last => {}
            _ => return Err(wrong("a stream does not begin with its name")),
        }
    }
}

/// Takes what containerd sends, to the end of the connection. Returns why it ended.
async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    stream: u32,
    entered: &Entered<'_>,
) -> WireError {
    let (lane, generation) = (&entered.lane, entered.generation);
    loop {
        let frame = match Frame::read(from).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        if frame.stream != stream {
            return wrong("a connection has a second stream");
        }
        match frame.said {
            Said::Data(bytes) => {
                if let Err(error) = lane.received(generation, &bytes) {
                    return error;
                }
            }
            Said::Window(more) => lane.credit(generation, more),
            Said::Nothing => {}
            Said::Open | Said::Init(_) => return wrong("a stream is opened twice"),
        }
        if frame.last {
            lane.close_peer(generation);
        }
    }
}

/// Sends what the process's side has. Returns whether that came to its end.
async fn transmit(
    to: &mut (impl AsyncWrite + Unpin),
    stream: u32,
    entered: &Entered<'_>,
) -> Result<bool, WireError> {
    let (lane, generation) = (&entered.lane, entered.generation);
    let forgotten = async {
        lane.peer_closed().await;
        sleep(KEPT).await;
    };
    tokio::select! {
        biased;
        () = lane.wanted(generation) => {}
        () = forgotten => return Ok(false),
    }
    loop {
        match lane.next_step(generation).await {
            Step::Leave => return Ok(false),
            Step::Data(length) => {
                to.write_all(&wire::data(stream, lane.output(length)))
                    .await?;
                lane.sent(generation, length);
            }
            Step::Window(more) => {
                // Before it is sent: the answer may be here before the next line.
                lane.grant(generation, more);
                let more = i32::try_from(more).unwrap_or(i32::MAX);
                to.write_all(&wire::window(stream, more)).await?;
            }
            Step::Close(direction) => {
                if direction == Direction::Input {
                    to.write_all(&wire::window(stream, END_WINDOW)).await?;
                }
                to.write_all(&wire::close(stream)).await?;
                return Ok(true);
            }
        }
    }
}
