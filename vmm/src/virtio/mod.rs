//! Virtio devices: the trait they share and one folder for each.
//!
//! The transport owns a device between resets; a device owns its workers between `activate` and `stop`.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod device;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod ring;
pub mod rng;
pub mod vsock;
pub mod wakeup;
pub mod worker_thread;

#[cfg(any(test, feature = "fuzzing"))]
pub mod guest_driver;

pub use device::{
    ActivateError, Activation, ActiveQueue, DeviceCounters, GuestMemory, Interrupt, InterruptKind,
    SAVED_BYTES, StoppedQueue, VirtioDevice,
};
