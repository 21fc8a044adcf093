//! The worker's dealings with the rings: packets from the guest, packets to it, and the transport reset.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;

use super::connection::{Connection, Ports, Verdict};
use super::request::{parse_packet, payload_room};
use super::spec::{
    EVENT_TRANSPORT_RESET, HEADER_BYTES, HOST_CID, Header, OP_REQUEST, OP_RST, OP_RW, TYPE_STREAM,
};
use super::table::Occupant;
use super::worker::{Worker, host_events};
use crate::virtio::chain::copy_in;
use crate::virtio::device::DeviceCounters;

/// Packets of one direction that are handled in a row.
const BATCH: usize = 256;

/// How long connections wait for the guest to take note of a transport reset.
const RESET_LIMIT: Duration = Duration::from_secs(1);

/// How far the guest is told that its connections are gone (after the machine was restored elsewhere).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportReset {
    /// There is nothing to tell.
    Done,
    /// An event buffer is needed for it.
    Due,
    /// It was told. The driver puts a buffer back when it has acted; a connection made before would be lost.
    Told {
        /// Event buffers that were available then.
        available: u16,
        /// When the wait ends in any case.
        until: Instant,
    },
}

impl<'m> Worker<'m> {
    /// Takes packets from the guest. Returns true when there may be more.
    pub(super) fn take_packets(&mut self) -> bool {
        let mut parts = std::mem::take(&mut self.parts);
        self.rings.tx.disable_notifications();
        let mut more = true;
        for _ in 0..BATCH {
            let Some(taken) = self.rings.tx.take(&mut parts) else {
                more = self.rings.tx.enable_notifications();
                break;
            };
            if taken.fault.is_none() {
                self.take_packet(&parts.readable);
            }
            self.rings.tx.add_used(taken.head, 0);
        }
        self.parts = parts;
        more
    }

    fn take_packet(&mut self, readable: &[VolatileSlice<'m>]) {
        DeviceCounters::add(&self.counters.requests, 1);
        let header = match parse_packet(readable) {
            Ok(header) if header.src_cid == self.guest_cid => header,
            // Nobody could be told, or somebody else than the sender.
            _ => return DeviceCounters::add(&self.counters.errors, 1),
        };
        if header.socket_type != TYPE_STREAM || header.dst_cid != HOST_CID {
            return self.refuse(&header);
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let Some(token) = self.host.table.find(ports) else {
            return match header.op {
                OP_REQUEST => self.connect_host(ports, &header),
                _ => self.refuse(&header),
            };
        };
        if header.op == OP_RW {
            DeviceCounters::add(&self.counters.written_bytes, header.len.into());
        }
        let verdict = match self.host.table.connection_mut(token) {
            Some(connection) => connection.take_packet(&header, readable, &mut self.vectors),
            None => return,
        };
        if verdict == Verdict::Reset && header.op != super::spec::OP_SHUTDOWN {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        self.apply(token, verdict);
    }

    /// Connects a guest client to the host's listener for the port.
    fn connect_host(&mut self, ports: Ports, request: &Header) {
        if !self.entered || self.host.table.is_full() {
            return self.refuse(request);
        }
        let Ok(stream) = self.host.sockets.connect(ports.host) else {
            return self.refuse(request);
        };
        let fd = stream.as_raw_fd();
        let connection = Connection::from_guest(ports, stream, request);
        let Ok(token) = self.host.table.insert(Occupant::Connection(connection)) else {
            return self.refuse(request);
        };
        if self.watch(fd, token.0, host_events(false)).is_err() {
            return self.apply(token, Verdict::Reset);
        }
        self.host.table.queue_turn(token);
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, packet: &Header) {
        if packet.op == OP_RST {
            return;
        }
        self.queue_reset(Header {
            src_cid: packet.dst_cid,
            src_port: packet.dst_port,
            dst_port: packet.src_port,
            socket_type: packet.socket_type,
            ..Header::default()
        });
    }

    /// Gives packets to the guest while there are any and it has room. Returns true when there may be more.
    pub(super) fn give_packets(&mut self) -> bool {
        if matches!(self.host.transport_reset, TransportReset::Told { .. }) {
            return false;
        }
        let mut parts = std::mem::take(&mut self.parts);
        self.rings.rx.disable_notifications();
        let mut more = true;
        for _ in 0..BATCH {
            if self.host.resets.is_empty() && !self.host.table.has_turns() {
                more = false;
                break;
            }
            let Some(taken) = self.rings.rx.take(&mut parts) else {
                more = self.rings.rx.enable_notifications();
                break;
            };
            let Some(room) = payload_room(&parts.writable) else {
                DeviceCounters::add(&self.counters.errors, 1);
                self.rings.rx.add_used(taken.head, 0);
                continue;
            };
            let Some(header) = self.next_packet(&parts.writable, room) else {
                self.rings.rx.put_back(1);
                more = false;
                break;
            };
            copy_in(&parts.writable, 0, &header.to_bytes());
            // At most a header and MAX_PAYLOAD.
            self.rings
                .rx
                .add_used(taken.head, header.len + HEADER_BYTES as u32);
            DeviceCounters::add(&self.counters.requests, 1);
            DeviceCounters::add(&self.counters.read_bytes, header.len.into());
        }
        self.parts = parts;
        more
    }

    /// The next packet to the guest, payload already in place.
    fn next_packet(&mut self, writable: &[VolatileSlice<'m>], room: usize) -> Option<Header> {
        if let Some(reset) = self.host.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.host.table.next_turn() {
            let header = self
                .host
                .table
                .connection_mut(token)
                .and_then(|connection| connection.next_packet(writable, room, &mut self.vectors));
            self.update_watch(token);
            // Behind the others, so that each has its turn.
            self.host.table.queue_turn(token);
            if let Some(mut header) = header {
                header.dst_cid = self.guest_cid;
                return Some(header);
            }
        }
        None
    }

    /// Tells the guest of a transport reset if that is due, and looks whether it took note.
    pub(super) fn advance_transport_reset(&mut self) {
        let Some(ring) = &mut self.rings.event else {
            self.host.transport_reset = TransportReset::Done;
            return;
        };
        match self.host.transport_reset {
            TransportReset::Done => {}
            TransportReset::Due => {
                while let Some(taken) = ring.take(&mut self.parts) {
                    let n = copy_in(&self.parts.writable, 0, &EVENT_TRANSPORT_RESET);
                    // At most four.
                    ring.add_used(taken.head, n as u32);
                    if n == EVENT_TRANSPORT_RESET.len() {
                        let available = ring.pending();
                        ring.signal();
                        ring.enable_notifications_beyond(available);
                        self.host.transport_reset = TransportReset::Told {
                            available,
                            until: Instant::now() + RESET_LIMIT,
                        };
                        return;
                    }
                }
                ring.enable_notifications();
            }
            TransportReset::Told { available, until } => {
                if ring.pending() > available || Instant::now() >= until {
                    self.host.transport_reset = TransportReset::Done;
                }
            }
        }
    }
}
