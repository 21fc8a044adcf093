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
use super::device::{
    ActivateError, ActiveQueue, DeviceCounters, Interrupt, InterruptKind, StoppedQueue,
};

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

/// Takes the queue with this index out of those that the driver made ready.
///
/// # Errors
/// The driver left it alone.
pub fn take_queue(queues: &mut Vec<ActiveQueue>, index: u16) -> Result<ActiveQueue, ActivateError> {
    let at = queues.iter().position(|queue| queue.index == index);
    at.map(|at| queues.swap_remove(at))
        .ok_or(ActivateError::QueueMissing { index })
}

/// One queue of an active device.
pub struct Ring<'m> {
    memory: &'m GuestMemoryMmap<()>,
    index: u16,
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<DeviceCounters>,
    /// Position of the used ring at the last look at whether the driver wants to know.
    signalled: u16,
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
            signalled: active.queue.next_used(),
            queue: active.queue,
            kick: active.kick,
            interrupt,
            counters,
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
        let _ = self.queue.add_used(self.memory, head, written);
    }

    /// Gives chains `(head, written)` back so that the driver sees all of them or none: the parts of one packet
    /// (VIRTIO 1.3 section 5.1.6.4).
    pub fn add_used_together(&mut self, chains: &[(u16, u32)]) {
        let Some((last, others)) = chains.split_last() else {
            return;
        };
        for &(head, written) in others {
            let position = self.queue.next_used();
            let slot = u64::from(position % self.queue.size().max(1));
            // `struct virtq_used_elem`, behind the ring's flags and index (section 2.7.8).
            let element = u64::from(head) | u64::from(written) << 32;
            let at = self.queue.used_ring().saturating_add(4 + slot * 8);
            // The ring was checked to be inside guest memory.
            let _ = self
                .memory
                .write_slice(&element.to_le_bytes(), GuestAddress(at));
            self.queue.set_next_used(position.wrapping_add(1));
        }
        // This moves the index that the driver looks at, past the others too.
        self.add_used(last.0, last.1);
    }

    /// Interrupts the driver if chains were used and it wants to know.
    pub fn signal(&mut self) {
        let (old, new) = (self.signalled, self.queue.next_used());
        if old == new {
            return;
        }
        self.signalled = new;
        // What was used must be visible before the driver's wish is read.
        std::sync::atomic::fence(Ordering::SeqCst);
        let load = |offset: u64| {
            let at = self.queue.avail_ring().saturating_add(offset);
            self.memory
                .load(GuestAddress(at), Ordering::Relaxed)
                .map(u16::from_le)
        };
        let wanted = if self.queue.event_idx_enabled() {
            // The position that the driver waits for is among those used since the last look (section 2.7.10).
            load(4 + 2 * u64::from(self.queue.size()))
                .is_ok_and(|event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            load(0).is_ok_and(|flags| flags & AVAIL_NO_INTERRUPT == 0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::guest_driver::{GuestDriver, TestInterrupt};

    const F_EVENT_IDX: u64 = 1 << 29;
    const SIZE: u16 = 8;
    /// Where [`GuestDriver`] has the available ring of its first queue.
    const AVAIL: u64 = 0x8000;

    fn raised(counters: &DeviceCounters) -> u64 {
        counters.interrupts.load(Ordering::Relaxed)
    }

    fn ring<'m>(
        driver: &GuestDriver,
        memory: &'m GuestMemoryMmap<()>,
        features: u64,
    ) -> (Ring<'m>, Arc<DeviceCounters>) {
        let active = driver.activation(features).queues.remove(0);
        let counters = Arc::<DeviceCounters>::default();
        let interrupt = Arc::<TestInterrupt>::default();
        (
            Ring::new(active, memory, interrupt, Arc::clone(&counters)),
            counters,
        )
    }

    #[test]
    fn chains_used_together_appear_at_once_and_in_order() {
        let mut driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        let (mut ring, _) = ring(&driver, &memory, 0);
        let mut parts = ChainParts::default();
        // Three times three, so that the ring wraps.
        for _ in 0..3 {
            let mut used = Vec::new();
            for i in 0..3 {
                driver.put(0, &[], &[16]);
                used.push((ring.take(&mut parts).unwrap().head, i));
            }
            assert!(driver.poll_used(0).is_none());
            ring.add_used_together(&used);
            for expected in used {
                let got = driver.poll_used(0).unwrap();
                assert_eq!((got.head, got.written), expected);
            }
        }
    }

    #[test]
    fn interrupt_with_event_index_comes_when_the_position_is_passed() {
        let mut driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        let (mut ring, counters) = ring(&driver, &memory, F_EVENT_IDX);
        let used_event = GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE));
        let mut parts = ChainParts::default();
        // The driver wants to know of the third.
        memory.write_obj(2u16, used_event).unwrap();
        for seen in [0, 0, 1, 1] {
            driver.put(0, &[], &[16]);
            let taken = ring.take(&mut parts).unwrap();
            ring.add_used_together(&[(taken.head, 0)]);
            ring.signal();
            assert_eq!(raised(&counters), seen);
        }
        // Of the fifth, which is used together with the sixth.
        memory.write_obj(4u16, used_event).unwrap();
        driver.put(0, &[], &[16]);
        driver.put(0, &[], &[16]);
        let used = [(); 2].map(|()| (ring.take(&mut parts).unwrap().head, 0));
        ring.add_used_together(&used);
        ring.signal();
        ring.signal();
        assert_eq!(raised(&counters), 2);
    }

    #[test]
    fn interrupt_without_event_index_follows_the_flag() {
        let mut driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        let (mut ring, counters) = ring(&driver, &memory, 0);
        let mut parts = ChainParts::default();
        for (flags, seen) in [(1u16, 0), (0, 1)] {
            memory.write_obj(flags, GuestAddress(AVAIL)).unwrap();
            driver.put(0, &[], &[16]);
            let taken = ring.take(&mut parts).unwrap();
            ring.add_used(taken.head, 0);
            ring.signal();
            assert_eq!(raised(&counters), seen);
        }
        ring.signal();
        assert_eq!(raised(&counters), 1);
    }

    #[test]
    fn broken_available_index_looks_like_an_empty_ring() {
        let driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        for features in [0, F_EVENT_IDX] {
            let (mut ring, _) = ring(&driver, &memory, features);
            memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
            assert_eq!(ring.take(&mut ChainParts::default()), None);
            assert!(!ring.enable_notifications());
            assert_eq!(ring.pending(), 0);
        }
    }

    #[test]
    fn chain_put_back_is_taken_again() {
        let mut driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        let (mut ring, _) = ring(&driver, &memory, F_EVENT_IDX);
        let mut parts = ChainParts::default();
        driver.put(0, &[b"ab", b"cd"], &[3]);
        let first = ring.take(&mut parts).unwrap();
        assert!(!ring.enable_notifications());
        ring.put_back(1);
        assert!(ring.enable_notifications());
        assert_eq!(ring.take(&mut parts), Some(first));
        assert_eq!((parts.readable.len(), parts.writable.len()), (2, 1));
    }

    #[test]
    fn malformed_chains_are_taken_with_their_fault() {
        use crate::virtio::guest_driver::DESC_WRITE;
        let mut driver = GuestDriver::new(1, SIZE);
        let memory = Arc::clone(&driver.memory);
        let (mut ring, counters) = ring(&driver, &memory, 0);
        let mut parts = ChainParts::default();
        let cases = [
            (
                vec![(0x1000, 4, DESC_WRITE), (0x2000, 4, 0)],
                ChainFault::Order,
            ),
            (vec![(u64::MAX, 4, 0)], ChainFault::OutsideMemory),
            (vec![(1 << 50, 4, DESC_WRITE)], ChainFault::OutsideMemory),
            (vec![(0x1000, u32::MAX, 0)], ChainFault::OutsideMemory),
        ];
        for (descriptors, fault) in cases {
            driver.put_raw(0, &descriptors);
            assert_eq!(ring.take(&mut parts).unwrap().fault, Some(fault));
            assert!(parts.readable.is_empty() && parts.writable.is_empty());
        }
        assert_eq!(counters.errors.load(Ordering::Relaxed), 4);
    }
}
