//! A block device for a machine that runs. Its window lies behind those that the machine began with; the guest's driver is
//! told of it by the agent, not by the VMM. It stays until the machine ends.
//!
//! Control thread only.

use std::fs::File;
use std::sync::Arc;

use vmpod_vmm_api::Attached;

use super::{Machine, attach};
use crate::kvm::KvmError;
use crate::layout;
use crate::virtio::blk::{Blk, BlkError};
use crate::virtio::mmio::{MAX_ATTACHED, MmioTransport, TransportError};

/// A device was not attached. The machine goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no window left.
    #[error("the machine has {MAX_ATTACHED} attached devices, the most there can be")]
    Full,
    /// A snapshot may still be taken, and would not have it.
    #[error("the machine may still be saved, which machines with attached devices cannot be")]
    Saving,
    /// The device.
    #[error(transparent)]
    Blk(#[from] BlkError),
    /// Its transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

impl Machine {
    /// Attaches `file`, open for reading, and for writing unless `read_only`; the guest finds the device by `serial`.
    ///
    /// # Errors
    /// There is no room, the serial number does not fit, or the host refuses.
    pub fn attach_block(
        &mut self,
        file: File,
        serial: &str,
        read_only: bool,
    ) -> Result<Attached, AttachError> {
        if self.saving.is_some() {
            return Err(AttachError::Saving);
        }
        let index = self.windows.next_window().ok_or(AttachError::Full)?;
        let device = Blk::new(format!("blk{index}"), file, serial, read_only)?;
        let mut transport = MmioTransport::new(Box::new(device), Arc::clone(&self.memory))?;
        attach(&self.vm, &mut transport, index)?;
        self.windows.attach(index, transport);
        Ok(Attached {
            address: layout::window(index),
            size: layout::MMIO_WINDOW,
            irq: layout::irq(index),
        })
    }
}
