//! A guest-side driver for tests and fuzz targets: puts buffers on the rings of a device and collects what it used.
//!
//! It writes the split ring layout of VIRTIO 1.3 section 2.7 by hand, so that a mistake of the device side is not
//! mirrored, and can write wrong things on purpose.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::StoppedQueue;
use super::{Activation, ActiveQueue, GuestMemory, Interrupt, InterruptKind, VirtioDevice};

const MEMORY_BYTES: usize = 64 << 20;
const RING_STRIDE: u64 = 0x1_0000;
const DESC: u64 = 0x0;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
const BUFFERS: u64 = 0x40_0000;

/// Descriptor continues via `next`.
pub const DESC_NEXT: u16 = 1;
/// Descriptor is device-writable.
pub const DESC_WRITE: u16 = 2;

/// Counts interrupts, and wakes waiters. Shared between the driver and the device's workers.
#[derive(Debug, Default)]
pub struct TestInterrupt {
    pub config: AtomicU64,
    queues: Mutex<u64>,
    raised: Condvar,
}

impl Interrupt for TestInterrupt {
    fn raise(&self, kind: InterruptKind) -> io::Result<()> {
        if kind == InterruptKind::Config {
            self.config.fetch_add(1, Ordering::SeqCst);
        }
        *self.queues.lock().unwrap() += 1;
        self.raised.notify_all();
        Ok(())
    }
}

/// A buffer chain that was put on a ring.
#[derive(Clone, Debug)]
pub struct Chain {
    pub head: u16,
    /// Address and length of each device-writable part.
    writable: Vec<(u64, u32)>,
}

/// A chain that the device has used.
#[derive(Clone, Debug)]
pub struct Used {
    pub head: u16,
    /// Bytes the device says it wrote.
    pub written: u32,
}

impl std::fmt::Debug for GuestDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestDriver")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The guest's side of one device.
pub struct GuestDriver {
    pub memory: GuestMemory,
    pub interrupt: Arc<TestInterrupt>,
    size: u16,
    kicks: Vec<EventFd>,
    next_desc: Vec<u16>,
    avail: Vec<u16>,
    used: Vec<u16>,
    next_buffer: u64,
}

impl GuestDriver {
    /// Memory and `queues` empty rings of `size` entries.
    pub fn new(queues: usize, size: u16) -> Self {
        assert!(size <= 1024);
        let memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
        Self {
            memory,
            interrupt: Arc::default(),
            size,
            kicks: (0..queues)
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
            next_desc: vec![0; queues],
            avail: vec![0; queues],
            used: vec![0; queues],
            next_buffer: BUFFERS,
        }
    }

    /// Activates `device` with all queues and these agreed features.
    pub fn activate(&self, device: &mut dyn VirtioDevice, features: u64) {
        device.activate(self.activation(features)).unwrap();
    }

    /// Activates `device` again with the queues that it gave back when it was stopped.
    pub fn resume(&self, device: &mut dyn VirtioDevice, features: u64, stopped: Vec<StoppedQueue>) {
        let queues = stopped.into_iter().map(|stopped| ActiveQueue {
            index: stopped.index,
            queue: stopped.queue,
            kick: stopped.kick,
        });
        let activation = Activation {
            queues: queues.collect(),
            ..self.activation(features)
        };
        device.activate(activation).unwrap();
    }

    /// What [`Self::activate`] passes on.
    pub fn activation(&self, features: u64) -> Activation {
        let queues = self
            .kicks
            .iter()
            .enumerate()
            .map(|(i, kick)| {
                let base = i as u64 * RING_STRIDE;
                let mut queue = Queue::new(self.size).unwrap();
                queue.set_size(self.size);
                let low = |a: u64| Some(u32::try_from(a).unwrap());
                queue.set_desc_table_address(low(base + DESC), Some(0));
                queue.set_avail_ring_address(low(base + AVAIL), Some(0));
                queue.set_used_ring_address(low(base + USED), Some(0));
                queue.set_event_idx(features & (1 << 29) != 0);
                queue.set_ready(true);
                assert!(queue.is_valid(self.memory.as_ref()));
                ActiveQueue {
                    index: u16::try_from(i).unwrap(),
                    queue,
                    kick: kick.try_clone().unwrap(),
                }
            })
            .collect();
        Activation {
            memory: Arc::clone(&self.memory),
            interrupt: self.interrupt.clone(),
            features,
            queues,
        }
    }

    /// Space in guest memory for a buffer, 16-byte aligned.
    pub fn allocate(&mut self, len: usize) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(16).max(16);
        if self.next_buffer >= MEMORY_BYTES as u64 {
            self.next_buffer = BUFFERS;
            return self.allocate(len);
        }
        at
    }

    /// Puts a chain of readable parts, then writable parts, on a ring. Does not notify.
    pub fn put(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Chain {
        let mut parts = Vec::new();
        for part in readable {
            let at = self.allocate(part.len());
            self.memory.write_slice(part, GuestAddress(at)).unwrap();
            parts.push((at, u32::try_from(part.len()).unwrap(), 0));
        }
        let mut spans = Vec::new();
        for &len in writable {
            let at = self.allocate(len);
            let len = u32::try_from(len).unwrap();
            spans.push((at, len));
            parts.push((at, len, DESC_WRITE));
        }
        let head = self.put_raw(queue, &parts);
        Chain {
            head,
            writable: spans,
        }
    }

    /// Puts any descriptors `(address, length, flags)` on a ring, chained in order; for malformed requests too.
    pub fn put_raw(&mut self, queue: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let base = queue as u64 * RING_STRIDE;
        let first = self.next_desc[queue];
        for (i, &(address, length, flags)) in parts.iter().enumerate() {
            let index = self.next_desc[queue];
            let next = (index + 1) % self.size;
            let last = i + 1 == parts.len();
            let flags = if last { flags } else { flags | DESC_NEXT };
            let at = base + DESC + u64::from(index) * 16;
            self.write(at, address);
            self.write(at + 8, length);
            self.write(at + 12, flags);
            self.write(at + 14, if last { 0 } else { next });
            self.next_desc[queue] = next;
        }
        let slot = u64::from(self.avail[queue] % self.size);
        self.write(base + AVAIL + 4 + slot * 2, first);
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.write(base + AVAIL + 2, self.avail[queue]);
        first
    }

    fn write<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Notifies the device.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// The next used chain if there is one.
    pub fn poll_used(&mut self, queue: usize) -> Option<Used> {
        let base = queue as u64 * RING_STRIDE + USED;
        let index: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        std::sync::atomic::fence(Ordering::SeqCst);
        if index == self.used[queue] {
            return None;
        }
        let at = base + 4 + u64::from(self.used[queue] % self.size) * 8;
        self.used[queue] = self.used[queue].wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        Some(Used {
            head: u16::try_from(head).unwrap(),
            written: self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
        })
    }

    /// Waits for the next used chain; panics after `limit`.
    pub fn wait_used(&mut self, queue: usize, limit: Duration) -> Used {
        let end = Instant::now() + limit;
        loop {
            // Counted before the look at the ring, so that an interrupt in between ends the wait.
            let before = *self.interrupt.queues.lock().unwrap();
            if let Some(used) = self.poll_used(queue) {
                return used;
            }
            assert!(
                Instant::now() < end,
                "the device used nothing on queue {queue} within {limit:?}"
            );
            let raised = self.interrupt.queues.lock().unwrap();
            // Bounded, because a driver that asked for no interrupt gets none.
            drop(self.interrupt.raised.wait_timeout_while(
                raised,
                Duration::from_millis(5),
                |now| *now == before,
            ));
        }
    }

    /// True when nothing is used on a queue for this long.
    pub fn stays_unused(&mut self, queue: usize, during: Duration) -> bool {
        std::thread::sleep(during);
        self.poll_used(queue).is_none()
    }

    /// The bytes of a chain's writable parts, cut to what the device says it wrote.
    pub fn written(&self, chain: &Chain, used: &Used) -> Vec<u8> {
        assert_eq!(chain.head, used.head, "another chain was used");
        let mut bytes = Vec::new();
        for &(at, len) in &chain.writable {
            let mut part = vec![0; len as usize];
            self.memory.read_slice(&mut part, GuestAddress(at)).unwrap();
            bytes.extend(part);
        }
        assert!(
            used.written as usize <= bytes.len(),
            "the device says it wrote more than there is room"
        );
        bytes.truncate(used.written as usize);
        bytes
    }

    /// Puts, notifies, waits and reads back one request.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let chain = self.put(queue, readable, writable);
        self.kick(queue);
        let used = self.wait_used(queue, Duration::from_secs(10));
        self.written(&chain, &used)
    }
}
