//! A device under an input: activates it, puts chains on its rings, waits until it has had its say, stops it.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmpod_vmm::virtio::VirtioDevice;
use vmpod_vmm::virtio::guest_driver::GuestDriver;

use crate::Feed;

/// Entries of each ring.
const RING: u16 = 64;

/// How long a chain may take to be used where the device uses each; a broken ring is not waited for that long.
const PATIENCE: Duration = Duration::from_millis(20);

/// The guest's side.
pub struct Guest {
    /// The rings.
    pub driver: GuestDriver,
    /// Descriptors put on each ring.
    put: Vec<usize>,
    /// Chains of each ring that may still be used.
    open: Vec<usize>,
    broken: bool,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("put", &self.put).finish()
    }
}

impl Guest {
    /// A guest that drives `device` with these features.
    pub fn start(device: &mut dyn VirtioDevice, features: u64) -> Self {
        let queues = device.queue_sizes().len();
        let driver = GuestDriver::new(queues, RING);
        let agreed = features & device.features();
        driver.activate(device, agreed);
        Self {
            driver,
            put: vec![0; queues],
            open: vec![0; queues],
            broken: false,
        }
    }

    /// Puts a chain on a ring and notifies; a ring that is full takes none.
    pub fn put(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) {
        let parts = readable.len() + writable.len();
        if self.takes(queue, parts) {
            self.driver.put(queue, readable, writable);
            self.driver.kick(queue);
        }
    }

    /// Puts a chain of descriptors as an attacker would write them.
    pub fn put_raw(&mut self, queue: usize, parts: &[(u64, u32, u16)]) {
        if self.takes(queue, parts.len()) {
            self.driver.put_raw(queue, parts);
            self.driver.kick(queue);
        }
    }

    /// Writes anything anywhere near the rings.
    pub fn poke(&mut self, at: u32, value: u64) {
        self.broken = true;
        let _ = self
            .driver
            .memory
            .write_obj(value, GuestAddress(u64::from(at % 0x8_0000)));
    }

    /// Counts descriptors. Those of earlier chains may still be in use, so that a ring is filled once per input.
    fn takes(&mut self, queue: usize, parts: usize) -> bool {
        let Some(put) = self.put.get_mut(queue) else {
            return false;
        };
        if parts == 0 || *put + parts > usize::from(RING) {
            return false;
        }
        *put += parts;
        self.open[queue] += 1;
        true
    }

    /// Waits until the device has used all chains of `queue`. One that it keeps is not waited for again.
    pub fn wait(&mut self, queue: usize) {
        if self.broken {
            // What the ring says is the input's own.
            std::thread::sleep(PATIENCE / 20);
            return;
        }
        let end = Instant::now() + PATIENCE;
        while self.open[queue] > 0 {
            if self.driver.poll_used(queue).is_some() {
                self.open[queue] -= 1;
            } else if Instant::now() < end {
                std::thread::yield_now();
            } else {
                self.open[queue] = 0;
            }
        }
    }
}

/// Descriptors as an input describes them: mostly inside of memory, sometimes anywhere.
pub fn descriptors(feed: &mut Feed<'_>) -> Vec<(u64, u32, u16)> {
    let count = usize::from(feed.u8() % 6) + 1;
    (0..count)
        .map(|_| {
            let kind = feed.u8();
            let (address, length) = if kind & 0xe0 == 0 {
                (feed.u64(), feed.u32())
            } else {
                (
                    0x40_0000 + u64::from(feed.u16()) * 16,
                    u32::from(feed.u16()),
                )
            };
            // NEXT is set by the driver; WRITE and INDIRECT are the input's.
            (address, length, u16::from(kind) & 6)
        })
        .collect()
}
