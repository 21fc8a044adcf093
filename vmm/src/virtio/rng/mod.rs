//! virtio entropy device (VIRTIO 1.3 section 5.4): the guest's pool is fed from the host's.
//!
//! The device object belongs to the transport; between `activate` and `stop` one worker thread owns the queue. It keeps
//! no randomness of its own, so nothing of it is left in a snapshot.

mod request;
pub mod spec;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use self::worker::Worker;
use crate::virtio::ring::take_queue;
use crate::virtio::worker_thread::WorkerThread;
use crate::virtio::{ActivateError, Activation, DeviceCounters, StoppedQueue, VirtioDevice};

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    name: String,
    counters: Arc<DeviceCounters>,
    running: Option<WorkerThread<StoppedQueue>>,
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

    fn waits_for_driver(&self) -> bool {
        true
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let worker = Worker {
            queue: take_queue(&mut activation.queues, spec::REQUEST_QUEUE)?,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: Arc::clone(&self.counters),
        };
        let thread =
            WorkerThread::spawn(&self.name, move |stop| worker.run(&stop)).map_err(|source| {
                ActivateError::Host {
                    what: "start the worker thread",
                    source,
                }
            })?;
        self.running = Some(thread);
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        self.running
            .take()
            .and_then(WorkerThread::stop)
            .into_iter()
            .collect()
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
