//! All virtio devices of a machine, each in its own window of the physical address space.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::MmioTransport;
use crate::layout;

/// The windows, ascending from [`layout::MMIO_BASE`] without gaps.
#[derive(Debug, Default)]
pub struct MmioBus {
    /// Each is shared by all vCPU threads, and by the control thread when it stops the machine.
    windows: Vec<Mutex<MmioTransport>>,
}

impl MmioBus {
    /// A bus with these devices in this order.
    #[must_use]
    pub fn new(devices: Vec<MmioTransport>) -> Self {
        Self {
            windows: devices.into_iter().map(Mutex::new).collect(),
        }
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = MutexGuard<'_, MmioTransport>> {
        self.windows
            .iter()
            .map(|w| w.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The device whose window holds `address`, and the offset in it.
    fn find(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(layout::MMIO_BASE)?;
        let index = usize::try_from(offset / layout::MMIO_WINDOW).ok()?;
        let window = self.windows.get(index)?;
        // A device that panicked under the lock must not take the other vCPUs along.
        let device = window.lock().unwrap_or_else(PoisonError::into_inner);
        Some((device, offset % layout::MMIO_WINDOW))
    }

    /// Reads; false when no window is there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(address) else {
            return false;
        };
        device.read(offset, data);
        true
    }

    /// Writes; false when no window is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((mut device, offset)) = self.find(address) else {
            return false;
        };
        device.write(offset, data);
        true
    }

    /// Stops all devices.
    pub fn stop(&self) {
        for mut device in self.devices() {
            device.stop();
        }
    }
}
