//! One stream between a host socket and a guest port: its phases, the credit of both directions, half-close.
//!
//! Owned by the worker through the connection table. Knows nothing of rings, epoll or other connections.
//!
//! The device never resets a connection that ends in order: Linux drops what a reader has not fetched yet when it gets
//! RST. It tells SHUTDOWN instead, and the guest answers RST when its reader is done.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use super::send_buffer::{SendBuffer, send};
use super::spec::{
    HEADER_BYTES, HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE,
    OP_RST, OP_RW, OP_SHUTDOWN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::virtio::chain::IoVecs;

/// Bytes that the guest may have under way to a host socket: what the device buffers at most for one connection.
pub const BUFFER_BYTES: u32 = 128 << 10;

/// Both ends of a connection. Unique among the connections of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Port at the host (context id 2).
    pub host: u32,
    /// Port at the guest.
    pub guest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A host client wants the guest; REQUEST is to be sent.
    Requesting,
    /// REQUEST was sent.
    Requested,
    /// A guest client was let in; RESPONSE is to be sent.
    Accepting,
    /// Both sides know.
    Open,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It ends and the guest is to be told by RST.
    Reset,
    /// It ends and the guest knows.
    End,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,
    /// Bytes from the guest that the host socket has not taken.
    buffer: SendBuffer,
    /// Bytes from the guest that the host socket took, or that were dropped because it is gone.
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    forwarded_told: u32,
    /// The guest asked for the credit.
    credit_wanted: bool,
    /// Payload sent to the guest.
    sent: u32,
    /// The guest's `buf_alloc`.
    guest_buffer: u32,
    /// The guest's `fwd_cnt`.
    guest_forwarded: u32,
    /// The guest was asked for its credit since it last ran out.
    credit_asked: bool,
    /// The host socket may have something to read.
    host_readable: bool,
    /// The host sends no more.
    host_ended: bool,
    /// The host takes no more.
    host_gone: bool,
    /// The guest sends no more.
    guest_ended: bool,
    /// The guest takes no more.
    guest_gone: bool,
    /// Flags of the last SHUTDOWN sent.
    shutdown_told: u32,
}

impl Connection {
    /// A host client that wants a guest port.
    #[must_use]
    pub fn from_host(ports: Ports, stream: UnixStream) -> Self {
        Self::new(ports, stream, Phase::Requesting)
    }

    /// A guest client (its REQUEST is `request`) that was connected to a host listener.
    #[must_use]
    pub fn from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Phase::Accepting);
        connection.note_credit(request);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, phase: Phase) -> Self {
        Self {
            ports,
            stream,
            phase,
            buffer: SendBuffer::default(),
            forwarded: 0,
            forwarded_told: 0,
            credit_wanted: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            credit_asked: false,
            host_readable: true,
            host_ended: false,
            host_gone: false,
            guest_ended: false,
            guest_gone: false,
            shutdown_told: 0,
        }
    }

    /// Both ends.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The host's side.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// True until the guest has answered the request of a host client.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        matches!(self.phase, Phase::Requesting | Phase::Requested)
    }

    /// True when the host socket is to be watched for space.
    #[must_use]
    pub fn awaits_space(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The host socket, and what it has not taken yet.
    #[must_use]
    pub fn into_rest(self) -> (UnixStream, SendBuffer) {
        (self.stream, self.buffer)
    }

    /// Takes a packet from the guest whose payload follows the header in `readable`.
    pub fn take_packet<'m>(
        &mut self,
        header: &Header,
        readable: &[VolatileSlice<'m>],
        vectors: &mut IoVecs<'m>,
    ) -> Verdict {
        self.note_credit(header);
        match (header.op, self.phase) {
            (OP_RST, _) => Verdict::End,
            (OP_RESPONSE, Phase::Requested) => self.open(),
            (OP_RW, Phase::Open) => self.take_payload(header.len, readable, vectors),
            (OP_SHUTDOWN, Phase::Open) => self.take_shutdown(header.flags),
            (OP_CREDIT_UPDATE, _) => Verdict::Keep,
            (OP_CREDIT_REQUEST, _) => {
                self.credit_wanted = true;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    /// Takes note of events of the host socket.
    pub fn take_host_events(&mut self, readable: bool, writable: bool, hung_up: bool) -> Verdict {
        self.host_readable |= readable || hung_up;
        if hung_up {
            match self.phase {
                Phase::Requesting => return Verdict::End,
                Phase::Requested => return Verdict::Reset,
                Phase::Accepting | Phase::Open => self.lose_host(),
            }
        }
        if writable && !self.buffer.is_empty() {
            match self.buffer.flush(self.stream.as_fd()) {
                Ok(n) => self.forward(n),
                Err(_) => self.lose_host(),
            }
            self.end_host_direction_if_drained();
        }
        Verdict::Keep
    }

    /// True when there is something to send to the guest, as far as is known without reading the socket.
    #[must_use]
    pub fn has_work(&self) -> bool {
        match self.phase {
            Phase::Requesting | Phase::Accepting => true,
            Phase::Requested => false,
            Phase::Open => self.may_read() || self.shutdown_due() || self.credit_due(),
        }
    }

    /// The next packet to the guest. Its payload is put behind the room for a header in `writable`, `room` bytes at most;
    /// the header is left to the caller.
    pub fn next_packet<'m>(
        &mut self,
        writable: &[VolatileSlice<'m>],
        room: usize,
        vectors: &mut IoVecs<'m>,
    ) -> Option<Header> {
        match self.phase {
            Phase::Requesting => {
                self.phase = Phase::Requested;
                return Some(self.header(OP_REQUEST));
            }
            Phase::Accepting => {
                self.phase = Phase::Open;
                return Some(self.header(OP_RESPONSE));
            }
            Phase::Requested => return None,
            Phase::Open => {}
        }
        if self.may_read() {
            let credit = self.credit();
            if credit == 0 {
                self.credit_asked = true;
                return Some(self.header(OP_CREDIT_REQUEST));
            }
            let most = room.min(usize::try_from(credit).unwrap_or(usize::MAX));
            let len = self.read_host(writable, most, vectors);
            if len > 0 {
                self.sent = self.sent.wrapping_add(len);
                let mut header = self.header(OP_RW);
                header.len = len;
                return Some(header);
            }
        }
        if self.shutdown_due() {
            self.shutdown_told = self.shutdown_flags();
            let mut header = self.header(OP_SHUTDOWN);
            header.flags = self.shutdown_told;
            return Some(header);
        }
        self.credit_due().then(|| self.header(OP_CREDIT_UPDATE))
    }

    fn header(&mut self, op: u16) -> Header {
        self.forwarded_told = self.forwarded;
        self.credit_wanted = false;
        Header {
            src_cid: HOST_CID,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            socket_type: TYPE_STREAM,
            op,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Bytes that the guest takes now. A guest that says it passed on more than it was sent gets nothing.
    fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    fn may_read(&self) -> bool {
        self.host_readable
            && !self.host_ended
            && !self.guest_gone
            && (self.credit() > 0 || !self.credit_asked)
    }

    /// Reads from the host socket; 0 when there is nothing now.
    fn read_host<'m>(
        &mut self,
        writable: &[VolatileSlice<'m>],
        most: usize,
        vectors: &mut IoVecs<'m>,
    ) -> u32 {
        vectors.fill(writable, HEADER_BYTES, most);
        loop {
            match vectors.read_from(self.stream.as_fd()) {
                Ok(0) => self.host_ended = true,
                // At most `most`, which is at most the credit.
                Ok(n) => return u32::try_from(n).unwrap_or(u32::MAX),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.host_readable = false,
                Err(_) => {
                    self.host_ended = true;
                    self.lose_host();
                }
            }
            return 0;
        }
    }

    fn shutdown_flags(&self) -> u32 {
        let mut flags = 0;
        if self.host_ended {
            flags |= SHUTDOWN_SEND;
        }
        if self.host_gone {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags
    }

    fn shutdown_due(&self) -> bool {
        self.shutdown_flags() != self.shutdown_told
    }

    fn credit_due(&self) -> bool {
        // The guest never waits for longer than this: what it does not know of is less than half of the buffer.
        self.credit_wanted || self.forwarded.wrapping_sub(self.forwarded_told) >= BUFFER_BYTES / 2
    }

    fn open(&mut self) -> Verdict {
        let answer = format!("OK {}\n", self.ports.host);
        // A socket that nothing was written to takes a line at once, unless its peer is gone.
        match send(self.stream.as_fd(), answer.as_bytes()) {
            Ok(n) if n == answer.len() => {
                self.phase = Phase::Open;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    fn take_payload<'m>(
        &mut self,
        len: u32,
        readable: &[VolatileSlice<'m>],
        vectors: &mut IoVecs<'m>,
    ) -> Verdict {
        // Both are at most a few hundred KiB.
        let (len, limit) = (len as usize, BUFFER_BYTES as usize);
        if self.guest_ended || len > limit.saturating_sub(self.buffer.len()) {
            return Verdict::Reset;
        }
        if self.host_gone {
            self.forward(len);
            return Verdict::Keep;
        }
        let mut done = 0;
        while self.buffer.is_empty() && done < len {
            vectors.fill(readable, HEADER_BYTES + done, len - done);
            match vectors.send_to(self.stream.as_fd()) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.lose_host();
                    done = len;
                }
            }
        }
        self.forward(done);
        if done < len {
            self.buffer.push(readable, HEADER_BYTES + done, len - done);
        }
        Verdict::Keep
    }

    fn take_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_ended |= flags & SHUTDOWN_SEND != 0;
        if flags & SHUTDOWN_RECEIVE != 0 && !self.guest_gone {
            self.guest_gone = true;
            // It fails only when the peer is gone, which is noticed elsewhere.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest_ended && self.guest_gone {
            return Verdict::Reset;
        }
        self.end_host_direction_if_drained();
        Verdict::Keep
    }

    fn end_host_direction_if_drained(&mut self) {
        if self.guest_ended && self.buffer.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// The host takes no more: what is on its way is dropped, and the guest will be told.
    fn lose_host(&mut self) {
        self.host_gone = true;
        self.host_ended |= self.guest_gone;
        let dropped = self.buffer.len();
        self.buffer.clear();
        self.forward(dropped);
    }

    fn forward(&mut self, bytes: usize) {
        // Modulo 2^32 by definition of the counter.
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
    }
}
