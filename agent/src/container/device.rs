//! Device files of a container: the default ones and those of its specification.
//!
//! Pure: parses and refuses, makes nothing.

use std::path::PathBuf;

use nix::sys::stat::SFlag;
use oci_spec::runtime::LinuxDeviceType;

use super::plan::PlanError;

/// Kind of a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

impl DeviceKind {
    /// The type bits of its files.
    pub fn file_type(self) -> SFlag {
        match self {
            DeviceKind::Character => SFlag::S_IFCHR,
            DeviceKind::Block => SFlag::S_IFBLK,
            DeviceKind::Fifo => SFlag::S_IFIFO,
        }
    }
}

/// A device file to make.
#[derive(Clone, Debug)]
pub struct Device {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// What it is.
    pub kind: DeviceKind,
    /// Device numbers; 0 for a named pipe.
    pub major: u64,
    /// See `major`.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The devices to make, in order.
pub fn devices(linux: &oci_spec::runtime::Linux) -> Result<Vec<Device>, PlanError> {
    // OCI runtime specification, config-linux.md, "Default Devices".
    let mut devices: Vec<Device> = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ]
    .into_iter()
    .map(|(path, major, minor)| Device {
        path: path.into(),
        kind: DeviceKind::Character,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    })
    .collect();
    for device in linux.devices().iter().flatten() {
        let path = device.path().clone();
        let refuse = |text: &str| PlanError(format!("linux.devices {}: {text}", path.display()));
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => return Err(refuse("type \"a\" is not a kind of file")),
        };
        if !path.is_absolute() {
            return Err(refuse("the path is not absolute"));
        }
        let number =
            |number: i64| u64::try_from(number).map_err(|_| refuse("a device number is negative"));
        let device = Device {
            kind,
            major: number(device.major())?,
            minor: number(device.minor())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        };
        devices.retain(|other| other.path != device.path);
        devices.push(device);
    }
    Ok(devices)
}
