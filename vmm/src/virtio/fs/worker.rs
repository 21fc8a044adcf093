//! The thread of one queue: takes requests from the ring, has them served, writes replies. Owns the queue from activation
//! until it is told to stop.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::fuse::{InHeader, OutHeader, WriteIn, opcode};
use super::server::{Answer, Errno, Request, Server, ServerThread};
use crate::virtio::chain::{ChainParts, copy_in, copy_out, total_len};
use crate::virtio::ring::Ring;
use crate::virtio::wakeup::{Waiter, Wakeup};
use crate::virtio::{ActiveQueue, DeviceCounters, GuestMemory, Interrupt, StoppedQueue};

/// Longest request that is not WRITE, in bytes: an extended attribute of 64 KiB with its name, or as many FORGETs.
const MAX_REQUEST: usize = 128 << 10;

/// What a worker gets.
pub(super) struct Worker {
    pub(super) server: Arc<Server>,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) counters: Arc<DeviceCounters>,
    pub(super) queue: ActiveQueue,
}

/// What is needed for one request after the other.
struct Session<'m> {
    server: &'m Server,
    counters: &'m DeviceCounters,
    thread: ServerThread<'m>,
    parts: ChainParts<'m>,
    /// The request's header and fixed part, copied once, so that the guest cannot change what was checked.
    body: Vec<u8>,
}

impl Worker {
    /// Serves requests until told to stop, then gives the queue back. Says on `ready` whether the thread could be prepared;
    /// if not, it returns at once.
    pub(super) fn run(self, stop: &EventFd, ready: &SyncSender<Result<(), Errno>>) -> StoppedQueue {
        let memory = Arc::clone(&self.memory);
        let thread = match self.server.prepare_thread() {
            Ok(thread) => thread,
            Err(error) => {
                // The receiver waits for this message.
                let _ = ready.send(Err(error));
                let ActiveQueue { index, queue, kick } = self.queue;
                return StoppedQueue { index, queue, kick };
            }
        };
        let _ = ready.send(Ok(()));
        let waiter = Waiter::new(&self.queue.kick, stop);
        let mut ring = Ring::new(
            self.queue,
            &memory,
            self.interrupt,
            Arc::clone(&self.counters),
        );
        let mut session = Session {
            server: &self.server,
            counters: &self.counters,
            thread,
            parts: ChainParts::default(),
            body: Vec::with_capacity(4096),
        };
        // Requests may have been there before: after a restore nobody notifies again.
        session.serve_ring(&mut ring);
        if let Ok(waiter) = waiter {
            while let Ok(Wakeup::Kicked) = waiter.wait() {
                DeviceCounters::add(&self.counters.notifications, 1);
                session.serve_ring(&mut ring);
            }
        }
        ring.into_stopped()
    }
}

impl<'m> Session<'m> {
    /// Serves all that is available, without being notified of each.
    fn serve_ring(&mut self, ring: &mut Ring<'m>) {
        loop {
            ring.disable_notifications();
            while let Some(taken) = ring.take(&mut self.parts) {
                let written = if taken.fault.is_some() {
                    0
                } else {
                    self.serve()
                };
                ring.add_used(taken.head, written);
                ring.signal();
            }
            if !ring.enable_notifications() {
                return;
            }
        }
    }

    /// Serves the request in `parts` and returns the bytes written to the guest.
    fn serve(&mut self) -> u32 {
        DeviceCounters::add(&self.counters.requests, 1);
        let mut header = InHeader::default();
        let readable = total_len(&self.parts.readable);
        if copy_out(&self.parts.readable, 0, header.as_mut_slice()) < size_of::<InHeader>() {
            DeviceCounters::add(&self.counters.errors, 1);
            return 0;
        }
        let answer = self.dispatch(header, readable);
        match answer {
            Ok(Answer::None) => 0,
            Ok(Answer::Body) => {
                let body = std::mem::take(&mut self.thread.reply);
                let written = self.reply(&header, Ok(body.as_slice()));
                self.thread.reply = body;
                written
            }
            Ok(Answer::Written(n)) => {
                DeviceCounters::add(&self.counters.read_bytes, n as u64);
                self.write_header(&header, 0, n)
            }
            Err(error) => self.reply(&header, Err(error)),
        }
    }

    fn dispatch(&mut self, header: InHeader, readable: usize) -> Result<Answer, Errno> {
        let head = size_of::<InHeader>();
        let len = header.len as usize;
        if len < head || len > readable {
            DeviceCounters::add(&self.counters.errors, 1);
            return Err(Errno::EINVAL);
        }
        let (fixed, data) = if header.opcode == opcode::WRITE {
            let fixed = (len - head).min(size_of::<WriteIn>());
            (fixed, len - head - fixed)
        } else {
            (len - head, 0)
        };
        if fixed > MAX_REQUEST {
            DeviceCounters::add(&self.counters.errors, 1);
            return Err(Errno::E2BIG);
        }
        self.body.resize(fixed, 0);
        copy_out(&self.parts.readable, head, &mut self.body);
        DeviceCounters::add(&self.counters.written_bytes, data as u64);
        let space = total_len(&self.parts.writable);
        let request = Request {
            header,
            body: &self.body,
            data: (&self.parts.readable, head + fixed, data),
            space: &self.parts.writable,
            room: space.saturating_sub(size_of::<OutHeader>()),
        };
        self.server.handle(&mut self.thread, &request)
    }

    /// Writes a reply; one that the guest left no room for becomes an error, or is left out.
    fn reply(&self, header: &InHeader, body: Result<&[u8], Errno>) -> u32 {
        let room = total_len(&self.parts.writable).saturating_sub(size_of::<OutHeader>());
        match body {
            Ok(body) if body.len() <= room => {
                copy_in(&self.parts.writable, size_of::<OutHeader>(), body);
                self.write_header(header, 0, body.len())
            }
            Ok(_) => {
                DeviceCounters::add(&self.counters.errors, 1);
                self.write_header(header, Errno::EIO.0, 0)
            }
            Err(error) => self.write_header(header, error.0, 0),
        }
    }

    /// Writes the header in front of `body` bytes that are in place, and returns the bytes of both.
    fn write_header(&self, header: &InHeader, error: i32, body: usize) -> u32 {
        // A FORGET has no room for a reply, and gets none.
        if total_len(&self.parts.writable) < size_of::<OutHeader>() {
            DeviceCounters::add(&self.counters.errors, 1);
            return 0;
        }
        let Ok(len) = u32::try_from(size_of::<OutHeader>() + body) else {
            return 0;
        };
        let out = OutHeader {
            len,
            error: -error,
            unique: header.unique,
        };
        copy_in(&self.parts.writable, 0, out.as_slice());
        len
    }
}
