//! What the guest put on the rings, checked. No I/O, no state.

use vm_memory::VolatileSlice;

use super::spec::{HEADER_BYTES, Header, MAX_PAYLOAD};
use crate::virtio::chain::{copy_out, total_len};

/// A packet from the guest is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketFault {
    /// Fewer readable bytes than a header has.
    #[error("a packet has {readable} bytes, fewer than its header")]
    ShortHeader {
        /// Readable bytes of the chain.
        readable: usize,
    },
    /// The header promises more payload than there is, or than a packet may have.
    #[error("a packet header says {len} bytes of payload where {available} are")]
    Length {
        /// Field `len`.
        len: u32,
        /// Readable bytes behind the header.
        available: usize,
    },
}

/// Reads a packet header from a transmit chain. The payload follows at [`HEADER_BYTES`] and has `len` bytes, which are
/// there and at most [`MAX_PAYLOAD`].
///
/// # Errors
/// The guest's mistake.
pub fn parse_packet(readable: &[VolatileSlice<'_>]) -> Result<Header, PacketFault> {
    let mut bytes = [0; HEADER_BYTES];
    let n = copy_out(readable, 0, &mut bytes);
    if n < HEADER_BYTES {
        return Err(PacketFault::ShortHeader { readable: n });
    }
    // Read once into memory of our own: the guest cannot change it between check and use.
    let header = Header::from_bytes(&bytes);
    let available = total_len(readable) - HEADER_BYTES;
    match usize::try_from(header.len) {
        Ok(len) if len <= available && len <= MAX_PAYLOAD => Ok(header),
        _ => Err(PacketFault::Length {
            len: header.len,
            available,
        }),
    }
}

/// Payload room of a receive chain in bytes, at most [`MAX_PAYLOAD`]; `None` when not even a header and one byte fit.
#[must_use]
pub fn payload_room(writable: &[VolatileSlice<'_>]) -> Option<usize> {
    let room = total_len(writable).checked_sub(HEADER_BYTES)?;
    (room > 0).then_some(room.min(MAX_PAYLOAD))
}

/// What a host client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// More bytes have to come.
    Incomplete,
    /// `CONNECT <port>\n`, this many bytes long.
    Connect {
        /// Guest port.
        port: u32,
        /// Bytes of the line with its end.
        length: usize,
    },
    /// Anything else.
    Malformed,
}

/// Longest handshake line in bytes, with its end.
pub const HANDSHAKE_BYTES: usize = 32;

/// Reads what a host client sent first; `bytes` are the first [`HANDSHAKE_BYTES`] at most.
#[must_use]
pub fn parse_handshake(bytes: &[u8]) -> Handshake {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        return if bytes.len() < HANDSHAKE_BYTES {
            Handshake::Incomplete
        } else {
            Handshake::Malformed
        };
    };
    let port = bytes
        .get(..end)
        .and_then(|line| line.strip_prefix(b"CONNECT "))
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        // VMADDR_PORT_ANY is no port to connect to (vsock(7)).
        .filter(|&port| port != u32::MAX);
    match port {
        Some(port) => Handshake::Connect {
            port,
            length: end + 1,
        },
        None => Handshake::Malformed,
    }
}
