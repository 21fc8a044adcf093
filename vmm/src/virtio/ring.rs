//! A virtqueue in the hands of a worker: takes chains, gives them back as used, and asks for notifications and raises
//! interrupts only when they are wanted (VIRTIO 1.3 sections 2.7.7 and 2.7.10).
//!
//! Belongs to one worker thread. Does not know what a chain means.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{ChainFault, ChainParts};
use super::device::{ActiveQueue, DeviceCounters, Interrupt, InterruptKind, StoppedQueue};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (VIRTIO 1.3 section 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A chain that was taken from a ring. It is to be given back with [`Ring::add_used`] or [`Ring::put_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Names the chain to the driver.
    pub head: u16,
    /// Set when the chain is malformed; it has no parts then and can only be given back.
    pub fault: Option<ChainFault>,
}

/// One queue of an active device.
pub struct Ring<'m> {
    memory: &'m GuestMemoryMmap<()>,
    index: u16,
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<DeviceCounters>,
    /// Chains were used since the last look at whether the driver wants to know.
    used_since: bool,
}

impl std::fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("index", &self.index)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl<'m> Ring<'m> {
    /// Takes over a queue that the driver made ready.
    #[must_use]
    pub fn new(
        active: ActiveQueue,
        memory: &'m GuestMemoryMmap<()>,
        interrupt: Arc<dyn Interrupt>,
        counters: Arc<DeviceCounters>,
    ) -> Self {
        Self {
            memory,
            index: active.index,
            queue: active.queue,
            kick: active.kick,
            interrupt,
            counters,
            used_since: false,
        }
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Descriptor that becomes readable when the driver notifies.
    #[must_use]
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Resets the notification descriptor, and counts.
    pub fn acknowledge_kick(&self) {
        if let Ok(n) = self.kick.read() {
            DeviceCounters::add(&self.counters.notifications, n);
        }
    }

    /// Takes the next available chain; `None` when there is none (or the driver broke the ring).
    pub fn take(&mut self, parts: &mut ChainParts<'m>) -> Option<Taken> {
        // Not `pop_descriptor_chain`, which logs once per call when the driver broke the ring.
        let chain = self.queue.iter(self.memory).ok()?.next()?;
        let head = chain.head_index();
        let fault = parts.fill(self.memory, chain).err();
        if fault.is_some() {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        Some(Taken { head, fault })
    }

    /// Makes the chains taken last (and not used) available again: `n` of them.
    pub fn put_back(&mut self, n: u16) {
        let position = self.queue.next_avail().wrapping_sub(n);
        self.queue.set_next_avail(position);
    }

    /// Gives a chain back to the driver with `written` bytes in its writable part.
    pub fn add_used(&mut self, head: u16, written: u32) {
        // It fails for a head beyond the ring only: such a chain has no place to be reported in.
        if self.queue.add_used(self.memory, head, written).is_ok() {
            self.used_since = true;
        }
    }

    /// Interrupts the driver if chains were used and it wants to know.
    pub fn signal(&mut self) {
        if !std::mem::take(&mut self.used_since) {
            return;
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(self.memory).unwrap_or(true)
        } else {
            // The crate does not look at this flag.
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = self
                .memory
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .unwrap_or(0);
            u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            DeviceCounters::add(&self.counters.interrupts, 1);
            if self
                .interrupt
                .raise(InterruptKind::Queue(self.index))
                .is_err()
            {
                DeviceCounters::add(&self.counters.errors, 1);
            }
        }
    }

    /// Tells the driver that notifications are not needed for now.
    pub fn disable_notifications(&mut self) {
        // The ring was checked to be inside guest memory, and a notification too many does no harm.
        let _ = self.queue.disable_notification(self.memory);
    }

    /// Asks the driver for a notification of the next chain. True when one came in meanwhile: look again then, because
    /// no notification tells of it.
    pub fn enable_notifications(&mut self) -> bool {
        self.queue
            .enable_notification(self.memory)
            .unwrap_or(false)
            // A driver that broke the ring must not keep the worker busy.
            && self.pending() > 0
    }

    /// Asks the driver for a notification when more than `available` chains are.
    pub fn enable_notifications_beyond(&mut self, available: u16) {
        let position = self.queue.next_avail();
        self.queue.set_next_avail(position.wrapping_add(available));
        // The ring was checked to be inside guest memory.
        let _ = self.queue.enable_notification(self.memory);
        self.queue.set_next_avail(position);
    }

    /// Number of chains that are available; 0 when the driver broke the ring.
    #[must_use]
    pub fn pending(&self) -> u16 {
        let Ok(index) = self.queue.avail_idx(self.memory, Ordering::Acquire) else {
            return 0;
        };
        let n = index.0.wrapping_sub(self.queue.next_avail());
        if n > self.queue.size() { 0 } else { n }
    }

    /// Ends the work on the queue.
    #[must_use]
    pub fn into_stopped(mut self) -> StoppedQueue {
        self.signal();
        StoppedQueue {
            index: self.index,
            queue: self.queue,
            kick: self.kick,
        }
    }
}
