//! One control connection: JSON lines in, JSON lines out, both bounded, and descriptors that come with requests.
//! Non-blocking.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use vmpod_vmm_api::{LINE_BYTES, Message, Request};

/// How long the VMM waits for a client to take an answer before it gives the connection up.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const CHUNK: usize = 4096;
/// Descriptors that wait for their request, and that come at once. More are closed.
const DESCRIPTORS: usize = 4;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole line.
    Request(Request),
    /// A line that is no request, with what is wrong. The connection goes on.
    Malformed(String),
    /// Nothing more for now.
    Nothing,
    /// The peer is gone, or sent a line without end.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Bytes of lines that are not handled yet; at most a line and a chunk.
    buffer: Vec<u8>,
    /// Descriptors that have come, in order, and were not taken.
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The socket's options cannot be set.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        // Reads never block: the control thread has other descriptors to look at. Writes may wait a little.
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            descriptors: VecDeque::new(),
        })
    }

    /// The oldest descriptor that came with the requests so far.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Descriptor to wait on.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The next request that has come in. To be called after the descriptor was readable until it returns `Nothing` or
    /// `Closed`.
    pub fn receive(&mut self) -> Incoming {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(request) => Incoming::Request(request),
                    Err(e) => Incoming::Malformed(format!("control request is malformed: {e}")),
                };
            }
            if self.buffer.len() >= LINE_BYTES {
                return Incoming::Closed;
            }
            let mut chunk = [0u8; CHUNK];
            match receive_now(&self.stream, &mut chunk, &mut self.descriptors) {
                Ok(0) => return Incoming::Closed,
                Ok(n) => self.buffer.extend(chunk.iter().take(n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Incoming::Nothing,
                Err(_) => return Incoming::Closed,
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The peer is gone or does not read.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }

    /// Reads until the peer closes, for tests of the protocol.
    #[cfg(test)]
    fn into_stream(self) -> UnixStream {
        self.stream
    }
}

/// recvmsg(2) with MSG_DONTWAIT; descriptors are closed on exec.
fn receive_now(
    stream: &UnixStream,
    chunk: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(chunk)];
    let received = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            for number in numbers {
                // SAFETY: the kernel has just opened it for this process, and nobody else knows its number.
                let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
                if descriptors.len() < DESCRIPTORS {
                    descriptors.push_back(descriptor);
                }
            }
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vmpod_vmm_api::Reply;

    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Connection::new(server).unwrap())
    }

    #[test]
    fn requests_in_pieces_and_several_at_once_come_out_one_by_one() {
        let (mut client, mut connection) = pair();
        client.write_all(b"{\"request\":").unwrap();
        assert_eq!(connection.receive(), Incoming::Nothing);
        client
            .write_all(b"\"pause\"}\n{\"request\":\"info\"}\nrubbish\n")
            .unwrap();
        assert_eq!(connection.receive(), Incoming::Request(Request::Pause));
        assert_eq!(connection.receive(), Incoming::Request(Request::Info));
        assert!(matches!(connection.receive(), Incoming::Malformed(_)));
        assert_eq!(connection.receive(), Incoming::Nothing);
        drop(client);
        assert_eq!(connection.receive(), Incoming::Closed);
    }

    #[test]
    fn line_without_end_closes_the_connection() {
        let (mut client, mut connection) = pair();
        let writer = std::thread::spawn(move || {
            let _ = client.write_all(&vec![b'x'; 2 * LINE_BYTES]);
        });
        loop {
            match connection.receive() {
                Incoming::Nothing => std::thread::yield_now(),
                Incoming::Closed => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(connection.buffer.len() <= LINE_BYTES + CHUNK);
        drop(connection);
        writer.join().unwrap();
    }

    #[test]
    fn descriptors_come_with_their_requests_and_no_more_than_a_few() {
        use nix::sys::socket::{ControlMessage, sendmsg};
        let (client, mut connection) = pair();
        let file = tempfile::tempfile().unwrap();
        for _ in 0..DESCRIPTORS + 1 {
            let line = b"{\"request\":\"info\"}\n";
            let parts = [io::IoSlice::new(line)];
            let descriptors = [file.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<()>(client.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        }
        let mut requests = 0;
        while connection.receive() == Incoming::Request(Request::Info) {
            requests += 1;
        }
        assert_eq!(requests, DESCRIPTORS + 1);
        let taken: Vec<OwnedFd> = std::iter::from_fn(|| connection.take_descriptor()).collect();
        assert_eq!(taken.len(), DESCRIPTORS);
        assert!(
            taken
                .iter()
                .all(|taken| taken.as_raw_fd() != file.as_raw_fd())
        );
    }

    #[test]
    fn reply_is_one_line() {
        let (mut client, mut connection) = pair();
        connection.send(&Message::Reply(Reply::Done)).unwrap();
        drop(connection.into_stream());
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"reply\":\"done\"}\n");
    }
}
