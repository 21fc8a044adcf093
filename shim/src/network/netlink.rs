//! Netlink messages by hand (netlink(7)): what goes out in one datagram, and what the kernel answers to each message of
//! it. Knows neither links nor packet filters, and has no task or thread: the kernel works while the datagram is handed
//! over, so that all answers are there afterwards.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// Types and flags of messages (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x001;
pub(super) const NLM_F_ACK: u16 = 0x004;
/// All there is, instead of one.
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// Says that an attribute holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;

/// Attribute of an error that holds the kernel's words, and the options that have it sent without the request.
const NLMSGERR_ATTR_MSG: u16 = 1;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;

/// Bytes that one answer may have; the largest is the description of a link, well below a page or two.
const ANSWER_BYTES: usize = 32 * 1024;

/// A row of attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// With `value` as it is.
    #[must_use]
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // A length beyond 16 bits is no attribute: the kernel refuses what does not fit, and callers split before.
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
        self
    }

    /// With a text that ends in NUL.
    #[must_use]
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// With a number in network order, as the packet filter has them.
    #[must_use]
    pub(super) fn big_endian(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// With a number in the machine's order, as links have them.
    #[must_use]
    pub(super) fn native(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_ne_bytes())
    }

    /// With attributes of its own.
    #[must_use]
    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// A message that is not numbered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    /// What it does, for errors: "make chain x".
    what: String,
}

impl Message {
    /// A request of type `kind` whose fixed part is `head`.
    pub(super) fn new(
        kind: u16,
        flags: u16,
        head: &[u8],
        attributes: &Attributes,
        what: impl Into<String>,
    ) -> Self {
        let mut body = head.to_vec();
        pad(&mut body);
        body.extend_from_slice(&attributes.0);
        Self {
            kind,
            flags: flags | NLM_F_REQUEST,
            body,
            what: what.into(),
        }
    }

    fn write(&self, sequence: u32, to: &mut Vec<u8>) {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).unwrap_or(u32::MAX);
        to.extend_from_slice(&length.to_ne_bytes());
        to.extend_from_slice(&self.kind.to_ne_bytes());
        to.extend_from_slice(&self.flags.to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        // The kernel's own port: 0.
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(&self.body);
    }
}

/// All messages in the bytes of one datagram, numbered by their places.
pub(super) fn datagram(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sequence, message) in (0..).zip(messages) {
        message.write(sequence, &mut bytes);
    }
    bytes
}

/// The kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no talking to it.
    #[error("cannot {what} a netlink socket")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// It says no to a message.
    #[error("the kernel does not {what}{}", in_brackets(.words))]
    Refused {
        /// What the message was to do.
        what: String,
        /// The kernel's own words; empty when it has none.
        words: String,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// A message has no answer.
    #[error("the kernel did not say whether it did {what}")]
    Unanswered {
        /// What the message was to do.
        what: String,
    },
}

fn in_brackets(words: &str) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!(" ({words})")
    }
}

impl NetlinkError {
    /// Error number of a refusal.
    pub(super) fn number(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Links and addresses (rtnetlink(7)).
    Route,
    /// The packet filter.
    Netfilter,
}

/// Has the kernel of this network namespace take `messages`, all in one datagram, and returns what it says in answer beside
/// that it has: the bodies of its messages, in order.
///
/// # Errors
/// The first refusal, or that of a message that asked for an answer ([`NLM_F_ACK`]) and has none.
pub(super) fn exchange(family: Family, messages: &[Message]) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let fail = |what| {
        move |errno: nix::errno::Errno| NetlinkError::Socket {
            what,
            source: errno.into(),
        }
    };
    let socket = open(family).map_err(fail("open"))?;
    let bytes = datagram(messages);
    if bytes.len() > 64 << 10 {
        // Beyond the usual bound of a socket, which holds for those without privileges.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &(bytes.len() * 2));
    }
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(fail("write to"))?;
    let mut answered = vec![false; messages.len()];
    let mut said = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(fail("read from")(errno)),
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((answer, further)) = split(rest) {
            rest = further;
            let index = answer.sequence as usize;
            if answer.kind == NLMSG_DONE {
                if let Some(place) = answered.get_mut(index) {
                    *place = true;
                }
                continue;
            }
            if answer.kind != NLMSG_ERROR {
                said.push(answer.body.to_vec());
                // Who asks for something is answered with it alone.
                if let Some(place) = answered.get_mut(index) {
                    *place = true;
                }
                continue;
            }
            let (code, words) = verdict(answer.body);
            if code != 0 {
                return Err(NetlinkError::Refused {
                    what: messages
                        .get(index)
                        .map(|message| message.what.clone())
                        .unwrap_or_default(),
                    words,
                    source: io::Error::from_raw_os_error(code.wrapping_neg()),
                });
            }
            if let Some(place) = answered.get_mut(index) {
                *place = true;
            }
        }
    }
    let silent = messages
        .iter()
        .zip(answered)
        .find(|(message, answered)| message.flags & NLM_F_ACK != 0 && !answered);
    match silent {
        Some((message, _)) => Err(NetlinkError::Unanswered {
            what: message.what.clone(),
        }),
        None => Ok(said),
    }
}

fn open(family: Family) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        },
    )?;
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        let yes: libc::c_int = 1;
        // SAFETY: the value is one integer of the size given. Without the options errors only lose their words.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const yes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
    Ok(socket)
}

struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message of `bytes`, and what is behind it.
fn split(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(number(bytes, 0)?)).ok()?;
    let answer = Answer {
        kind: u16::from_ne_bytes(number(bytes, 4)?),
        sequence: u32::from_ne_bytes(number(bytes, 8)?),
        body: bytes.get(HEADER_BYTES..length)?,
    };
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((answer, rest))
}

/// Error number (0 or negative) and words of an [`NLMSG_ERROR`].
fn verdict(body: &[u8]) -> (i32, String) {
    let code = number(body, 0).map_or(-libc::EBADMSG, i32::from_ne_bytes);
    // The number is followed by the header of the request.
    let words = attributes(body, 4 + HEADER_BYTES)
        .into_iter()
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, words)| String::from_utf8_lossy(words));
    let words = words.unwrap_or_default();
    (code, words.trim_end_matches('\0').to_owned())
}

/// The attributes behind the first `head` bytes of a message: kinds and values. What does not fit ends the row.
pub(super) fn attributes(body: &[u8], head: usize) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    let mut rest = body.get(head..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (number(rest, 0), number(rest, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = rest.get(ATTRIBUTE_BYTES..length) else {
            break;
        };
        // The two upper bits are flags.
        found.push((u16::from_ne_bytes(kind) & 0x3fff, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// `N` bytes of `bytes` from `at` on.
pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let inner = Attributes::new().bytes(1, &[7]);
        let outer = Attributes::new().text(3, "ab").nested(4, &inner);
        assert_eq!(
            outer.0,
            [
                7, 0, 3, 0, b'a', b'b', 0, 0, 12, 0, 4, 0x80, 5, 0, 1, 0, 7, 0, 0, 0
            ]
        );
    }

    #[test]
    fn datagram_numbers_its_messages() {
        let message = Message::new(
            0x10,
            NLM_F_ACK,
            &[2, 0, 0, 0],
            &Attributes::new().big_endian(5, 1),
            "x",
        );
        let bytes = datagram(&[message.clone(), message]);
        assert_eq!(bytes.len(), 56);
        let (first, rest) = split(&bytes).unwrap();
        assert_eq!((first.kind, first.sequence), (0x10, 0));
        assert_eq!(first.body, [2, 0, 0, 0, 8, 0, 5, 0, 0, 0, 0, 1]);
        assert_eq!(split(rest).unwrap().0.sequence, 1);
    }

    #[test]
    fn split_of_a_length_that_lies_is_nothing() {
        for length in [0_u32, 8, 200, u32::MAX] {
            let mut bytes = vec![0; 32];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(split(&bytes).is_none(), "{length}");
        }
    }

    #[test]
    fn verdict_with_words_has_number_and_words() {
        let mut body = (-2_i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER_BYTES]);
        body.extend(Attributes::new().bytes(9, &[1]).text(1, "no such").0);
        assert_eq!(verdict(&body), (-2, "no such".to_owned()));
        assert_eq!(verdict(&[]), (-libc::EBADMSG, String::new()));
    }

    #[test]
    fn exchange_for_a_link_that_is_not_there_is_a_refusal_with_its_number() {
        // RTM_GETLINK, which needs no privileges, of a name that no link can have.
        let ask = Message::new(
            18,
            NLM_F_ACK,
            &[0; 16],
            &Attributes::new().text(3, "no/such/link"),
            "find a link",
        );
        let error = exchange(Family::Route, &[ask]).unwrap_err();
        assert_eq!(error.number(), Some(libc::ENODEV), "{error:?}");
        assert!(error.to_string().contains("find a link"), "{error}");
    }
}
