//! A transport's state for a snapshot, and a transport that goes on from one.
//!
//! The order is [`MmioTransport::pause`], [`MmioTransport::state`], [`MmioTransport::go_on`]; on the other side
//! [`MmioTransport::restore`] on a fresh transport and then [`MmioTransport::go_on`]. States are checked as what a guest
//! writes is. Called by the control thread while no vCPU runs.

use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use super::MmioTransport;
use super::registers::status;

/// What the driver and a device have agreed on, and how far they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportState {
    /// Device id.
    pub device_type: u32,
    /// Register Status.
    pub status: u32,
    /// Features that were offered.
    pub offered: u64,
    /// Features that the driver accepted.
    pub accepted: u64,
    /// Registers DeviceFeaturesSel, DriverFeaturesSel and QueueSel.
    pub selected: [u32; 3],
    /// Register InterruptStatus.
    pub interrupt: u32,
    /// Register ConfigGeneration.
    pub generation: u32,
    /// All queues of the device.
    pub queues: Vec<QueueState>,
    /// What the device itself keeps; see [`crate::virtio::VirtioDevice::saved`].
    pub device: Vec<u8>,
}

/// A state does not fit the device that is to take it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state does not fit device {device}: {what}")]
pub struct StateMismatch {
    /// Device name.
    pub device: String,
    /// What differs or is out of range.
    pub what: &'static str,
}

impl MmioTransport {
    /// Ends the device's workers and takes the queues back as they are now.
    pub fn pause(&mut self) {
        if !self.active {
            return;
        }
        for stopped in self.device.stop() {
            if let Some(queue) = self.queues.get_mut(usize::from(stopped.index)) {
                *queue = stopped.queue;
            }
        }
        self.active = false;
        self.paused = true;
    }

    /// The state of a device whose workers stand still.
    #[must_use]
    pub fn state(&self) -> TransportState {
        TransportState {
            device_type: self.device.device_type(),
            status: self.status,
            offered: self.offered,
            accepted: self.accepted,
            selected: [self.offered_select, self.accepted_select, self.queue_select],
            interrupt: self.interrupt.status(),
            generation: self.interrupt.generation(),
            queues: self.queues.iter().map(Queue::state).collect(),
            device: self.device.saved(),
        }
    }

    /// Takes over a state that another device of the same kind had. Its workers start with [`Self::go_on`].
    ///
    /// # Errors
    /// The device or its offered features differ, or the state is none that a driver could have brought about. The
    /// transport is of no use then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), StateMismatch> {
        let name = self.device.name().to_owned();
        let mismatch = |what| StateMismatch {
            device: name.clone(),
            what,
        };
        if state.device_type != self.device.device_type() {
            return Err(mismatch("it belongs to a device of another type"));
        }
        if state.offered != self.offered {
            return Err(mismatch(
                "the host offers other features now than when it was saved",
            ));
        }
        if state.queues.len() != self.queues.len() {
            return Err(mismatch("it has another number of queues"));
        }
        let known = status::ACKNOWLEDGE
            | status::DRIVER
            | status::DRIVER_OK
            | status::FEATURES_OK
            | status::FAILED
            | status::NEEDS_RESET;
        if state.status & !known != 0 || state.accepted & !self.offered != 0 {
            return Err(mismatch("no driver could have brought it about"));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            *queue = checked_queue(saved, queue.max_size(), &self.memory)
                .ok_or_else(|| mismatch("a queue does not lie in guest memory as queues do"))?;
        }
        self.device.restore(&state.device).map_err(mismatch)?;
        self.status = state.status;
        self.accepted = state.accepted;
        [self.offered_select, self.accepted_select, self.queue_select] = state.selected;
        self.interrupt.restore(state.interrupt, state.generation);
        self.paused = self.has(status::DRIVER_OK)
            && self.status & (status::FAILED | status::NEEDS_RESET) == 0
            && self.features_are_good();
        Ok(())
    }

    /// Starts the workers of a paused or restored device, and repeats an interrupt that the driver has not acknowledged:
    /// its edge may have been lost between the machine that was saved and this one. One too many does no harm.
    pub fn go_on(&mut self) {
        self.wake();
        if self.interrupt.status() != 0 {
            // Adding 1 to an eventfd that is far from full cannot fail.
            let _ = self.interrupt.line().write(1);
        }
    }

    /// The same, but leaves the workers of a device that waits for its driver to [`Self::wake`], which is to be called when
    /// one of [`Self::sleeping_kicks`] becomes readable.
    pub fn go_on_when_needed(&mut self) {
        if !(self.paused && self.device.waits_for_driver()) {
            self.go_on();
        }
    }

    /// What tells that the workers of a device are needed which have not started; nothing for all others.
    pub fn sleeping_kicks(&self) -> impl Iterator<Item = RawFd> {
        let sleeps = self.paused && self.device.waits_for_driver();
        let kicks = if sleeps { self.kicks() } else { &[] };
        kicks.iter().map(AsRawFd::as_raw_fd)
    }

    /// Starts the workers if they stand still.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.activate();
        }
    }
}

/// The queue that a state describes, if there can be one.
fn checked_queue(saved: &QueueState, max_size: u16, memory: &GuestMemoryMmap<()>) -> Option<Queue> {
    let queue = Queue::try_from(*saved).ok()?;
    let fits = saved.max_size == max_size && saved.size <= max_size;
    (fits && (!saved.ready || queue.is_valid(memory))).then_some(queue)
}
