//! The one thread of an active socket device: owns the rings and all host sockets, and gives both back when stopped.
//!
//! A round looks at host events, takes packets from the guest, then gives packets to the guest; each part is bounded, so
//! that neither side can keep the other, or `stop`, waiting. Host sockets are watched edge-triggered; what an edge told
//! is kept in the connection until the socket says that it has no more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Verdict;
use super::guest_side::TransportReset;
use super::host_sockets::HostSockets;
use super::spec::{HOST_CID, Header, OP_RST, TYPE_STREAM};
use super::table::{Occupant, Table, Token};
use crate::virtio::chain::{ChainParts, IoVecs};
use crate::virtio::device::{DeviceCounters, StoppedQueue};
use crate::virtio::ring::Ring;

/// Resets that wait for receive buffers. A guest that provokes more and takes none does not get the rest.
const MAX_RESETS: usize = 256;

/// Host clients let in in a row.
pub(super) const ACCEPT_BATCH: usize = 32;

/// Pause after the host ran out of descriptors.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// Slot indices are far below: no slot's token has such a low half.
const STOP: u64 = 0xffff_fff0;
const RX_KICK: u64 = 0xffff_fff1;
const TX_KICK: u64 = 0xffff_fff2;
const EVENT_KICK: u64 = 0xffff_fff3;
const LISTENER: u64 = 0xffff_fff4;

/// What the device keeps while it is not active.
#[derive(Debug)]
pub struct Host {
    pub sockets: HostSockets,
    pub table: Table,
    /// Resets that wait for receive buffers.
    pub resets: VecDeque<Header>,
    pub transport_reset: TransportReset,
}

impl Host {
    /// Nothing but the listener.
    #[must_use]
    pub fn new(sockets: HostSockets) -> Self {
        Self {
            sockets,
            table: Table::default(),
            resets: VecDeque::new(),
            transport_reset: TransportReset::Done,
        }
    }

    /// No connection that the driver knows of, and none that it was not yet told the end of.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.resets.is_empty()
            && self.transport_reset == TransportReset::Done
            && !self.table.has_connections()
    }

    /// The driver starts anew and knows of nothing that was.
    pub fn forget_guest(&mut self) {
        self.table.forget_connections();
        self.resets.clear();
        self.transport_reset = TransportReset::Done;
    }
}

/// The rings, as the driver made them ready.
pub struct Rings<'m> {
    pub rx: Ring<'m>,
    pub tx: Ring<'m>,
    pub event: Option<Ring<'m>>,
}

/// The state of the thread.
pub struct Worker<'m> {
    pub(super) host: Host,
    pub(super) rings: Rings<'m>,
    pub(super) guest_cid: u64,
    pub(super) counters: Arc<DeviceCounters>,
    epoll: Epoll,
    pub(super) parts: ChainParts<'m>,
    pub(super) vectors: IoVecs<'m>,
    /// Host clients may wait, and when to look.
    pub(super) accept_at: Option<Instant>,
    /// Host listeners can be reached by name.
    pub(super) entered: bool,
}

impl<'m> Worker<'m> {
    /// Takes everything over.
    pub fn new(
        host: Host,
        rings: Rings<'m>,
        guest_cid: u64,
        counters: Arc<DeviceCounters>,
        epoll: Epoll,
    ) -> Self {
        Self {
            host,
            rings,
            guest_cid,
            counters,
            epoll,
            parts: ChainParts::default(),
            vectors: IoVecs::default(),
            accept_at: Some(Instant::now()),
            entered: false,
        }
    }

    /// Works until `stop` becomes readable.
    pub fn run(mut self, stop: RawFd) -> (Host, Vec<StoppedQueue>) {
        self.entered = self.host.sockets.enter().is_ok();
        if self.watch_all(stop).is_ok() {
            self.serve();
        } else {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        let mut queues = vec![self.rings.rx.into_stopped(), self.rings.tx.into_stopped()];
        queues.extend(self.rings.event.map(Ring::into_stopped));
        (self.host, queues)
    }

    fn watch_all(&mut self, stop: RawFd) -> io::Result<()> {
        self.watch(stop, STOP, EventSet::IN)?;
        self.watch(self.rings.rx.kick_fd(), RX_KICK, EventSet::IN)?;
        self.watch(self.rings.tx.kick_fd(), TX_KICK, EventSet::IN)?;
        if let Some(event) = &self.rings.event {
            self.watch(event.kick_fd(), EVENT_KICK, EventSet::IN)?;
        }
        self.watch(
            self.host.sockets.listener().as_raw_fd(),
            LISTENER,
            EventSet::IN | EventSet::EDGE_TRIGGERED,
        )?;
        self.host.table.restart_deadlines();
        for token in self.host.table.tokens() {
            if let Some(entry) = self.host.table.get_mut(token) {
                entry.watches_space = false;
                let fd = entry.occupant.stream().as_raw_fd();
                self.watch(fd, token.0, host_events(false))?;
                self.update_watch(token);
                self.host.table.queue_turn(token);
            }
        }
        Ok(())
    }

    /// Adds a descriptor to those that wake the thread.
    pub(super) fn watch(&self, fd: RawFd, data: u64, events: EventSet) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::default(); 64];
        let mut busy = true;
        loop {
            let timeout = if busy { 0 } else { self.timeout() };
            let ready = match self.epoll.wait(timeout, &mut events) {
                Ok(n) => events.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a mistake of this program could lead here; stopping keeps the rings consistent.
                Err(_) => return,
            };
            for event in ready {
                match event.data() {
                    STOP => return,
                    RX_KICK => self.rings.rx.acknowledge_kick(),
                    TX_KICK => self.rings.tx.acknowledge_kick(),
                    EVENT_KICK => {
                        if let Some(ring) = &self.rings.event {
                            ring.acknowledge_kick();
                        }
                    }
                    LISTENER => self.accept_at = Some(Instant::now()),
                    token => self.host_event(Token(token), event.event_set()),
                }
            }
            self.end_expired();
            busy = self.accept_clients();
            busy |= self.take_packets();
            self.advance_transport_reset();
            busy |= self.give_packets();
            self.rings.tx.signal();
            self.rings.rx.signal();
        }
    }

    /// Milliseconds until something is due, rounded up.
    fn timeout(&self) -> i32 {
        let reset = match self.host.transport_reset {
            TransportReset::Told { until, .. } => Some(until),
            _ => None,
        };
        let due = [self.host.table.next_deadline(), self.accept_at, reset];
        match due.into_iter().flatten().min() {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
            }
        }
    }

    /// Acts on what became of a connection.
    pub(super) fn apply(&mut self, token: Token, verdict: Verdict) {
        if verdict == Verdict::Keep {
            self.update_watch(token);
            self.host.table.queue_turn(token);
            return;
        }
        let Some(connection) = self.host.table.connection_mut(token) else {
            return;
        };
        if verdict == Verdict::Reset {
            let ports = connection.ports();
            self.queue_reset(Header {
                src_cid: HOST_CID,
                src_port: ports.host,
                dst_port: ports.guest,
                socket_type: TYPE_STREAM,
                ..Header::default()
            });
        }
        self.host.table.convert(token, |occupant| match occupant {
            Occupant::Connection(connection) => {
                let (stream, rest) = connection.into_rest();
                Occupant::Draining(stream, rest)
            }
            other => other,
        });
        let drained = self
            .host
            .table
            .get_mut(token)
            .is_some_and(|entry| !entry.occupant.awaits_space());
        if drained {
            self.host.table.remove(token);
        } else {
            self.update_watch(token);
        }
    }

    /// Watches the host socket for space exactly while something waits for it.
    pub(super) fn update_watch(&mut self, token: Token) {
        let Some(entry) = self.host.table.get_mut(token) else {
            return;
        };
        let wanted = entry.occupant.awaits_space();
        if wanted == entry.watches_space {
            return;
        }
        entry.watches_space = wanted;
        let event = EpollEvent::new(host_events(wanted), token.0);
        let fd = entry.occupant.stream().as_raw_fd();
        if self.epoll.ctl(ControlOperation::Modify, fd, event).is_err() {
            DeviceCounters::add(&self.counters.errors, 1);
        }
    }

    /// Remembers a reset for the guest.
    pub(super) fn queue_reset(&mut self, mut header: Header) {
        if self.host.resets.len() >= MAX_RESETS {
            DeviceCounters::add(&self.counters.errors, 1);
            return;
        }
        header.op = OP_RST;
        header.dst_cid = self.guest_cid;
        self.host.resets.push_back(header);
    }
}

/// Edge-triggered: readable and hung up always, writable on demand.
pub(super) fn host_events(space: bool) -> EventSet {
    let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if space {
        events | EventSet::OUT
    } else {
        events
    }
}
