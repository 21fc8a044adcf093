//! Builds the virtio devices that a configuration asks for, in a fixed order.

use vmpod_vmm_api::MachineConfig;

use crate::virtio::VirtioDevice;
use crate::virtio::rng::Rng;

/// A device could not be built.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This VMM has no such device.
    #[error("device {name}: this VMM has no device for {field}")]
    Unknown {
        /// Device name.
        name: String,
        /// Field of the configuration.
        field: &'static str,
    },
}

/// The devices, in the order of their windows.
///
/// # Errors
/// A path or descriptor of the configuration cannot be used.
pub fn build(config: &MachineConfig) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let unknown = |name: &str, field| {
        Err(DeviceError::Unknown {
            name: name.to_owned(),
            field,
        })
    };
    let devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng::new("rng0"))];
    if config.vsock.is_some() {
        return unknown("vsock0", "vsock");
    }
    if !config.shares.is_empty() {
        return unknown("fs0", "shares");
    }
    if !config.nets.is_empty() {
        return unknown("net0", "nets");
    }
    if !config.blocks.is_empty() {
        return unknown("blk0", "blocks");
    }
    if config.balloon {
        return unknown("balloon0", "balloon");
    }
    Ok(devices)
}
