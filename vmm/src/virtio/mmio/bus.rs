//! All virtio devices of a machine, each in its own window of the physical address space.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::MmioTransport;
use crate::layout;

/// Devices that can be attached to a running machine.
pub const MAX_ATTACHED: usize = 16;

/// The windows, ascending from [`layout::MMIO_BASE`] without gaps.
#[derive(Debug, Default)]
pub struct MmioBus {
    /// Each is shared by all vCPU threads, and by the control thread when it stops the machine.
    windows: Vec<Mutex<MmioTransport>>,
    /// Those that came later, in the windows behind: filled by the control thread, looked at by vCPU threads.
    attached: [OnceLock<Mutex<MmioTransport>>; MAX_ATTACHED],
}

impl MmioBus {
    /// A bus with these devices in this order.
    #[must_use]
    pub fn new(devices: Vec<MmioTransport>) -> Self {
        Self {
            windows: devices.into_iter().map(Mutex::new).collect(),
            attached: Default::default(),
        }
    }

    /// The window that the next device would be attached at; `None` when all are taken.
    #[must_use]
    pub fn next_window(&self) -> Option<usize> {
        let free = self.attached.iter().position(|slot| slot.get().is_none())?;
        Some(self.windows.len() + free)
    }

    /// Puts a device into the window that [`Self::next_window`] named. To be called by one thread alone.
    pub fn attach(&self, window: usize, device: MmioTransport) {
        let slot = window
            .checked_sub(self.windows.len())
            .and_then(|index| self.attached.get(index));
        if let Some(slot) = slot {
            // It is empty, because nobody else fills it.
            let _ = slot.set(Mutex::new(device));
        }
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = MutexGuard<'_, MmioTransport>> {
        let attached = self.attached.iter().filter_map(OnceLock::get);
        self.windows
            .iter()
            .chain(attached)
            .map(|w| w.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The device whose window holds `address`, and the offset in it.
    fn find(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(layout::MMIO_BASE)?;
        let index = usize::try_from(offset / layout::MMIO_WINDOW).ok()?;
        let window = match self.windows.get(index) {
            Some(window) => window,
            None => self.attached.get(index - self.windows.len())?.get()?,
        };
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
