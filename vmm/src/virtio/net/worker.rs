//! The one thread of an active network device: owns both rings and the wire, and gives both back when stopped.
//!
//! The wire is watched edge-triggered: an edge says that there is something to read or room to write, and that holds
//! until a call says otherwise. While the guest gives no receive buffers the wire is not watched at all, so that frames
//! wait in the host's queue and nobody is woken for them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::request::{ReceiveBuffers, Receiving, frame_len};
use super::sender::{DECISIVE_BYTES, Sender};
use super::spec::{HEADER_BYTES, SHORTEST_FRAME};
use super::tap::Wire;
use super::uplink::Uplink;
use crate::virtio::chain::{ChainParts, IoVecs, copy_out};
use crate::virtio::device::{DeviceCounters, StoppedQueue};
use crate::virtio::ring::Ring;

/// Frames of one direction that are moved in a row.
const BATCH: usize = 64;

const STOP: u64 = 0;
const RX_KICK: u64 = 1;
const TX_KICK: u64 = 2;
const WIRE: u64 = 3;
const UPLINK: u64 = 4;

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There may be more to do at once.
    More,
    /// The driver has to give chains.
    Driver,
    /// The wire has to give or take frames.
    Wire,
    /// The host has to open the way out.
    Uplink,
}

/// What became of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It left, with so many bytes in its frame.
    Left(usize),
    /// The guest may not send it.
    Refused,
    /// The way to where it goes is still to be opened.
    Held,
}

/// The state of the thread.
pub struct Worker<'m> {
    pub wire: Box<dyn Wire>,
    pub rx: Ring<'m>,
    pub tx: Ring<'m>,
    pub receiving: Receiving,
    pub sender: Option<Arc<Sender>>,
    pub uplink: Option<Uplink>,
    pub counters: Arc<DeviceCounters>,
    pub epoll: Epoll,
}

/// Buffers that are kept from frame to frame.
#[derive(Default)]
struct Scratch<'m> {
    parts: ChainParts<'m>,
    vectors: IoVecs<'m>,
    used: Vec<(u16, u32)>,
    posted: ReceiveBuffers<'m>,
}

impl<'m> Worker<'m> {
    /// Works until `stop` becomes readable.
    pub fn run(mut self, stop: RawFd) -> (Box<dyn Wire>, Vec<StoppedQueue>) {
        let mut scratch = Scratch::default();
        if self.watch_all(stop).is_ok() {
            self.serve(&mut scratch);
        } else {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        // Chains that got no packet go back. They are those taken last, unless the driver mixed in malformed ones: then
        // it may see one of its mistakes twice.
        self.rx
            .put_back(u16::try_from(scratch.posted.len()).unwrap_or(0));
        (
            self.wire,
            vec![self.rx.into_stopped(), self.tx.into_stopped()],
        )
    }

    fn watch_all(&self, stop: RawFd) -> io::Result<()> {
        let add = |fd, data, events| {
            self.epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
        };
        add(stop, STOP, EventSet::IN)?;
        add(self.rx.kick_fd(), RX_KICK, EventSet::IN)?;
        add(self.tx.kick_fd(), TX_KICK, EventSet::IN)?;
        if let Some(uplink) = &self.uplink {
            add(uplink.opened_fd(), UPLINK, EventSet::IN)?;
        }
        // Edge-triggered even so, because errors are always told: a deleted interface must not keep the thread busy.
        add(
            self.wire.as_fd().as_raw_fd(),
            WIRE,
            EventSet::EDGE_TRIGGERED,
        )
    }

    fn serve(&mut self, scratch: &mut Scratch<'m>) {
        let mut events = [EpollEvent::default(); 5];
        let (mut rx, mut tx) = (Progress::More, Progress::More);
        let mut watched = EventSet::empty();
        loop {
            // A direction that waits for the wire needs its edge, the other not.
            let mut wanted = EventSet::empty();
            if rx != Progress::Driver {
                wanted |= EventSet::IN;
            }
            if tx == Progress::Wire {
                wanted |= EventSet::OUT;
            }
            if wanted != watched {
                watched = wanted;
                let fd = self.wire.as_fd().as_raw_fd();
                let event = EpollEvent::new(wanted | EventSet::EDGE_TRIGGERED, WIRE);
                // A change of what is watched brings an edge if there already is something.
                if self.epoll.ctl(ControlOperation::Modify, fd, event).is_err() {
                    DeviceCounters::add(&self.counters.errors, 1);
                }
            }
            let busy = rx == Progress::More || tx == Progress::More;
            let ready = match self.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
                Ok(n) => events.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a mistake of this program could lead here; stopping keeps the rings consistent.
                Err(_) => return,
            };
            for event in ready {
                match event.data() {
                    RX_KICK => {
                        self.rx.acknowledge_kick();
                        if rx == Progress::Driver {
                            rx = Progress::More;
                        }
                    }
                    TX_KICK => {
                        self.tx.acknowledge_kick();
                        if tx == Progress::Driver {
                            tx = Progress::More;
                        }
                    }
                    UPLINK => {
                        if let Some(uplink) = &self.uplink {
                            uplink.acknowledge_opening();
                        }
                        if tx == Progress::Uplink {
                            tx = Progress::More;
                        }
                    }
                    WIRE => {
                        let edge = event.event_set();
                        if rx == Progress::Wire && edge != EventSet::OUT {
                            rx = Progress::More;
                        }
                        if tx == Progress::Wire && edge != EventSet::IN {
                            tx = Progress::More;
                        }
                    }
                    _ => return,
                }
            }
            if rx == Progress::More {
                rx = self.receive(scratch);
                self.rx.signal();
            }
            if tx == Progress::More {
                tx = self.transmit(scratch);
                self.tx.signal();
            }
        }
    }

    /// Moves frames from the wire to the guest.
    fn receive(&mut self, scratch: &mut Scratch<'m>) -> Progress {
        self.rx.disable_notifications();
        for _ in 0..BATCH {
            if !self.post(scratch) {
                return if self.rx.enable_notifications() {
                    Progress::More
                } else {
                    Progress::Driver
                };
            }
            let room = scratch.posted.target(self.receiving, &mut scratch.vectors);
            let n = match scratch.vectors.read_from(self.wire.as_fd()) {
                Ok(0) => return Progress::Wire,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Wire,
                Err(_) => {
                    // The interface is down or gone: an edge tells when that changes.
                    DeviceCounters::add(&self.counters.errors, 1);
                    return Progress::Wire;
                }
            };
            if n < HEADER_BYTES + SHORTEST_FRAME || self.receiving.is_cut(n, room) {
                DeviceCounters::add(&self.counters.errors, 1);
                continue;
            }
            scratch.posted.finish(n, &mut scratch.used);
            self.rx.add_used_together(&scratch.used);
            DeviceCounters::add(&self.counters.requests, 1);
            DeviceCounters::add(&self.counters.read_bytes, (n - HEADER_BYTES) as u64);
        }
        Progress::More
    }

    /// Takes receive chains until the longest packet has room. False when there are too few of them.
    fn post(&mut self, scratch: &mut Scratch<'m>) -> bool {
        let Receiving { mergeable, longest } = self.receiving;
        loop {
            let enough = if mergeable {
                scratch.posted.room(true) > longest || scratch.posted.is_full()
            } else {
                !scratch.posted.is_empty()
            };
            if enough {
                return true;
            }
            let Some(taken) = self.rx.take(&mut scratch.parts) else {
                // A ring that is too small for the longest packet is used as it is.
                return scratch.posted.len() >= usize::from(self.rx.size());
            };
            if taken.fault.is_some() || !scratch.posted.push(taken.head, &scratch.parts) {
                if taken.fault.is_none() {
                    DeviceCounters::add(&self.counters.errors, 1);
                }
                self.rx.add_used(taken.head, 0);
            }
        }
    }

    /// Moves frames from the guest to the wire.
    fn transmit(&mut self, scratch: &mut Scratch<'m>) -> Progress {
        self.tx.disable_notifications();
        for _ in 0..BATCH {
            let Some(taken) = self.tx.take(&mut scratch.parts) else {
                return if self.tx.enable_notifications() {
                    Progress::More
                } else {
                    Progress::Driver
                };
            };
            if taken.fault.is_none() {
                match self.send(scratch) {
                    Ok(Sent::Left(frame)) => {
                        DeviceCounters::add(&self.counters.requests, 1);
                        DeviceCounters::add(&self.counters.written_bytes, frame as u64);
                    }
                    Ok(Sent::Refused) => DeviceCounters::add(&self.counters.dropped, 1),
                    Ok(Sent::Held) => {
                        self.tx.put_back(1);
                        return Progress::Uplink;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.tx.put_back(1);
                        return Progress::Wire;
                    }
                    // A header that the host does not take, or an interface that is down: the frame is lost.
                    Err(_) => DeviceCounters::add(&self.counters.errors, 1),
                }
            }
            self.tx.add_used(taken.head, 0);
        }
        Progress::More
    }

    /// Sends the packet in the chain that was taken last, if it may leave, and may now.
    fn send(&self, scratch: &mut Scratch<'m>) -> io::Result<Sent> {
        let Scratch { parts, vectors, .. } = scratch;
        let readable = &parts.readable;
        let frame = frame_len(readable).ok_or(io::ErrorKind::InvalidData)?;
        let packet = HEADER_BYTES + frame;
        // What was looked at leaves as it was then: the guest may write to its memory meanwhile.
        let mut decisive = [0; DECISIVE_BYTES];
        let mut looked_at: &[u8] = &[];
        if self.sender.is_some() || self.uplink.is_some() {
            let n = copy_out(readable, 0, &mut decisive);
            looked_at = decisive.get(..n.min(packet)).unwrap_or_default();
        }
        if self.sender.as_ref().is_some_and(|s| !s.may_send(looked_at)) {
            return Ok(Sent::Refused);
        }
        if self
            .uplink
            .as_ref()
            .is_some_and(|u| !u.lets_pass(looked_at))
        {
            return Ok(Sent::Held);
        }
        vectors.fill(readable, looked_at.len(), packet - looked_at.len());
        loop {
            match vectors.write_behind(looked_at, self.wire.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| Sent::Left(frame)),
            }
        }
    }
}
