//! The one thread of an active block device: takes requests in turn and answers each when it is done.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backing;
use super::request::{Limits, Refusal, Request, parse};
use super::spec::{HEADER_BYTES, ID_BYTES, S_IOERR, S_OK};
use crate::virtio::chain::{ChainParts, IoVecs, copy_in, total_len};
use crate::virtio::device::{DeviceCounters, StoppedQueue};
use crate::virtio::ring::Ring;

/// Requests handled before the thread looks whether it is to stop.
const BATCH: usize = 16;

const STOP: u64 = 0;
const KICK: u64 = 1;

/// The state of the thread.
pub struct Worker<'m> {
    pub ring: Ring<'m>,
    pub file: Arc<File>,
    pub limits: Limits,
    pub serial: [u8; ID_BYTES],
    /// The driver cannot ask for a flush, so that every change has to last (VIRTIO 1.3 section 5.2.6.2).
    pub write_through: bool,
    pub counters: Arc<DeviceCounters>,
    pub epoll: Epoll,
}

impl<'m> Worker<'m> {
    /// Works until `stop` becomes readable.
    pub fn run(mut self, stop: RawFd) -> Vec<StoppedQueue> {
        let add = |fd, data| {
            let event = EpollEvent::new(EventSet::IN, data);
            self.epoll.ctl(ControlOperation::Add, fd, event)
        };
        if add(stop, STOP).is_ok() && add(self.ring.kick_fd(), KICK).is_ok() {
            self.serve();
        } else {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        vec![self.ring.into_stopped()]
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::default(); 2];
        let mut parts = ChainParts::default();
        let mut vectors = IoVecs::default();
        let mut busy = true;
        loop {
            let ready = match self.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
                Ok(n) => events.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a mistake of this program could lead here; stopping keeps the ring consistent.
                Err(_) => return,
            };
            for event in ready {
                if event.data() == STOP {
                    return;
                }
                self.ring.acknowledge_kick();
            }
            busy = self.drain(&mut parts, &mut vectors);
            self.ring.signal();
        }
    }

    /// Handles some requests. Returns true when there may be more.
    fn drain(&mut self, parts: &mut ChainParts<'m>, vectors: &mut IoVecs<'m>) -> bool {
        self.ring.disable_notifications();
        for _ in 0..BATCH {
            let Some(taken) = self.ring.take(parts) else {
                return self.ring.enable_notifications();
            };
            let written = self.answer(parts, vectors);
            self.ring.add_used(taken.head, written);
        }
        true
    }

    /// Carries a request out and puts its status in place; returns the bytes written to guest memory.
    fn answer(&self, parts: &ChainParts<'m>, vectors: &mut IoVecs<'m>) -> u32 {
        DeviceCounters::add(&self.counters.requests, 1);
        let outcome = parse(parts, self.limits).and_then(|request| {
            self.execute(&request, parts, vectors)
                .map_err(|_| Refusal::Status(S_IOERR))
        });
        let (status, data) = match outcome {
            Ok(data) => (S_OK, data),
            Err(refusal) => {
                DeviceCounters::add(&self.counters.errors, 1);
                match refusal {
                    Refusal::Status(status) => (status, 0),
                    Refusal::NoStatus => return 0,
                }
            }
        };
        let last = total_len(&parts.writable).saturating_sub(1);
        copy_in(&parts.writable, last, &[status]);
        // What is behind the data of a short answer was not written, the status was; at most MAX_DATA + 1.
        u32::try_from(data + 1).unwrap_or(u32::MAX)
    }

    /// Returns the bytes written to guest memory.
    fn execute(
        &self,
        request: &Request,
        parts: &ChainParts<'m>,
        vectors: &mut IoVecs<'m>,
    ) -> io::Result<usize> {
        let file = &*self.file;
        match request {
            Request::Read(range) => {
                backing::read(file, *range, &parts.writable, vectors)?;
                DeviceCounters::add(&self.counters.read_bytes, range.len as u64);
                return Ok(range.len);
            }
            Request::GetId(room) => {
                let id = self.serial.get(..*room).unwrap_or(&self.serial);
                return Ok(copy_in(&parts.writable, 0, id));
            }
            Request::Flush => return file.sync_data().map(|()| 0),
            Request::Write(range) => {
                backing::write(file, *range, &parts.readable, HEADER_BYTES, vectors)?;
                DeviceCounters::add(&self.counters.written_bytes, range.len as u64);
            }
            Request::Discard(ranges) => {
                for range in ranges {
                    backing::discard(file, *range)?;
                }
            }
            Request::WriteZeroes(ranges) => {
                for range in ranges {
                    backing::write_zeroes(file, *range)?;
                }
            }
        }
        if self.write_through {
            file.sync_data()?;
        }
        Ok(0)
    }
}
