//! What every virtio device is to its transport (VIRTIO 1.3 section 2), and what the transport gives it.
//!
//! Does not know registers, interrupts lines or KVM: the transport does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as devices see it. Cheap to clone, immutable for the life of the machine.
pub type GuestMemory = Arc<GuestMemoryMmap<()>>;

/// What an interrupt tells the driver (VIRTIO 1.3 section 4.2.2, register InterruptStatus).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// The device used buffers of this queue.
    Queue(u16),
    /// The configuration space changed.
    Config,
}

/// The device's way to interrupt the driver. Called from any worker thread.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt.
    ///
    /// # Errors
    /// The host could not deliver it (write to an eventfd failed).
    fn raise(&self, kind: InterruptKind) -> io::Result<()>;
}

/// Most bytes of a device's own state.
pub const SAVED_BYTES: usize = 64;

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Index in the device.
    pub index: u16,
    /// Ring state. Already validated against guest memory.
    pub queue: Queue,
    /// Readable when the driver notified the queue. Non-blocking.
    pub kick: EventFd,
}

/// Everything a device needs to run.
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Interrupt to the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that both sides agreed on.
    pub features: u64,
    /// The ready queues, ascending by index. Queues the driver left alone are absent.
    pub queues: Vec<ActiveQueue>,
}

impl std::fmt::Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Activation")
            .field("features", &self.features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// A queue that a stopped device gave back, with all requests it took either answered or put back.
#[derive(Debug)]
pub struct StoppedQueue {
    /// Index in the device.
    pub index: u16,
    /// Ring state, good for another activation or for a snapshot.
    pub queue: Queue,
    /// The queue's notification descriptor.
    pub kick: EventFd,
}

/// A device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not set up a queue that the device cannot do without.
    #[error("queue {index} is required by this device and the driver did not make it ready")]
    QueueMissing {
        /// Queue index.
        index: u16,
    },
    /// A thread, descriptor or file could not be had.
    #[error("could not {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Counters that a device updates and the control socket reads. Relaxed: they are only figures.
///
/// Shared (`Arc`) between a device's workers and the machine's metrics.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Requests or packets done.
    pub requests: AtomicU64,
    /// Payload bytes from host to guest.
    pub read_bytes: AtomicU64,
    /// Payload bytes from guest to host.
    pub written_bytes: AtomicU64,
    /// Malformed or failed requests.
    pub errors: AtomicU64,
    /// Frames that the guest may not send.
    pub dropped: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// Queue notifications received.
    pub notifications: AtomicU64,
}

impl DeviceCounters {
    /// Adds `n` to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// A virtio device behind a transport.
///
/// Life: `offered features -> activate -> stop -> activate ...`. `read_config`/`write_config` may come at any time, from
/// a vCPU thread. Everything the driver gives is hostile: a device never panics on it, bounds every allocation, and
/// logs nothing per request.
pub trait VirtioDevice: Send {
    /// Device id (VIRTIO 1.3 section 5).
    fn device_type(&self) -> u32;

    /// Short unique name for messages and metrics, such as `fs0`.
    fn name(&self) -> &str;

    /// Largest size of each queue, in entries; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Offered feature bits. The transport adds VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;

    /// Reads `data.len()` bytes of the device's configuration space at `offset`; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration space; what is read-only or beyond its end is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Whether the device ever changes its configuration by itself and raises [`InterruptKind::Config`] for it. Interrupts
    /// of those that do not are cheaper.
    fn changes_config(&self) -> bool {
        false
    }

    /// Whether it does nothing by itself before its driver notifies it, so that a machine that goes on from a snapshot may
    /// start its workers then: a thread, with its filter, is a fortieth of such a start.
    fn waits_for_driver(&self) -> bool {
        false
    }

    /// Starts the device's workers.
    ///
    /// # Errors
    /// A required queue is missing or the host lacks a resource. The device is then as before.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Ends the workers and gives the queues back (device reset, pause for a snapshot, end of the machine). After it
    /// returns no worker touches guest memory. Idempotent: empty when not active.
    fn stop(&mut self) -> Vec<StoppedQueue>;

    /// What a stopped device has to remember of its driver beside queues and features, for a snapshot. At most
    /// [`SAVED_BYTES`].
    fn saved(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what [`Self::saved`] gave, before the first activation.
    ///
    /// # Errors
    /// In words why the bytes are none of this device.
    fn restore(&mut self, saved: &[u8]) -> Result<(), &'static str> {
        if saved.is_empty() {
            Ok(())
        } else {
            Err("it holds more than this device keeps")
        }
    }

    /// Counters of this device.
    fn counters(&self) -> Arc<DeviceCounters>;
}
