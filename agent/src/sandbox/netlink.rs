//! Batches of rtnetlink requests on a plain socket: everything is sent at once, every answer is looked at.
//!
//! The few messages that a pod's network needs are laid out here by hand: a netlink library with a task of its own and
//! a round trip for each request would cost more than the work. Source: netlink(7), rtnetlink(7),
//! include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour}.h.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The answer's attributes begin after the error number and a copy of the request's header.
const EXTENDED_TEXT_OFFSET: usize = 4 + HEADER_BYTES;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;

/// Requests sent in one go: the answers to so many fit into a socket's receive buffer.
const BATCH: usize = 64;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    /// What it does, for errors.
    what: String,
}

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct NetlinkError {
    what: String,
    reason: String,
}

impl Request {
    /// A request of type `kind` with `flags`, whose fixed part is `body`; `what` is for errors.
    pub fn new(kind: u16, flags: u16, body: &[u8], what: String) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        put(&mut bytes, 4, &kind.to_ne_bytes());
        put(
            &mut bytes,
            6,
            &(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes(),
        );
        bytes.extend_from_slice(body);
        let mut request = Request { bytes, what };
        request.pad();
        request
    }

    /// Appends an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn finished(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        put(&mut bytes, 0, &length.to_ne_bytes());
        put(&mut bytes, 8, &sequence.to_ne_bytes());
        bytes
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Sends requests in order and waits for all answers; the first refusal is the error.
pub fn send(requests: &[Request]) -> Result<(), NetlinkError> {
    let problem = |error: io::Error| NetlinkError {
        what: "talk to the kernel about the network".into(),
        reason: error.to_string(),
    };
    if requests.is_empty() {
        return Ok(());
    }
    let socket = open().map_err(problem)?;
    for (batch, chunk) in requests.chunks(BATCH).enumerate() {
        let first = batch * BATCH;
        let message: Vec<u8> = chunk
            .iter()
            .enumerate()
            .flat_map(|(place, request)| {
                request.finished(u32::try_from(first + place).unwrap_or(u32::MAX))
            })
            .collect();
        // SAFETY: the pointer and length are those of a live buffer; a netlink socket without an address set sends to
        // the kernel.
        let sent = unsafe {
            libc::send(
                socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(problem(io::Error::last_os_error()));
        }
        let mut answered = 0;
        let mut buffer = vec![0; 32 * 1024];
        while answered < chunk.len() {
            // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
            let length = unsafe {
                libc::recv(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            let length =
                usize::try_from(length).map_err(|_| problem(io::Error::last_os_error()))?;
            let mut answers = buffer.get(..length).unwrap_or_default();
            while let Some((answer, rest)) = split_message(answers) {
                answers = rest;
                if let Some((sequence, result)) = read_answer(answer) {
                    answered += 1;
                    result.map_err(|reason| NetlinkError {
                        what: requests
                            .get(sequence)
                            .map(|request| request.what.clone())
                            .unwrap_or_default(),
                        reason,
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        let yes: libc::c_int = 1;
        // SAFETY: the value is one integer of the size given. Without the options errors only lose their text.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const yes).cast(),
                mem::size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
    Ok(socket)
}

fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(number(bytes, 0)?)).ok()?;
    if length < HEADER_BYTES {
        return None;
    }
    let message = bytes.get(..length)?;
    Some((
        message,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Sequence number and result of an answer; `None`: not an answer.
fn read_answer(message: &[u8]) -> Option<(usize, Result<(), String>)> {
    if u16::from_ne_bytes(number(message, 4)?) != NLMSG_ERROR {
        return None;
    }
    let sequence = usize::try_from(u32::from_ne_bytes(number(message, 8)?)).ok()?;
    let body = message.get(HEADER_BYTES..)?;
    let code = i32::from_ne_bytes(number(body, 0)?);
    if code == 0 {
        return Some((sequence, Ok(())));
    }
    let mut text = Errno::from_raw(code.wrapping_neg()).desc().to_owned();
    let mut attributes = body.get(EXTENDED_TEXT_OFFSET..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (number(attributes, 0), number(attributes, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = attributes.get(4..length) else {
            break;
        };
        if u16::from_ne_bytes(kind) == NLMSGERR_ATTR_MSG {
            let words = String::from_utf8_lossy(value);
            text = format!("{text} ({})", words.trim_end_matches('\0'));
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some((sequence, Err(text)))
}
