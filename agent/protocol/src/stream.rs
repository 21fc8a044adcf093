//! Raw byte streams: what a host writes first on a connection to [`crate::STREAM_PORT`].
//!
//! The host connects and sends one JSON line, a [`StreamHeader`]. The agent answers with one JSON line, a
//! [`StreamReply`]. After `Ready` the connection carries plain bytes; the end of a direction is a shutdown of that
//! direction, and back-pressure is vsock's own credit.

use serde::{Deserialize, Serialize};

use crate::limits::STREAM_HEADER_BYTES;

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamHeader {
    /// One stdio stream of a process. `stdin`: host to guest; others: guest to host. With a terminal, `stdout`
    /// carries the terminal's output and `stderr` does not exist. A second connection to a stream takes the place of
    /// the first; bytes wait in the process's pipe while there is none.
    Stdio {
        /// Container id.
        container: String,
        /// Exec id; empty for the container's first process.
        exec: String,
        /// Which stream.
        stream: StdioStream,
    },
    /// A TCP connection to the pod's own localhost (port-forward), both directions.
    Connect {
        /// TCP port on the pod's 127.0.0.1 (then ::1 when refused).
        port: u16,
    },
    /// A tar archive of `path` as seen inside the container, guest to host. Symbolic links are resolved in the
    /// container's root.
    ArchiveRead {
        /// Container id.
        container: String,
        /// Absolute path in the container.
        path: String,
    },
    /// A tar archive, host to guest, unpacked below directory `path` as seen inside the container. When all is
    /// unpacked the agent sends a [`StreamReply`] line.
    ArchiveWrite {
        /// Container id.
        container: String,
        /// Absolute path in the container.
        path: String,
    },
}

/// A stdio stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdioStream {
    /// Standard input.
    Stdin,
    /// Standard output, or the terminal's output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The agent's answer to a header, and to the end of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum StreamReply {
    /// Bytes follow (or: the archive is unpacked).
    Ready,
    /// Nothing follows.
    Refused {
        /// What was tried, on what, and why it failed.
        message: String,
    },
}

/// A header or reply line could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamLineError {
    /// The line is longer than the limit.
    #[error("stream line of {length} bytes exceeds the limit of {STREAM_HEADER_BYTES} bytes")]
    TooLong {
        /// Length so far, in bytes.
        length: usize,
    },
    /// Not the JSON that was expected.
    #[error("stream line is not a valid message")]
    Invalid(#[source] serde_json::Error),
}

/// Encodes a header or reply as one line with its newline.
pub fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, StreamLineError> {
    let mut line = serde_json::to_vec(message).map_err(StreamLineError::Invalid)?;
    line.push(b'\n');
    if line.len() > STREAM_HEADER_BYTES {
        return Err(StreamLineError::TooLong { length: line.len() });
    }
    Ok(line)
}

/// Decodes a line without its newline.
pub fn decode_line<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, StreamLineError> {
    if line.len() >= STREAM_HEADER_BYTES {
        return Err(StreamLineError::TooLong { length: line.len() });
    }
    serde_json::from_slice(line).map_err(StreamLineError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_has_golden_bytes() {
        let header = StreamHeader::Stdio {
            container: "web.0".into(),
            exec: String::new(),
            stream: StdioStream::Stdout,
        };
        let line = encode_line(&header).unwrap();
        assert_eq!(
            line,
            b"{\"kind\":\"stdio\",\"container\":\"web.0\",\"exec\":\"\",\"stream\":\"stdout\"}\n"
        );
        let back: StreamHeader = decode_line(&line[..line.len() - 1]).unwrap();
        assert_eq!(back, header);
    }

    #[test]
    fn header_with_unknown_kind_is_invalid() {
        assert!(matches!(
            decode_line::<StreamHeader>(b"{\"kind\":\"shell\"}"),
            Err(StreamLineError::Invalid(_))
        ));
    }

    #[test]
    fn line_over_the_limit_is_refused() {
        let header = StreamHeader::ArchiveRead {
            container: "c".into(),
            path: "x".repeat(STREAM_HEADER_BYTES),
        };
        assert!(matches!(
            encode_line(&header),
            Err(StreamLineError::TooLong { .. })
        ));
        let long = vec![b' '; STREAM_HEADER_BYTES];
        assert!(matches!(
            decode_line::<StreamReply>(&long),
            Err(StreamLineError::TooLong { .. })
        ));
    }
}
