//! One call of grpc.health.v1.Health/Check over HTTP/2 without TLS (RFC 9113; gRPC over HTTP2; gRPC health checking).
//!
//! A connection serves one call, so that header compression has no state: our fields are literals (RFC 7541, 6.2.2), and
//! the server's need not be read, as the answer is in a DATA frame. A server that sends none has refused the call.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Outcome, connect, words};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest frame: the size that nobody has to announce (RFC 9113, 4.2).
const FRAME_BYTES: usize = 16_384;

/// Frames that an answer may take: a server that goes on without answering is left.
const FRAMES: usize = 1000;

/// Stream of the call: the first that a client opens.
const STREAM: u32 = 1;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RESET: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GO_AWAY: u8 = 7;
}

mod flag {
    /// On SETTINGS and PING.
    pub(super) const ACK: u8 = 1;
    /// On DATA and HEADERS.
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    /// On DATA and HEADERS.
    pub(super) const PADDED: u8 = 8;
}

/// Asks the server at `address` for the health of `service`, in the kubelet's words.
pub(super) async fn check(address: SocketAddr, service: &str, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    let Ok(stream) = connect(address, limit).await else {
        return Outcome::Failure(format!(
            "timeout: failed to connect service {:?} within {}s: connection error",
            address.to_string(),
            limit.as_secs()
        ));
    };
    match timeout_at(deadline, call(stream, address, service)).await {
        Err(_) => Outcome::Failure(format!(
            "timeout: health rpc did not complete within {}s",
            limit.as_secs()
        )),
        Ok(Err(why)) => Outcome::Failure(format!("error: health rpc probe failed: {why}")),
        Ok(Ok(Some(1))) => Outcome::Success,
        Ok(Ok(Some(status))) => {
            let name = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "an unknown status",
            };
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Ok(None)) => Outcome::Failure(format!(
            "error: the server refused the call: it does not implement the grpc health protocol \
             (grpc.health.v1.Health), or knows no service {service:?}"
        )),
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = length.get(1..).unwrap_or_default().to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal header field that is not indexed (RFC 7541, 6.2.2), not Huffman-coded.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        integer(&mut bytes, text.len());
        bytes.extend(text.bytes());
    }
    bytes
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn integer(bytes: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        bytes.push(value.to_le_bytes().first().copied().unwrap_or(0));
        return;
    };
    bytes.push(127);
    while rest >= 128 {
        bytes.push(rest.to_le_bytes().first().copied().unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes().first().copied().unwrap_or(0));
}

/// HealthCheckRequest: field 1 is the service's name; with gRPC's five bytes in front.
fn message(service: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if !service.is_empty() {
        body.push(0x0a);
        let mut rest = service.len();
        while rest >= 128 {
            body.push(rest.to_le_bytes().first().copied().unwrap_or(0) | 0x80);
            rest >>= 7;
        }
        body.push(rest.to_le_bytes().first().copied().unwrap_or(0));
        body.extend(service.bytes());
    }
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Makes the call. `None`: the server ended it without a message.
async fn call(
    mut stream: TcpStream,
    address: SocketAddr,
    service: &str,
) -> Result<Option<u64>, String> {
    let headers: Vec<u8> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", &address.to_string()),
        ("content-type", "application/grpc"),
        ("user-agent", "kube-probe/1.35"),
        ("te", "trailers"),
    ]
    .iter()
    .flat_map(|(name, value)| field(name, value))
    .collect();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(kind::SETTINGS, 0, 0, &[]));
    bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, STREAM, &headers));
    let message = message(service);
    if message.len() > FRAME_BYTES {
        return Err("the service's name is too long".into());
    }
    bytes.extend(frame(kind::DATA, flag::END_STREAM, STREAM, &message));
    let lost = |error: std::io::Error| words(&error);
    stream.write_all(&bytes).await.map_err(lost)?;
    let mut data = Vec::new();
    for _ in 0..FRAMES {
        let mut head = [0_u8; 9];
        stream.read_exact(&mut head).await.map_err(lost)?;
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        let id = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        if length > FRAME_BYTES {
            return Err("the server does not speak HTTP/2".into());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.map_err(lost)?;
        match kind {
            kind::SETTINGS if flags & flag::ACK == 0 => {
                let answer = frame(kind::SETTINGS, flag::ACK, 0, &[]);
                stream.write_all(&answer).await.map_err(lost)?;
            }
            kind::PING if flags & flag::ACK == 0 => {
                let answer = frame(kind::PING, flag::ACK, 0, &payload);
                stream.write_all(&answer).await.map_err(lost)?;
            }
            kind::DATA if id == STREAM => {
                data.extend_from_slice(unpadded(&payload, flags)?);
                if data.len() > FRAME_BYTES {
                    return Err("the answer is too long".into());
                }
                if let Some(status) = status(&data)? {
                    return Ok(Some(status));
                }
                if flags & flag::END_STREAM != 0 {
                    return Ok(None);
                }
            }
            kind::HEADERS if id == STREAM && flags & flag::END_STREAM != 0 => return Ok(None),
            kind::RESET if id == STREAM => return Err("the server reset the call".into()),
            kind::GO_AWAY => return Err("the server closed the connection".into()),
            _ => {}
        }
    }
    Err("the server does not answer".into())
}

fn unpadded(payload: &[u8], flags: u8) -> Result<&[u8], String> {
    if flags & flag::PADDED == 0 {
        return Ok(payload);
    }
    let padding = payload.first().copied().map_or(0, usize::from);
    payload
        .len()
        .checked_sub(padding)
        .and_then(|end| payload.get(1..end))
        .ok_or_else(|| "a frame has more padding than bytes".into())
}

/// The status of a HealthCheckResponse (field 1, an enum) when all of it is there.
fn status(data: &[u8]) -> Result<Option<u64>, String> {
    let [compressed, a, b, c, d, body @ ..] = data else {
        return Ok(None);
    };
    if *compressed != 0 {
        return Err("the answer is compressed, which nobody asked for".into());
    }
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    let Some(mut body) = body.get(..length) else {
        return Ok(None);
    };
    let broken = || "the answer is no health status".to_owned();
    let mut found = 0;
    while !body.is_empty() {
        let key = varint(&mut body).ok_or_else(broken)?;
        match (key >> 3, key & 7) {
            (1, 0) => found = varint(&mut body).ok_or_else(broken)?,
            (_, 0) => {
                varint(&mut body).ok_or_else(broken)?;
            }
            (_, 2) => {
                let skip = varint(&mut body).ok_or_else(broken)?;
                let skip = usize::try_from(skip).map_err(|_| broken())?;
                body = body.get(skip..).ok_or_else(broken)?;
            }
            _ => return Err(broken()),
        }
    }
    Ok(Some(found))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server that reads the call and answers with these bytes.
    async fn serve(answer: Vec<u8>) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\x0a\x03app") {
                let mut bytes = [0; 1024];
                let count = stream.read(&mut bytes).await.unwrap();
                request.extend(&bytes[..count]);
            }
            stream.write_all(&answer).await.unwrap();
            // A server that closes with something unread resets the connection.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            request
        });
        (address, task)
    }

    fn health(body: &[u8]) -> Vec<u8> {
        let mut data = vec![0, 0, 0, 0, u8::try_from(body.len()).unwrap()];
        data.extend(body);
        let mut bytes = frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        bytes.extend(frame(kind::PING, 0, 0, &[7; 8]));
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, STREAM, &[0x88]));
        // In two frames, the second one padded.
        bytes.extend(frame(kind::DATA, 0, STREAM, &data[..3]));
        let mut padded = vec![2];
        padded.extend(&data[3..]);
        padded.extend([0, 0]);
        bytes.extend(frame(kind::DATA, flag::PADDED, STREAM, &padded));
        bytes
    }

    #[tokio::test]
    async fn check_of_a_serving_server_succeeds() {
        let (address, server) = serve(health(&[8, 1])).await;
        assert_eq!(check(address, "app", LIMIT).await, Outcome::Success);
        let request = server.await.unwrap();
        assert!(request.starts_with(PREFACE));
        let path = b"/grpc.health.v1.Health/Check";
        assert!(request.windows(path.len()).any(|w| w == path));
    }

    #[tokio::test]
    async fn check_of_an_unwell_server_says_its_status() {
        let (address, _server) = serve(health(&[8, 2])).await;
        assert_eq!(
            check(address, "app", LIMIT).await,
            Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".into())
        );
        // An empty message is a status of zero.
        let (address, _server) = serve(health(&[])).await;
        assert_eq!(
            check(address, "app", LIMIT).await,
            Outcome::Failure("service unhealthy (responded with \"UNKNOWN\")".into())
        );
    }

    #[tokio::test]
    async fn check_of_a_server_that_refuses_or_is_none_says_so() {
        let refusal = frame(
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            STREAM,
            &[0x88],
        );
        let (address, _server) = serve(refusal).await;
        let Outcome::Failure(why) = check(address, "app", LIMIT).await else {
            panic!("no failure");
        };
        assert!(why.contains("does not implement"), "{why}");
        let (address, _server) = serve(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await;
        let Outcome::Failure(why) = check(address, "app", LIMIT).await else {
            panic!("no failure");
        };
        assert!(why.contains("does not speak HTTP/2"), "{why}");
    }

    #[tokio::test]
    async fn check_of_a_real_server_follows_what_it_reports() {
        use tonic_health::ServingStatus::{NotServing, Serving};

        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("app", Serving).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        for service in ["", "app"] {
            let outcome = check(address, service, LIMIT).await;
            assert!(
                matches!(outcome, Outcome::Success),
                "{service}: {outcome:?}"
            );
        }
        let failure = |outcome| match outcome {
            Outcome::Failure(why) => why,
            other => panic!("{other:?}"),
        };
        reporter.set_service_status("app", NotServing).await;
        let why = failure(check(address, "app", LIMIT).await);
        assert_eq!(why, "service unhealthy (responded with \"NOT_SERVING\")");
        let why = failure(check(address, "other", LIMIT).await);
        assert!(why.contains("knows no service \"other\""), "{why}");
        server.abort();
    }

    #[test]
    fn status_of_broken_answers_is_refused() {
        for bad in [
            &[1, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 2, 0x12, 9],
            &[0, 0, 0, 0, 1, 0x0f],
        ] {
            assert!(status(bad).is_err(), "{bad:?}");
        }
        assert_eq!(status(&[0, 0, 0, 0, 2, 8]), Ok(None));
        assert_eq!(unpadded(&[9, 1], flag::PADDED).ok(), None);
        assert_eq!(unpadded(&[], flag::PADDED).ok(), None);
    }

    #[test]
    fn integer_beyond_its_prefix_goes_on_in_bytes_of_seven_bits() {
        let mut bytes = Vec::new();
        integer(&mut bytes, 126);
        integer(&mut bytes, 127);
        integer(&mut bytes, 127 + 300);
        assert_eq!(bytes, [126, 127, 0, 127, 0xac, 2]);
    }
}
