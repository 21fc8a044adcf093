//! The stream port: each connection says in one line what it is for, and carries bytes from then on.
//!
//! One task for each connection, bounded in number. Header and replies are `vmpod_agent_protocol::stream`.

mod archive;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use vmpod_agent_protocol::limits::STREAM_HEADER_BYTES;
use vmpod_agent_protocol::stream::{
    StdioStream, StreamHeader, StreamReply, decode_line, encode_line,
};

use crate::byte_stream::ByteStream;
use crate::container::{Engine, ProcessName};

/// Connections at a time.
const CONNECTIONS: usize = 4096;
/// How long a header may take.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// Accepts connections until the runtime ends.
pub async fn serve(listener: OwnedFd, engine: Engine) -> io::Result<()> {
    let listener = ByteStream::new(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok(connection) => {
                let engine = engine.clone();
                tokio::spawn(async move {
                    handle(connection, &engine).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, or a connection that has gone: neither may end the service.
                crate::boot::report(&format!("accept a stream: {error}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn handle(connection: ByteStream, engine: &Engine) {
    let header = match tokio::time::timeout(HEADER_TIME, read_header(&connection)).await {
        Ok(Ok(header)) => header,
        Ok(Err(text)) => return refuse(&connection, text).await,
        Err(_) => return,
    };
    match header {
        StreamHeader::Stdio {
            container,
            exec,
            stream,
        } => {
            let name = ProcessName { container, exec };
            stdio(connection, engine, &name, stream).await;
        }
        StreamHeader::Connect { port } => connect(connection, port).await,
        StreamHeader::ArchiveRead { container, path } => {
            archive::serve(
                connection,
                engine,
                &container,
                path.into(),
                archive::Direction::Read,
            )
            .await;
        }
        StreamHeader::ArchiveWrite { container, path } => {
            archive::serve(
                connection,
                engine,
                &container,
                path.into(),
                archive::Direction::Write,
            )
            .await;
        }
    }
}

/// Reads exactly the header line; what follows it belongs to the stream.
async fn read_header(connection: &ByteStream) -> Result<StreamHeader, String> {
    let mut line = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let seen = connection
            .peek(&mut buffer)
            .await
            .map_err(|error| error.to_string())?;
        let seen = buffer.get(..seen).unwrap_or_default();
        if seen.is_empty() {
            return Err("the connection ended within the header".into());
        }
        let end = seen.iter().position(|byte| *byte == b'\n');
        let wanted = end.map_or(seen.len(), |end| end + 1);
        let Some(target) = buffer.get_mut(..wanted) else {
            return Err("the header is out of bounds".into());
        };
        let length = connection
            .read(target)
            .await
            .map_err(|error| error.to_string())?;
        line.extend_from_slice(target.get(..length).unwrap_or_default());
        if line.last() == Some(&b'\n') {
            line.pop();
            return decode_line(&line).map_err(|error| describe(&error));
        }
        if line.len() >= STREAM_HEADER_BYTES {
            return Err(format!(
                "the header exceeds the limit of {STREAM_HEADER_BYTES} bytes"
            ));
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

async fn reply(connection: &ByteStream, reply: &StreamReply) -> bool {
    match encode_line(reply) {
        Ok(line) => connection.write_all(&line).await.is_ok(),
        Err(_) => false,
    }
}

async fn refuse(connection: &ByteStream, message: String) {
    reply(connection, &StreamReply::Refused { message }).await;
}

async fn stdio(connection: ByteStream, engine: &Engine, name: &ProcessName, stream: StdioStream) {
    let streams = match engine.streams(name) {
        Ok(streams) => streams,
        Err(error) => return refuse(&connection, error.to_string()).await,
    };
    let missing =
        || format!("{name} has no {stream:?} to connect to: it was not asked for at creation");
    if stream == StdioStream::Stdin {
        let Some(input) = streams.input() else {
            return refuse(&connection, missing()).await;
        };
        if reply(&connection, &StreamReply::Ready).await {
            input.copy_from(&connection).await;
        }
    } else {
        let Some(output) = streams.output(stream) else {
            return refuse(&connection, missing()).await;
        };
        if reply(&connection, &StreamReply::Ready).await {
            output.copy_to(&connection).await;
        }
    }
}

/// A TCP connection to the pod's own localhost, IPv4 first.
async fn connect(mut connection: ByteStream, port: u16) {
    let mut refusal = String::new();
    for address in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        match TcpStream::connect((address, port)).await {
            Ok(mut target) => {
                let _ = target.set_nodelay(true);
                if reply(&connection, &StreamReply::Ready).await {
                    // Either side may break; the other one is then closed, which is all there is to say.
                    let _ = tokio::io::copy_bidirectional(&mut connection, &mut target).await;
                }
                return;
            }
            Err(error) if refusal.is_empty() => {
                refusal = format!("connect to port {port} of the pod: {error}");
            }
            Err(_) => {}
        }
    }
    refuse(&connection, refusal).await;
}
