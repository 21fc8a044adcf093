//! virtio entropy device (VIRTIO 1.3 section 5.4): the guest's pool is fed from the host's.
//!
//! The device object belongs to the transport; between `activate` and `stop` one worker thread owns the queue. It keeps
//! no randomness of its own, so nothing of it is left in a snapshot.

mod request;
pub mod spec;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceCounters, StoppedQueue, VirtioDevice};

/// Stack of the worker thread in bytes: its deepest frame holds one chunk of random bytes.
const STACK_BYTES: usize = 64 * 1024;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    name: String,
    counters: Arc<DeviceCounters>,
    running: Option<Running>,
}

/// A started worker: its thread, and the descriptor that ends it.
#[derive(Debug)]
struct Running {
    stop: EventFd,
    thread: JoinHandle<StoppedQueue>,
}

impl Rng {
    /// A device that is not active. `name` is short and unique, such as `rng0`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            counters: Arc::default(),
            running: None,
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        spec::DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &[spec::QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let host = |what| move |source: io::Error| ActivateError::Host { what, source };
        let queue = activation
            .queues
            .into_iter()
            .find(|q| q.index == spec::REQUEST_QUEUE)
            .ok_or(ActivateError::QueueMissing {
                index: spec::REQUEST_QUEUE,
            })?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("create an eventfd"))?;
        let worker = Worker {
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: Arc::clone(&self.counters),
            queue,
            stop: stop.try_clone().map_err(host("duplicate an eventfd"))?,
        };
        let thread = std::thread::Builder::new()
            .name(self.name.clone())
            .stack_size(STACK_BYTES)
            .spawn(move || worker.run())
            .map_err(host("start the worker thread"))?;
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        // An eventfd write fails only when its counter is full, and then the worker is woken as well.
        let _ = running.stop.write(1);
        running.thread.join().into_iter().collect()
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.stop();
    }
}
