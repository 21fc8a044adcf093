//! One control connection: JSON lines in, JSON lines out, both bounded. Non-blocking.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmpod_vmm_api::{LINE_BYTES, Message, Request};

/// How long the VMM waits for a client to take an answer before it gives the connection up.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const CHUNK: usize = 4096;

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
        })
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
            match receive_now(&self.stream, &mut chunk) {
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

/// recv(2) with MSG_DONTWAIT.
fn receive_now(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live mutable slice.
    let n = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            chunk.as_mut_ptr().cast(),
            chunk.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
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
    fn reply_is_one_line() {
        let (mut client, mut connection) = pair();
        connection.send(&Message::Reply(Reply::Done)).unwrap();
        drop(connection.into_stream());
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"reply\":\"done\"}\n");
    }
}
