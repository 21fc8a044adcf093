//! The transport of virtio devices: registers in a window of the physical address space (VIRTIO 1.3 section 4.2).
//!
//! A transport owns its device and, while the driver sets them up, its queues. It is called from vCPU threads, one at a
//! time. Everything written to it is hostile; wrong accesses are ignored, reads of nothing give zero.

pub mod bus;
pub mod interrupt;
mod registers;
pub mod saved;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::bus::{MAX_ATTACHED, MmioBus};
pub use self::interrupt::MmioInterrupt;
use self::registers::{offset, status};
pub use self::saved::{StateMismatch, TransportState};
use super::{Activation, ActiveQueue, GuestMemory, Interrupt, InterruptKind, VirtioDevice};

/// A device could not be put behind a transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No eventfd.
    #[error("create the eventfds of device {device}")]
    Descriptor {
        /// Device name.
        device: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The device asks for a queue size that no queue can have.
    #[error(
        "device {device} asks for a queue of {size} entries; a size is a power of two up to 32768"
    )]
    QueueSize {
        /// Device name.
        device: String,
        /// The size.
        size: u16,
    },
}

/// A device in its window.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<MmioInterrupt>,
    /// Notification descriptor of each queue; a clone goes to the device with the queue.
    kicks: Vec<EventFd>,
    queues: Vec<Queue>,
    status: u32,
    offered: u64,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
    queue_select: u32,
    active: bool,
    /// The driver has it running, its workers stand still for a snapshot or have not started after one.
    paused: bool,
    /// A failed activation has been reported.
    complained: bool,
    /// I/O port that takes notifications as well; 0: none.
    notify_port: u16,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.name())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts a device behind registers, in the state after a reset.
    ///
    /// # Errors
    /// No eventfd can be had, or a queue size is impossible.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Result<Self, TransportError> {
        let name = || device.name().to_owned();
        let descriptor = |source| TransportError::Descriptor {
            device: name(),
            source,
        };
        let interrupt = Arc::new(MmioInterrupt::new(!device.changes_config()).map_err(descriptor)?);
        let mut kicks = Vec::new();
        let mut queues = Vec::new();
        for &size in device.queue_sizes() {
            kicks.push(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(descriptor)?);
            queues.push(Queue::new(size).map_err(|_| TransportError::QueueSize {
                device: name(),
                size,
            })?);
        }
        let offered = device.features() | 1 << VIRTIO_F_VERSION_1;
        Ok(Self {
            device,
            memory,
            interrupt,
            kicks,
            queues,
            status: 0,
            offered,
            accepted: 0,
            offered_select: 0,
            accepted_select: 0,
            queue_select: 0,
            active: false,
            paused: false,
            complained: false,
            notify_port: 0,
        })
    }

    /// Has the driver told of an I/O port that takes notifications.
    pub fn set_notify_port(&mut self, port: u16) {
        self.notify_port = port;
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<MmioInterrupt> {
        &self.interrupt
    }

    /// Notification descriptors, one for each queue.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Ends the device's workers; what the driver has set up is kept.
    pub fn stop(&mut self) {
        self.device.stop();
        self.active = false;
        self.paused = false;
    }

    /// Reads `data.len()` bytes at `at` in the window.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            self.device.read_config(at, data);
            return;
        }
        // Registers are 32 bits wide and accessed as a whole (section 4.2.2.2).
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        *data = self.register(at).to_le_bytes();
    }

    fn register(&self, at: u64) -> u32 {
        match at {
            offset::MAGIC_VALUE => registers::MAGIC,
            offset::VERSION => registers::VERSION,
            offset::DEVICE_ID => self.device.device_type(),
            offset::VENDOR_ID if self.device.changes_config() => registers::VENDOR,
            offset::VENDOR_ID => registers::VENDOR_PLAIN,
            offset::DEVICE_FEATURES => match self.offered_select {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            offset::QUEUE_SIZE_MAX => self
                .selected()
                .map_or(0, |queue| u32::from(queue.max_size())),
            offset::QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            offset::INTERRUPT_STATUS => self.interrupt.status(),
            offset::STATUS => self.status,
            // No device here has shared memory: length and base of a region that does not exist are all ones.
            offset::SHM_LEN_LOW..=offset::SHM_BASE_HIGH => u32::MAX,
            offset::NOTIFY_PORT => u32::from(self.notify_port),
            offset::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    /// Writes `data` at `at` in the window.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            // Before DRIVER the driver has no business with the device's configuration.
            if self.has(status::DRIVER) {
                self.device.write_config(at, data);
            }
            return;
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(data);
        match at {
            offset::DEVICE_FEATURES_SEL => self.offered_select = value,
            offset::DRIVER_FEATURES_SEL => self.accepted_select = value,
            offset::DRIVER_FEATURES => self.accept_features(value),
            offset::QUEUE_SEL => self.queue_select = value,
            offset::QUEUE_NOTIFY => self.notify(value),
            offset::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            offset::STATUS => self.set_status(value),
            offset::QUEUE_READY => self.set_ready(value),
            offset::QUEUE_SIZE => self.set_up(|queue| {
                // Sizes that do not fit 16 bits become 0, which the queue ignores like other impossible ones.
                queue.set_size(u16::try_from(value).unwrap_or(0));
            }),
            offset::QUEUE_DESC_LOW => {
                self.set_up(|queue| queue.set_desc_table_address(Some(value), None));
            }
            offset::QUEUE_DESC_HIGH => {
                self.set_up(|queue| queue.set_desc_table_address(None, Some(value)));
            }
            offset::QUEUE_DRIVER_LOW => {
                self.set_up(|queue| queue.set_avail_ring_address(Some(value), None));
            }
            offset::QUEUE_DRIVER_HIGH => {
                self.set_up(|queue| queue.set_avail_ring_address(None, Some(value)));
            }
            offset::QUEUE_DEVICE_LOW => {
                self.set_up(|queue| queue.set_used_ring_address(Some(value), None));
            }
            offset::QUEUE_DEVICE_HIGH => {
                self.set_up(|queue| queue.set_used_ring_address(None, Some(value)));
            }
            _ => {}
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// True between FEATURES_OK and DRIVER_OK, when queues are set up.
    fn setting_up(&self) -> bool {
        self.has(status::FEATURES_OK) && self.status & (status::DRIVER_OK | status::FAILED) == 0
    }

    /// Changes the selected queue, if it may be changed now: not while it is ready (section 4.2.2.2).
    fn set_up(&mut self, change: impl FnOnce(&mut Queue)) {
        if !self.setting_up() {
            return;
        }
        if let Ok(index) = usize::try_from(self.queue_select)
            && let Some(queue) = self.queues.get_mut(index)
            && !queue.ready()
        {
            change(queue);
        }
    }

    fn set_ready(&mut self, value: u32) {
        if value == 0 {
            // While the device works the queue is its own; a driver takes it back by a reset.
            if !self.active
                && let Ok(index) = usize::try_from(self.queue_select)
                && let Some(queue) = self.queues.get_mut(index)
            {
                queue.set_ready(false);
            }
            return;
        }
        if value != 1 {
            return;
        }
        let memory = Arc::clone(&self.memory);
        self.set_up(|queue| {
            queue.set_ready(true);
            // A ring outside memory stays unready, which the driver can read back.
            if !queue.is_valid(memory.as_ref()) {
                queue.set_ready(false);
            }
        });
    }

    /// A notification that did not come through the machine's eventfd, which is a driver that writes the register with
    /// an unusual instruction.
    fn notify(&self, value: u32) {
        if let Some(kick) = usize::try_from(value).ok().and_then(|i| self.kicks.get(i)) {
            // Fails only when the counter is full, and then the worker is woken as well.
            let _ = kick.write(1);
        }
    }

    fn accept_features(&mut self, value: u32) {
        // Features are settled with FEATURES_OK (section 3.1.1).
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK) {
            return;
        }
        let shift = match self.accepted_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // A driver sets bits one after the other and takes none back; the device's own bit is not the driver's to set.
        let known = status::ACKNOWLEDGE
            | status::DRIVER
            | status::DRIVER_OK
            | status::FEATURES_OK
            | status::FAILED;
        let added = value & known & !self.status;
        let needed = |bit| match bit {
            status::DRIVER => status::ACKNOWLEDGE,
            status::FEATURES_OK => status::ACKNOWLEDGE | status::DRIVER,
            status::DRIVER_OK => status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
            _ => 0,
        };
        for bit in [
            status::ACKNOWLEDGE,
            status::DRIVER,
            status::FEATURES_OK,
            status::DRIVER_OK,
            status::FAILED,
        ] {
            if added & bit == 0 || !self.has(needed(bit)) || self.has(status::FAILED) {
                continue;
            }
            if bit == status::FEATURES_OK && !self.features_are_good() {
                continue;
            }
            self.status |= bit;
            if bit == status::DRIVER_OK {
                self.activate();
            }
        }
    }

    /// Only what was offered, and not without VERSION_1: there is no legacy layout here.
    fn features_are_good(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_index = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut ready = Vec::new();
        for ((index, queue), kick) in (0u16..).zip(&mut self.queues).zip(&self.kicks) {
            if !queue.ready() {
                continue;
            }
            queue.set_event_idx(event_index);
            let (Ok(taken), Ok(kick)) = (duplicate(queue), kick.try_clone()) else {
                // The device will miss the queue if it needs it.
                continue;
            };
            ready.push(ActiveQueue {
                index,
                queue: taken,
                kick,
            });
        }
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
            features: self.accepted,
            queues: ready,
        };
        match self.device.activate(activation) {
            Ok(()) => self.active = true,
            Err(error) => {
                // Said once: a guest can repeat it at will.
                if !std::mem::replace(&mut self.complained, true) {
                    eprintln!("vmpod-vmm: activate {}: {error}", self.device.name());
                }
                self.status |= status::NEEDS_RESET;
                let _ = self.interrupt.raise(InterruptKind::Config);
            }
        }
    }

    fn reset(&mut self) {
        self.stop();
        for queue in &mut self.queues {
            queue.reset();
        }
        for kick in &self.kicks {
            // A notification of before is not one of after. Nothing to read is the usual case.
            let _ = kick.read();
        }
        self.interrupt.acknowledge(u32::MAX);
        self.status = 0;
        self.accepted = 0;
        self.offered_select = 0;
        self.accepted_select = 0;
        self.queue_select = 0;
    }
}

/// A queue with the same set-up: the device gets its own.
fn duplicate(queue: &Queue) -> Result<Queue, virtio_queue::Error> {
    Queue::try_from(queue.state())
}
