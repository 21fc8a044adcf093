//! virtio memory balloon (VIRTIO 1.3 section 5.5) with free page reporting: an idle guest gives memory back by itself.
//!
//! One worker thread; what the outside may ask and set goes through [`BalloonControl`]. The device never takes memory by
//! force and does not decide on targets.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::epoll::Epoll;

use self::worker::{Role, Worker};
use super::device::{
    ActivateError, Activation, DeviceCounters, Interrupt, InterruptKind, StoppedQueue, VirtioDevice,
};
use super::ring::{Ring, take_queue};
use super::worker_thread::WorkerThread;

mod request;
pub mod spec;
mod worker;

#[cfg(test)]
mod tests;

const QUEUE_SIZES: [u16; spec::QUEUES] = [128; spec::QUEUES];

/// Shared between the device (vCPU threads write its configuration), its worker and the control handles.
#[derive(Default)]
struct Shared {
    /// `num_pages`: pages the host wants.
    target: AtomicU32,
    /// `actual`: pages the guest says it gave.
    actual: AtomicU32,
    reported_bytes: AtomicU64,
    inflated_bytes: AtomicU64,
    refused_ranges: AtomicU64,
    /// Present while the device is active; locked for moments only.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("target", &self.target)
            .field("actual", &self.actual)
            .field("reported_bytes", &self.reported_bytes)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// A handle on the balloon for the machine's control socket. Cheap to clone; valid whether or not the device is active.
#[derive(Clone, Debug)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

impl BalloonControl {
    /// Asks the guest to give `mib` MiB in all; it does so in its own time, or not. At most 16 TiB are asked for.
    pub fn set_target_mib(&self, mib: u32) {
        let pages = mib.saturating_mul(spec::PAGES_PER_MIB);
        self.shared.target.store(pages, Ordering::Relaxed);
        let interrupt = self
            .shared
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(interrupt) = interrupt {
            // A driver that is not told now reads the target at the next occasion.
            let _ = interrupt.raise(InterruptKind::Config);
        }
    }

    /// MiB asked for.
    #[must_use]
    pub fn target_mib(&self) -> u32 {
        self.shared.target.load(Ordering::Relaxed) / spec::PAGES_PER_MIB
    }

    /// MiB that the guest says it has given. Its word, not a measurement.
    #[must_use]
    pub fn actual_mib(&self) -> u32 {
        self.shared.actual.load(Ordering::Relaxed) / spec::PAGES_PER_MIB
    }

    /// Bytes given back to the host because the guest reported them free, since the start. The same page counts each time
    /// it becomes free.
    #[must_use]
    pub fn reported_bytes(&self) -> u64 {
        self.shared.reported_bytes.load(Ordering::Relaxed)
    }

    /// Bytes given back to the host by inflating the balloon, since the start.
    #[must_use]
    pub fn inflated_bytes(&self) -> u64 {
        self.shared.inflated_bytes.load(Ordering::Relaxed)
    }

    /// Ranges refused because they are outside guest memory or not whole pages, or because the host would not.
    #[must_use]
    pub fn refused_ranges(&self) -> u64 {
        self.shared.refused_ranges.load(Ordering::Relaxed)
    }
}

/// The balloon device.
#[derive(Debug)]
pub struct Balloon {
    name: String,
    shared: Arc<Shared>,
    counters: Arc<DeviceCounters>,
    worker: Option<WorkerThread<Vec<StoppedQueue>>>,
}

impl Balloon {
    /// An empty balloon with no target.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self {
            name,
            shared: Arc::default(),
            counters: Arc::default(),
            worker: None,
        }
    }

    /// A handle to steer and watch it.
    #[must_use]
    pub fn control(&self) -> BalloonControl {
        BalloonControl {
            shared: Arc::clone(&self.shared),
        }
    }

    /// See [`BalloonControl::set_target_mib`].
    pub fn set_target_mib(&self, mib: u32) {
        self.control().set_target_mib(mib);
    }
}

impl VirtioDevice for Balloon {
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
        // Page poisoning is not offered: what a discarded page reads as depends on the memory behind it (zeros, or a
        // template's contents). A guest that needs a certain content then reports nothing, which is right.
        spec::F_DEFLATE_ON_OOM | spec::F_REPORTING | spec::F_INDIRECT_DESC | spec::F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.shared.target.load(Ordering::Relaxed).to_le_bytes();
        let actual = self.shared.actual.load(Ordering::Relaxed).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i as u64);
            let from = |field: u64, bytes: [u8; 4]| {
                let within = usize::try_from(at.checked_sub(field)?).ok()?;
                bytes.get(within).copied()
            };
            *byte = from(spec::CONFIG_TARGET, target)
                .or_else(|| from(spec::CONFIG_ACTUAL, actual))
                .unwrap_or(0);
        }
    }

    fn changes_config(&self) -> bool {
        true
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.shared.actual.load(Ordering::Relaxed).to_le_bytes();
        for (i, byte) in data.iter().enumerate() {
            let within = offset
                .saturating_add(i as u64)
                .checked_sub(spec::CONFIG_ACTUAL)
                .and_then(|within| usize::try_from(within).ok());
            if let Some(to) = within.and_then(|within| actual.get_mut(within)) {
                *to = *byte;
            }
        }
        self.shared
            .actual
            .store(u32::from_le_bytes(actual), Ordering::Relaxed);
    }

    fn waits_for_driver(&self) -> bool {
        true
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            features,
            mut queues,
        } = activation;
        let failed = |what| move |source| ActivateError::Host { what, source };
        let mut by_role = vec![
            (Role::Inflate, take_queue(&mut queues, spec::INFLATE_QUEUE)?),
            (Role::Deflate, take_queue(&mut queues, spec::DEFLATE_QUEUE)?),
        ];
        if features & spec::F_REPORTING != 0
            && let Some(active) = queues.pop()
        {
            by_role.push((Role::Report, active));
        }
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let shared = Arc::clone(&self.shared);
        let counters = Arc::clone(&self.counters);
        self.shared.set_interrupt(Some(Arc::clone(&interrupt)));
        let spawned = WorkerThread::spawn(&self.name, move |stop| {
            let rings = by_role
                .into_iter()
                .map(|(role, active)| {
                    let ring = Ring::new(
                        active,
                        &memory,
                        Arc::clone(&interrupt),
                        Arc::clone(&counters),
                    );
                    (role, ring)
                })
                .collect();
            let worker = Worker {
                rings,
                memory: &memory,
                shared,
                counters: Arc::clone(&counters),
                epoll,
            };
            worker.run(stop.as_raw_fd())
        });
        if spawned.is_err() {
            self.shared.set_interrupt(None);
        }
        self.worker = Some(spawned.map_err(failed("start the thread of the balloon"))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        self.shared.set_interrupt(None);
        self.worker
            .take()
            .and_then(WorkerThread::stop)
            .unwrap_or_default()
    }

    fn saved(&self) -> Vec<u8> {
        let actual = self.shared.actual.load(Ordering::Relaxed);
        actual.to_le_bytes().to_vec()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), &'static str> {
        let actual = saved
            .try_into()
            .map_err(|_| "the size of a balloon has four bytes")?;
        self.shared
            .actual
            .store(u32::from_le_bytes(actual), Ordering::Relaxed);
        Ok(())
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.stop();
    }
}
