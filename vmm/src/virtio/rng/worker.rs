//! The thread that answers entropy requests. Owns the queue from activation until it is told to stop.

use std::io;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::request;
use crate::virtio::wakeup::{Wakeup, wait};
use crate::virtio::{
    ActiveQueue, DeviceCounters, GuestMemory, Interrupt, InterruptKind, StoppedQueue,
};

/// Bytes asked of the host's pool at once; up to 256 are never cut short by a signal (getrandom(2)).
const CHUNK: usize = 256;

/// State of the worker thread.
pub(super) struct Worker {
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) counters: Arc<DeviceCounters>,
    pub(super) queue: ActiveQueue,
    pub(super) stop: EventFd,
}

impl Worker {
    /// Answers requests until told to stop, then gives the queue back.
    pub(super) fn run(mut self) -> StoppedQueue {
        // The first pass is for requests that were already there: after a restore nobody notifies again.
        self.drain();
        loop {
            match wait(&self.queue.kick, &self.stop) {
                Ok(Wakeup::Kicked) => {
                    DeviceCounters::add(&self.counters.notifications, 1);
                    self.drain();
                }
                Ok(Wakeup::Stopped) => break,
                Err(_) => {
                    // Without its descriptors the worker cannot serve; the guest sees a source that stays silent.
                    DeviceCounters::add(&self.counters.errors, 1);
                    break;
                }
            }
        }
        StoppedQueue {
            index: self.queue.index,
            queue: self.queue.queue,
            kick: self.queue.kick,
        }
    }

    /// Answers everything on the ring. A ring that announces work and holds none that can be taken ends the pass, so
    /// that a hostile driver cannot keep the thread turning.
    fn drain(&mut self) {
        let memory = Arc::clone(&self.memory);
        let memory: &GuestMemoryMmap<()> = &memory;
        loop {
            if self.queue.queue.disable_notification(memory).is_err() {
                DeviceCounters::add(&self.counters.errors, 1);
                return;
            }
            let mut answered = false;
            while let Some(chain) = self.queue.queue.pop_descriptor_chain(memory) {
                answered = true;
                let head = chain.head_index();
                let written = match request::parse(chain) {
                    Ok(spans) => self.fill(memory, &spans),
                    Err(_) => {
                        DeviceCounters::add(&self.counters.errors, 1);
                        0
                    }
                };
                DeviceCounters::add(&self.counters.requests, 1);
                if self.queue.queue.add_used(memory, head, written).is_err() {
                    DeviceCounters::add(&self.counters.errors, 1);
                }
            }
            if answered {
                self.interrupt_driver(memory);
            }
            match self.queue.queue.enable_notification(memory) {
                Ok(true) if answered => {}
                Ok(_) => return,
                Err(_) => {
                    DeviceCounters::add(&self.counters.errors, 1);
                    return;
                }
            }
        }
    }

    /// Fills spans in order; returns the bytes written before the first that could not be.
    fn fill(&self, memory: &GuestMemoryMmap<()>, spans: &[(GuestAddress, u32)]) -> u32 {
        let mut written = 0u32;
        for &(start, length) in spans {
            let mut done = 0u32;
            while done < length {
                let mut chunk = [0u8; CHUNK];
                let n = (length - done).min(CHUNK as u32);
                let bytes = &mut chunk[..n as usize];
                let stored = random(bytes).is_ok()
                    && start
                        .0
                        .checked_add(u64::from(done))
                        .is_some_and(|at| memory.write_slice(bytes, GuestAddress(at)).is_ok());
                if !stored {
                    DeviceCounters::add(&self.counters.errors, 1);
                    return written;
                }
                done += n;
                written += n;
                DeviceCounters::add(&self.counters.read_bytes, u64::from(n));
            }
        }
        written
    }

    fn interrupt_driver(&mut self, memory: &GuestMemoryMmap<()>) {
        // A ring whose event index cannot be read is answered with an interrupt too many.
        if self.queue.queue.needs_notification(memory).unwrap_or(true) {
            match self.interrupt.raise(InterruptKind::Queue(self.queue.index)) {
                Ok(()) => DeviceCounters::add(&self.counters.interrupts, 1),
                Err(_) => DeviceCounters::add(&self.counters.errors, 1),
            }
        }
    }
}

/// Fills `bytes`, at most [`CHUNK`], from the host's pool.
fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live mutable slice.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(n) == Ok(bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
