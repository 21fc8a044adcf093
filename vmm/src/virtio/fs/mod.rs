//! The file system device: a directory tree of the host, shared with the guest (VIRTIO 1.3 section 5.11).
//!
//! The device object belongs to the transport. Between `activate` and `stop` each queue has a worker thread; all of them
//! share one [`server::Server`], which keeps the guest's inodes and open files over a stop, so that the guest goes on
//! where it was after the next activation.
//!
//! What the host changes is seen by the guest's next access (see `server/policy.rs`); only container root file systems,
//! which no one else changes, are cached by the guest.
//!
//! Programs of the guest that watch files (inotify(7)) hear of the host's changes through the notification queue. Linux 6.12
//! knows neither that queue nor such a notification: `guest-image/patches` has both. What the guest watches is watched on
//! the host (`server/watch`), events go to the queue (`notifier`). A guest without the patches works as before.

pub mod fuse;
mod notifier;
mod request;
mod server;
pub mod spec;
pub mod syscalls;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use self::notifier::Notifier;
use self::server::{DescriptorLimits, Errno, Server};
use self::worker::Worker;
use crate::virtio::worker_thread::WorkerThread;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, DeviceCounters, GuestMemory, Interrupt, StoppedQueue,
    VirtioDevice,
};

/// Most request queues of a device.
pub const MAX_REQUEST_QUEUES: u16 = 8;

/// A share that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is empty or too long.
    #[error("the tag {tag:?} has {} bytes; 1 to {} are possible", tag.len(), spec::TAG_BYTES)]
    Tag {
        /// What was given.
        tag: String,
    },
    /// Too few or too many request queues.
    #[error("{queues} request queues were asked for; 1 to {MAX_REQUEST_QUEUES} are possible")]
    Queues {
        /// What was given.
        queues: u16,
    },
    /// The root or `/proc/self/fd` cannot be used.
    #[error(
        "could not look at the root of share {tag:?} and at /proc/self/fd; the root has to be a directory"
    )]
    Root {
        /// The share.
        tag: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file system device.
#[derive(Debug)]
pub struct Fs {
    name: String,
    config: [u8; spec::CONFIG_BYTES],
    queue_sizes: Vec<u16>,
    counters: Arc<DeviceCounters>,
    /// Shared with the workers.
    server: Arc<Server>,
    running: Vec<WorkerThread<StoppedQueue>>,
}

impl Fs {
    /// A device named `name` that shares the directory `root` under `tag` over `queues` request queues.
    ///
    /// To be called in the process that will serve it, with `/proc` mounted and the final open-files limit: it opens
    /// `/proc/self/fd` and reads the limit. The workers want the capabilities CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH,
    /// FOWNER, FSETID, MKNOD, SETFCAP, SETUID, SETGID, and SYS_ADMIN for `trusted.*` attributes; with SETPCAP they save
    /// system calls.
    ///
    /// # Errors
    /// The tag or number of queues is out of range, or the root is no directory.
    pub fn new(
        name: String,
        tag: &str,
        root: OwnedFd,
        queues: u16,
        read_only: bool,
    ) -> Result<Self, FsError> {
        let limits = DescriptorLimits::of_this_process();
        Self::with_limits(name, tag, root, queues, read_only, limits)
    }

    fn with_limits(
        name: String,
        tag: &str,
        root: OwnedFd,
        queues: u16,
        read_only: bool,
        limits: DescriptorLimits,
    ) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > spec::TAG_BYTES {
            return Err(FsError::Tag { tag: tag.into() });
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&queues) {
            return Err(FsError::Queues { queues });
        }
        let server = Server::new(root, read_only, limits).map_err(|error| FsError::Root {
            tag: tag.into(),
            source: io::Error::from_raw_os_error(error.0),
        })?;
        let mut queue_sizes = vec![spec::HIPRIO_QUEUE_SIZE, spec::NOTIFICATION_QUEUE_SIZE];
        let before = queue_sizes.len();
        queue_sizes.resize(usize::from(queues) + before, spec::REQUEST_QUEUE_SIZE);
        Ok(Self {
            name,
            config: spec::config(tag.as_bytes(), queues),
            queue_sizes,
            counters: Arc::default(),
            server: Arc::new(server),
            running: Vec::new(),
        })
    }

    /// Number of inodes that the guest references, the root included, and of files and directories it has open.
    #[must_use]
    pub fn table_sizes(&self) -> (usize, usize) {
        self.server.sizes()
    }

    fn start(
        &self,
        queue: ActiveQueue,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<(WorkerThread<StoppedQueue>, Result<(), Errno>)> {
        let name = format!("{}.{}", self.name, queue.index);
        let worker = Worker {
            server: Arc::clone(&self.server),
            memory,
            interrupt,
            counters: Arc::clone(&self.counters),
            queue,
        };
        let (ready, prepared) = sync_channel(1);
        let thread = WorkerThread::spawn(&name, move |stop| worker.run(&stop, &ready))?;
        let prepared = prepared.recv().unwrap_or(Err(Errno::EIO));
        Ok((thread, prepared))
    }

    fn start_notifier(
        &self,
        queue: ActiveQueue,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<(WorkerThread<StoppedQueue>, Result<(), Errno>)> {
        let name = format!("{}.{}", self.name, queue.index);
        let notifier = Notifier {
            server: Arc::clone(&self.server),
            memory,
            interrupt,
            counters: Arc::clone(&self.counters),
            queue,
        };
        let thread = WorkerThread::spawn(&name, move |stop| notifier.run(&stop))?;
        Ok((thread, Ok(())))
    }

    /// Number of nodes that the guest watches.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.server.watches().len()
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        spec::DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        spec::FEATURE_NOTIFICATION | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.config.get(offset..))
            .unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let first_request = spec::first_request_queue(activation.features);
        for index in [spec::HIPRIO_QUEUE, first_request] {
            if !activation.queues.iter().any(|q| q.index == index) {
                return Err(ActivateError::QueueMissing { index });
            }
        }
        let notifies = |queue: &ActiveQueue| {
            queue.index == spec::NOTIFICATION_QUEUE && first_request != spec::NOTIFICATION_QUEUE
        };
        (self.server.watches()).set_told(activation.queues.iter().any(notifies));
        for queue in activation.queues {
            let start = if notifies(&queue) {
                Self::start_notifier
            } else {
                Self::start
            };
            let started = start(
                self,
                queue,
                Arc::clone(&activation.memory),
                Arc::clone(&activation.interrupt),
            );
            let failed = match started {
                Ok((thread, prepared)) => {
                    self.running.push(thread);
                    prepared.err().map(|error| ActivateError::Host {
                        what: "give a file system worker a umask and working directory of its own",
                        source: io::Error::from_raw_os_error(error.0),
                    })
                }
                Err(source) => Some(ActivateError::Host {
                    what: "start a file system worker",
                    source,
                }),
            };
            if let Some(error) = failed {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        std::mem::take(&mut self.running)
            .into_iter()
            .filter_map(WorkerThread::stop)
            .collect()
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.stop();
    }
}
