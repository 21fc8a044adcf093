//! Streams of exec, attach and port-forward by WebSocket, as the CRI's streaming servers speak it (channels of
//! `v4.channel.k8s.io` and `v4.base64`-free port-forward: a byte that names the channel, then the bytes).

use std::net::TcpStream;
use std::time::Instant;

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::cri::SILENCE;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

fn connect(url: &str, protocol: &str) -> WebSocket<TcpStream> {
    let address = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_else(|| panic!("{url} is not a URL of a streaming server"));
    let stream = TcpStream::connect(address).expect("connect to the streaming server");
    stream
        .set_read_timeout(Some(SILENCE))
        .expect("set a time limit");
    let mut request = url
        .replacen("http://", "ws://", 1)
        .into_client_request()
        .expect("a request");
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        protocol.parse().expect("a header value"),
    );
    let (socket, _) = tungstenite::client(request, stream)
        .unwrap_or_else(|error| panic!("the streaming server at {url}: {error}"));
    socket
}

/// Connected standard streams.
#[derive(Debug)]
pub struct Attached {
    socket: WebSocket<TcpStream>,
    /// What came on standard output.
    pub out: String,
    /// What came on standard error.
    pub err: String,
    status: Option<Value>,
}

impl Attached {
    pub(crate) fn connect(url: &str) -> Self {
        Self {
            socket: connect(url, "v4.channel.k8s.io"),
            out: String::new(),
            err: String::new(),
            status: None,
        }
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket
            .send(Message::binary(message))
            .expect("write to a stream");
    }

    /// Writes to standard input.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn input(&mut self, text: &str) {
        self.send(STDIN, text.as_bytes());
    }

    /// Sets the terminal's size.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = serde_json::json!({"Width": columns, "Height": rows});
        self.send(RESIZE, size.to_string().as_bytes());
    }

    /// Takes in one message; false: there will be no more.
    fn take(&mut self) -> bool {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                let text = |rest: &[u8]| String::from_utf8_lossy(rest).into_owned();
                match bytes.split_first() {
                    Some((&STDOUT, rest)) => self.out.push_str(&text(rest)),
                    Some((&STDERR, rest)) => self.err.push_str(&text(rest)),
                    Some((&ERROR, rest)) => self.status = serde_json::from_slice(rest).ok(),
                    _ => {}
                }
                true
            }
            Ok(Message::Close(_)) | Err(_) => false,
            Ok(_) => true,
        }
    }

    /// Reads until `text` is in standard output.
    ///
    /// # Panics
    /// When the stream ends before.
    pub fn await_output(&mut self, text: &str) -> &str {
        let end = Instant::now() + SILENCE;
        while !self.out.contains(text) {
            let more = self.take();
            assert!(
                (more && Instant::now() < end) || self.out.contains(text),
                "no {text:?} in {self:?}"
            );
        }
        &self.out
    }

    /// Reads to the end. Returns the exit code that the server tells; `None`: it tells none.
    pub fn finish(&mut self) -> Option<i64> {
        while self.take() {}
        let status = self.status.as_ref()?;
        if status["status"] == "Success" {
            return Some(0);
        }
        let causes = status["details"]["causes"].as_array()?;
        let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
        cause["message"].as_str()?.parse().ok()
    }
}

/// Sends `bytes` to `port` and returns what comes back.
pub(crate) fn port_forward(
    url: &str,
    port: u16,
    bytes: &[u8],
    enough: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    let mut socket = connect(&format!("{url}?port={port}"), "v4.channel.k8s.io");
    socket
        .send(Message::binary([&[0], bytes].concat()))
        .expect("write to a port");
    let mut got = Vec::new();
    let mut seen = [false; 2];
    let end = Instant::now() + SILENCE;
    while !enough(&got) && Instant::now() < end {
        match socket.read() {
            Ok(Message::Binary(message)) => {
                let Some((&channel, rest)) = message.split_first() else {
                    continue;
                };
                // The first message of each channel is the port's number.
                match seen.get_mut(usize::from(channel)) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) if channel == 0 => got.extend_from_slice(rest),
                    _ => panic!("port-forward failed: {}", String::from_utf8_lossy(rest)),
                }
            }
            Ok(Message::Close(_)) | Err(_) => break,
            Ok(_) => {}
        }
    }
    got
}
