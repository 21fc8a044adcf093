//! Block devices that were attached to the running machine: the kernel is told where each is, and finds its driver.

use std::fs;
use std::path::Path;

use vmpod_agent_protocol::messages::{AttachBlockRequest, BlockDevice};

use crate::container::{At as _, StepError};

/// Parameter of the virtio-mmio driver that takes a device (Linux admin-guide/kernel-parameters, virtio_mmio.device).
const PARAMETER: &str = "/sys/module/virtio_mmio/parameters/device";

/// All block devices of the guest.
const DEVICES: &str = "/sys/block";

/// Longest serial number (VIRTIO 1.3 section 5.2.6, VIRTIO_BLK_T_GET_ID).
const SERIAL_BYTES: usize = 20;

/// Why a request is none.
pub fn check(request: &AttachBlockRequest) -> Result<(), String> {
    let serial = &request.serial;
    if serial.is_empty()
        || serial.len() > SERIAL_BYTES
        || !serial.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(format!(
            "a serial number has 1 to {SERIAL_BYTES} bytes without blanks, and {serial:?} has not"
        ));
    }
    if request.size == 0 || request.irq == 0 || request.address.checked_add(request.size).is_none()
    {
        return Err(format!(
            "there is no device window of {:#x} bytes at {:#x} with interrupt {}",
            request.size, request.address, request.irq
        ));
    }
    Ok(())
}

/// Has the kernel find the device, and returns its number.
pub fn attach(request: &AttachBlockRequest) -> Result<BlockDevice, StepError> {
    let place = format!("{:#x}@{:#x}:{}", request.size, request.address, request.irq);
    fs::write(PARAMETER, &place)
        .at(|| format!("tell the kernel of the block device at {place}"))?;
    // The driver has bound by now: built-in drivers do so within the registration.
    find(Path::new(DEVICES), &request.serial).ok_or_else(|| {
        StepError::because(
            format!("find block device {:?}", request.serial),
            "the kernel has none of that serial number",
        )
    })
}

fn find(devices: &Path, serial: &str) -> Option<BlockDevice> {
    let of = |entry: fs::DirEntry| {
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim_end() == serial).then_some(())?;
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = number.trim_end().split_once(':')?;
        Some(BlockDevice {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..Default::default()
        })
    };
    fs::read_dir(devices).ok()?.flatten().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(serial: &str) -> AttachBlockRequest {
        AttachBlockRequest {
            address: 0xd000_5000,
            size: 0x1000,
            irq: 9,
            serial: serial.into(),
            ..Default::default()
        }
    }

    #[test]
    fn request_of_no_device_is_refused() {
        assert!(check(&request("data-0")).is_ok());
        for serial in ["", "with blank", "a-serial-number-that-is-long"] {
            assert!(check(&request(serial)).is_err(), "{serial}");
        }
        let mut nowhere = request("x");
        nowhere.address = u64::MAX;
        assert!(check(&nowhere).is_err());
    }

    #[test]
    fn device_is_found_by_its_serial_number() {
        let directory = tempfile::tempdir().unwrap();
        for (name, serial, number) in [("vda", "one", "254:0"), ("vdb", "two", "254:16")] {
            let device = directory.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("serial"), format!("{serial}\n")).unwrap();
            fs::write(device.join("dev"), format!("{number}\n")).unwrap();
        }
        fs::create_dir(directory.path().join("loop0")).unwrap();
        let found = find(directory.path(), "two").unwrap();
        assert_eq!((found.major, found.minor), (254, 16));
        assert!(find(directory.path(), "three").is_none());
    }
}
