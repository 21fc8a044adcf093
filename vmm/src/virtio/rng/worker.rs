//! The thread that answers entropy requests. Owns the queue from activation until it is told to stop.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::request;
use crate::virtio::chain::ChainParts;
use crate::virtio::ring::Ring;
use crate::virtio::wakeup::{Waiter, Wakeup};
use crate::virtio::{ActiveQueue, DeviceCounters, GuestMemory, Interrupt, StoppedQueue};

/// Bytes asked of the host's pool at once; up to 256 are never cut short by a signal (getrandom(2)).
const CHUNK: usize = 256;

/// What the worker thread gets.
pub(super) struct Worker {
    pub(super) queue: ActiveQueue,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) counters: Arc<DeviceCounters>,
}

impl Worker {
    /// Answers requests until told to stop, then gives the queue back.
    pub(super) fn run(self, stop: &EventFd) -> StoppedQueue {
        let memory = Arc::clone(&self.memory);
        let counters = Arc::clone(&self.counters);
        let waiter = Waiter::new(&self.queue.kick, stop);
        let mut ring = Ring::new(self.queue, &memory, self.interrupt, self.counters);
        let mut parts = ChainParts::default();
        // The first pass is for requests that were already there: after a restore nobody notifies again.
        drain(&mut ring, &mut parts, &counters);
        // Without its descriptors the worker cannot serve; the guest sees a source that stays silent.
        if let Ok(waiter) = waiter {
            while let Ok(Wakeup::Kicked) = waiter.wait() {
                DeviceCounters::add(&counters.notifications, 1);
                drain(&mut ring, &mut parts, &counters);
            }
        }
        ring.into_stopped()
    }
}

/// Answers everything on the ring.
fn drain<'m>(ring: &mut Ring<'m>, parts: &mut ChainParts<'m>, counters: &DeviceCounters) {
    loop {
        ring.disable_notifications();
        while let Some(taken) = ring.take(parts) {
            let written = match request::parse(parts) {
                Ok(spans) if taken.fault.is_none() => fill(&spans, counters),
                Ok(_) => 0,
                Err(_) => {
                    DeviceCounters::add(&counters.errors, 1);
                    0
                }
            };
            DeviceCounters::add(&counters.requests, 1);
            ring.add_used(taken.head, written);
        }
        ring.signal();
        if !ring.enable_notifications() {
            return;
        }
    }
}

/// Fills spans in order; returns the bytes written, which are fewer only if the host has no randomness to give.
fn fill(spans: &[VolatileSlice<'_>], counters: &DeviceCounters) -> u32 {
    let mut written = 0u32;
    let mut chunk = [0u8; CHUNK];
    for span in spans {
        let mut done = 0;
        while done < span.len() {
            let n = (span.len() - done).min(CHUNK);
            let (Some(bytes), Ok(target)) = (chunk.get_mut(..n), span.subslice(done, n)) else {
                return written;
            };
            if random(bytes).is_err() {
                DeviceCounters::add(&counters.errors, 1);
                return written;
            }
            target.copy_from(&*bytes);
            done += n;
            // A chunk is at most 256 bytes and a request at most 64 KiB.
            written += n as u32;
            DeviceCounters::add(&counters.read_bytes, n as u64);
        }
    }
    written
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
