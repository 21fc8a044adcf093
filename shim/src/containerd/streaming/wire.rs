//! What goes over a stream's connection: ttrpc frames (containerd/ttrpc, PROTOCOL.md) and the messages of containerd's
//! streaming service (api/services/streaming/v1/streaming.proto, api/types/transfer/streaming.proto).
//!
//! Nothing here knows what a stream is for.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Full name of the service.
pub const SERVICE: &str = "containerd.services.streaming.v1.Streaming";

/// Its only method.
const METHOD: &str = "Stream";

/// Bytes of a frame's header: length and stream, both big-endian and of four bytes, kind, flags.
pub const HEADER_BYTES: usize = 10;

/// Bytes of a frame after its header at most: twice what containerd puts into a message, and what surrounds it.
pub const FRAME_BYTES: u32 = 65 * 1024;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

const REMOTE_CLOSED: u8 = 1;
const NO_DATA: u8 = 4;

const INIT_TYPE: &str = "containerd.services.streaming.v1.StreamInit";
const DATA_TYPE: &str = "containerd.types.transfer.Data";
const WINDOW_TYPE: &str = "containerd.types.transfer.WindowUpdate";
const EMPTY_TYPE: &str = "google.protobuf.Empty";

/// The peer does not keep to the protocol, or is gone.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection.
    #[error("the connection broke")]
    Connection(#[from] io::Error),
    /// A frame that is too long.
    #[error("a frame has {length} bytes, of at most {FRAME_BYTES}")]
    Oversize {
        /// As its header says.
        length: u32,
    },
    /// Anything else.
    #[error("{what}")]
    Protocol {
        /// What is wrong.
        what: String,
    },
}

/// [`WireError::Protocol`].
pub fn wrong(what: impl Into<String>) -> WireError {
    WireError::Protocol { what: what.into() }
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `ttrpc.Request`; its other fields are of no use here.
#[derive(Clone, PartialEq, Eq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// `StreamInit`.
#[derive(Clone, PartialEq, Eq, Message)]
struct StreamInit {
    #[prost(string, tag = "1")]
    id: String,
}

/// `Data`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Data {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

/// `WindowUpdate`.
#[derive(Clone, PartialEq, Eq, Message)]
struct WindowUpdate {
    #[prost(int32, tag = "1")]
    update: i32,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A stream is opened: the frame has its number on this connection.
    Open,
    /// Which stream it is: the first message.
    Init(String),
    /// Bytes.
    Data(Vec<u8>),
    /// So many bytes more are taken.
    Window(usize),
    /// Nothing; containerd may send such a message.
    Nothing,
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of the stream on its connection.
    pub stream: u32,
    /// What it says.
    pub said: Said,
    /// The peer sends no more.
    pub last: bool,
}

impl Frame {
    /// Reads the next one. Not to be cancelled: what was read of a frame would be lost.
    ///
    /// # Errors
    /// The end of the connection, and whatever is not of the protocol.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Self, WireError> {
        let length = from.read_u32().await?;
        let stream = from.read_u32().await?;
        let kind = from.read_u8().await?;
        let flags = from.read_u8().await?;
        if length > FRAME_BYTES {
            return Err(WireError::Oversize { length });
        }
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload).await?;
        let said = match kind {
            REQUEST => opened(&payload)?,
            DATA if flags & NO_DATA != 0 => Said::Nothing,
            DATA => said(&payload)?,
            kind => return Err(wrong(format!("a frame is of kind {kind}"))),
        };
        Ok(Self {
            stream,
            said,
            last: kind == DATA && flags & REMOTE_CLOSED != 0,
        })
    }
}

fn decoded<T: Message + Default>(name: &str, bytes: &[u8]) -> Result<T, WireError> {
    T::decode(bytes).map_err(|error| wrong(format!("a {name} cannot be decoded: {error}")))
}

fn opened(payload: &[u8]) -> Result<Said, WireError> {
    let request: Request = decoded("Request", payload)?;
    if request.service != SERVICE || request.method != METHOD {
        return Err(wrong(format!(
            "{}/{} is asked for on a connection of {SERVICE}/{METHOD}",
            request.service, request.method
        )));
    }
    Ok(Said::Open)
}

fn said(payload: &[u8]) -> Result<Said, WireError> {
    let any: Any = decoded("Any", payload)?;
    // A type's name may have a host in front.
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        INIT_TYPE => decoded::<StreamInit>(INIT_TYPE, &any.value).map(|init| Said::Init(init.id)),
        DATA_TYPE => decoded::<Data>(DATA_TYPE, &any.value).map(|data| Said::Data(data.data)),
        WINDOW_TYPE => {
            let window: WindowUpdate = decoded(WINDOW_TYPE, &any.value)?;
            usize::try_from(window.update)
                .map(Said::Window)
                .map_err(|_| wrong(format!("a window of {} bytes", window.update)))
        }
        "" if any.value.is_empty() => Ok(Said::Nothing),
        other => Err(wrong(format!("a message is of type {other:?}"))),
    }
}

fn frame(stream: u32, kind: u8, flags: u8, payload: &impl Message) -> Vec<u8> {
    let length = payload.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    // Nothing that is sent comes near 4 GiB.
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, flags]);
    bytes.extend(payload.encode_to_vec());
    bytes
}

fn message(stream: u32, name: &str, value: Vec<u8>) -> Vec<u8> {
    let any = Any {
        type_url: name.to_owned(),
        value,
    };
    frame(stream, DATA, 0, &any)
}

/// The answer to [`Said::Init`].
#[must_use]
pub fn ack(stream: u32) -> Vec<u8> {
    message(stream, EMPTY_TYPE, Vec::new())
}

/// Bytes.
#[must_use]
pub fn data(stream: u32, bytes: Vec<u8>) -> Vec<u8> {
    message(stream, DATA_TYPE, Data { data: bytes }.encode_to_vec())
}

/// The peer may send `bytes` more.
#[must_use]
pub fn window(stream: u32, bytes: i32) -> Vec<u8> {
    let update = WindowUpdate { update: bytes };
    message(stream, WINDOW_TYPE, update.encode_to_vec())
}

/// Nothing more is sent.
#[must_use]
pub fn close(stream: u32) -> Vec<u8> {
    frame(stream, DATA, REMOTE_CLOSED | NO_DATA, &Data::default())
}

/// The stream is not to be had: a gRPC code and why.
#[must_use]
pub fn refusal(stream: u32, code: i32, message: &str) -> Vec<u8> {
    let response = Response {
        status: Some(Status {
            code,
            message: message.to_owned(),
        }),
    };
    frame(stream, RESPONSE, 0, &response)
}

/// What containerd sends, for tests.
#[cfg(test)]
pub mod client {
    use super::*;

    pub fn open(stream: u32) -> Vec<u8> {
        let request = Request {
            service: SERVICE.into(),
            method: METHOD.into(),
        };
        frame(stream, REQUEST, 2, &request)
    }

    pub fn init(stream: u32, id: &str) -> Vec<u8> {
        message(
            stream,
            INIT_TYPE,
            StreamInit { id: id.into() }.encode_to_vec(),
        )
    }

    pub fn other_request(service: &str) -> Vec<u8> {
        let request = Request {
            service: service.into(),
            method: "Ping".into(),
        };
        frame(1, REQUEST, 0, &request)
    }

    /// Whether the answer to [`init`] is an acknowledgement: `Err` has the refusal.
    pub async fn answered(from: &mut (impl AsyncRead + Unpin)) -> Result<(), String> {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload).await.unwrap();
        if header[8] == DATA {
            assert_eq!(
                decoded::<Any>("Any", &payload).unwrap().type_url,
                EMPTY_TYPE
            );
            return Ok(());
        }
        Err(decoded::<Response>("Response", &payload)
            .unwrap()
            .status
            .unwrap()
            .message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: Vec<u8>) -> Result<Frame, WireError> {
        Frame::read(&mut bytes.as_slice()).await
    }

    #[tokio::test]
    async fn frame_is_read_as_it_was_written() {
        for (bytes, said, last) in [
            (client::open(1), Said::Open, false),
            (
                client::init(1, "a-stdout"),
                Said::Init("a-stdout".into()),
                false,
            ),
            (data(1, b"x".to_vec()), Said::Data(b"x".to_vec()), false),
            (window(1, 7), Said::Window(7), false),
            (close(1), Said::Nothing, true),
        ] {
            let frame = read(bytes).await.unwrap();
            assert_eq!((frame.stream, frame.said, frame.last), (1, said, last));
        }
    }

    #[tokio::test]
    async fn frame_that_is_too_long_or_of_something_else_is_refused() {
        let mut long = data(1, Vec::new());
        long[..4].copy_from_slice(&(FRAME_BYTES + 1).to_be_bytes());
        assert!(matches!(read(long).await, Err(WireError::Oversize { .. })));
        for bytes in [
            window(1, -1),
            message(1, "a.b.C", Vec::new()),
            message(1, DATA_TYPE, vec![0xff]),
            client::other_request("x"),
            refusal(1, 3, "no"),
        ] {
            let error = read(bytes).await.unwrap_err();
            assert!(matches!(error, WireError::Protocol { .. }), "{error}");
        }
        let short = data(1, vec![1; 100])[..50].to_vec();
        assert!(matches!(read(short).await, Err(WireError::Connection(_))));
    }
}
