//! virtio block device (VIRTIO 1.3 section 5.2) on a file or a block device of the host.
//!
//! One queue, one worker thread, requests in turn, data straight between guest memory and the file. The size is what it was
//! when the device was made. The device does not open the file and knows nothing of what is on it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::Epoll;

use self::request::Limits;
use self::worker::Worker;
use super::device::{ActivateError, Activation, DeviceCounters, StoppedQueue, VirtioDevice};
use super::ring::{Ring, take_queue};
use super::worker_thread::WorkerThread;

mod backing;
mod request;
pub mod spec;
mod worker;

#[cfg(test)]
mod tests;

const QUEUE_SIZES: [u16; 1] = [spec::QUEUE_SIZE];

/// The file cannot be a block device.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The serial number does not fit.
    #[error("blk: serial number {serial:?} has {} bytes; give 1 to {} bytes", serial.len(), spec::ID_BYTES)]
    Serial {
        /// What was given.
        serial: String,
    },
    /// The size of the backing file cannot be had.
    #[error("blk: could not find the size of the file behind {serial:?}")]
    Size {
        /// Which device.
        serial: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The block device.
#[derive(Debug)]
pub struct Blk {
    name: String,
    file: Arc<File>,
    serial: [u8; spec::ID_BYTES],
    limits: Limits,
    config: [u8; spec::CONFIG_BYTES],
    counters: Arc<DeviceCounters>,
    worker: Option<WorkerThread<Vec<StoppedQueue>>>,
}

impl Blk {
    /// A device on `file`, which is open for reading, and for writing unless `read_only`. A last part of less than 512
    /// bytes is not seen by the guest. The guest finds the device by `serial`, 1 to 20 bytes.
    ///
    /// # Errors
    /// The serial number does not fit, or the file has no size.
    pub fn new(
        name: String,
        mut file: File,
        serial: &str,
        read_only: bool,
    ) -> Result<Self, BlkError> {
        let mut id = [0; spec::ID_BYTES];
        if serial.is_empty() || serial.len() > id.len() {
            return Err(BlkError::Serial {
                serial: serial.to_owned(),
            });
        }
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        // Not the metadata, which says 0 for block devices.
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| BlkError::Size {
                serial: serial.to_owned(),
                source,
            })?;
        let sectors = bytes / spec::SECTOR_BYTES;
        Ok(Self {
            name,
            file: Arc::new(file),
            serial: id,
            limits: Limits { sectors, read_only },
            config: spec::config(sectors),
            counters: Arc::default(),
            worker: None,
        })
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        spec::DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let changes = if self.limits.read_only {
            spec::F_RO
        } else {
            spec::F_DISCARD | spec::F_WRITE_ZEROES
        };
        changes
            | spec::F_SEG_MAX
            | spec::F_BLK_SIZE
            | spec::F_FLUSH
            | spec::F_INDIRECT_DESC
            | spec::F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start
                .checked_add(i)
                .and_then(|at| self.config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            features,
            mut queues,
        } = activation;
        let failed = |what| move |source| ActivateError::Host { what, source };
        let active = take_queue(&mut queues, spec::REQUEST_QUEUE)?;
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let file = Arc::clone(&self.file);
        let counters = Arc::clone(&self.counters);
        let (limits, serial) = (self.limits, self.serial);
        let worker = WorkerThread::spawn(&self.name, move |stop| {
            let worker = Worker {
                ring: Ring::new(active, &memory, interrupt, Arc::clone(&counters)),
                file,
                limits,
                serial,
                write_through: features & spec::F_FLUSH == 0,
                counters,
                epoll,
            };
            worker.run(stop.as_raw_fd())
        })
        .map_err(failed("start the thread of the block device"))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        self.worker
            .take()
            .and_then(WorkerThread::stop)
            .unwrap_or_default()
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.stop();
    }
}
