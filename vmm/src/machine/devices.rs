//! Builds the virtio devices that a configuration asks for, in a fixed order.
//!
//! Files are opened and descriptors taken over before the process changes its root, directories afterwards: an open
//! directory would be a way back.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmpod_vmm_api::{BlockSource, MachineConfig};

use crate::jail::Places;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{Balloon, BalloonControl};
use crate::virtio::blk::{Blk, BlkError};
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::net::{Net, NetError, OwnNetwork, Sender, UplinkControl};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockError};

/// A device could not be built.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A descriptor number is wrong.
    #[error("device {name}: descriptor {fd} was not inherited, or is named twice")]
    Descriptor {
        /// Device name.
        name: String,
        /// The number.
        fd: RawFd,
    },
    /// A shared directory cannot be opened.
    #[error("device {name}: open shared directory {}", path.display())]
    Share {
        /// Device name.
        name: String,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file behind a block device cannot be opened.
    #[error("device {name}: open {}", path.display())]
    Block {
        /// Device name.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The block device.
    #[error("device {name}")]
    Blk {
        /// Device name.
        name: String,
        /// Why not.
        #[source]
        source: BlkError,
    },
    /// The file system device.
    #[error("device {name}")]
    Fs {
        /// Device name.
        name: String,
        /// Why not.
        #[source]
        source: FsError,
    },
    /// The network device.
    #[error("device {name}")]
    Net {
        /// Device name.
        name: String,
        /// Why not.
        #[source]
        source: NetError,
    },
    /// The events of a card's way out.
    #[error("device {name}: create an eventfd")]
    Uplink {
        /// Device name.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket device.
    #[error("device {name}")]
    Vsock {
        /// Device name.
        name: String,
        /// Why not.
        #[source]
        source: VsockError,
    },
}

/// Descriptors that the parent process left open for devices; each is taken once.
#[derive(Debug, Default)]
struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    fn take(&mut self, name: &str, fd: RawFd) -> Result<OwnedFd, DeviceError> {
        let fail = || DeviceError::Descriptor {
            name: name.to_owned(),
            fd,
        };
        // 0 to 2 belong to the standard library. A number that this process opened itself has FD_CLOEXEC set, one that
        // came through exec has not.
        // SAFETY: fcntl on a number that is no descriptor fails without effect.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if fd <= 2 || flags < 0 || flags & libc::FD_CLOEXEC != 0 || !self.0.insert(fd) {
            return Err(fail());
        }
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        // SAFETY: the descriptor is open, was not opened by this process, and is taken only once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Names of file system devices begin with this.
pub const FS_PREFIX: &str = "fs";

/// What devices take over from the host and cannot open any more once the process has changed its root.
#[derive(Debug)]
pub struct Sources {
    taps: Vec<OwnedFd>,
    blocks: Vec<File>,
}

impl Sources {
    /// Takes the inherited descriptors and opens the block devices' files.
    ///
    /// # Errors
    /// A descriptor was not inherited, or a file cannot be opened.
    pub fn open(config: &MachineConfig) -> Result<Self, DeviceError> {
        let mut inherited = Inherited::default();
        let mut sources = Self {
            taps: Vec::new(),
            blocks: Vec::new(),
        };
        for (i, net) in config.nets.iter().enumerate() {
            let name = format!("net{i}");
            sources.taps.push(inherited.take(&name, net.tap_fd)?);
        }
        for (i, block) in config.blocks.iter().enumerate() {
            let name = format!("blk{i}");
            let file = match &block.source {
                BlockSource::Fd(fd) => inherited.take(&name, *fd)?.into(),
                BlockSource::Path(path) => OpenOptions::new()
                    .read(true)
                    .write(!block.read_only)
                    .open(path)
                    .map_err(|source| DeviceError::Block {
                        name,
                        path: path.clone(),
                        source,
                    })?,
            };
            sources.blocks.push(file);
        }
        Ok(sources)
    }
}

/// What was built.
pub struct Devices {
    /// The devices, in the order of their windows.
    pub all: Vec<Box<dyn VirtioDevice>>,
    /// The balloon's handle, if there is one.
    pub balloon: Option<BalloonControl>,
    /// Handles on the ways out of cards that are closed at first.
    pub uplinks: Vec<UplinkControl>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.all.iter().map(|d| d.name()))
            .finish()
    }
}

/// How many devices [`build`] makes of a configuration.
#[must_use]
pub fn count(config: &MachineConfig) -> usize {
    1 + usize::from(config.vsock.is_some())
        + usize::from(config.balloon)
        + config.shares.len()
        + config.nets.len()
        + config.blocks.len()
}

/// Builds all devices. `places` says where this process finds the directories of the configuration.
///
/// # Errors
/// A path or descriptor of the configuration cannot be used.
pub fn build(
    config: &MachineConfig,
    sources: Sources,
    places: &Places,
) -> Result<Devices, DeviceError> {
    let mut all: Vec<Box<dyn VirtioDevice>> = Vec::with_capacity(count(config));
    if let (Some(vsock), Some(path)) = (&config.vsock, &places.vsock) {
        let name = "vsock0".to_owned();
        let device = Vsock::new(name.clone(), vsock.guest_cid, path)
            .map_err(|source| DeviceError::Vsock { name, source })?;
        all.push(Box::new(device));
    }
    for (i, (share, path)) in config.shares.iter().zip(&places.shares).enumerate() {
        let name = format!("{FS_PREFIX}{i}");
        let root = open_directory(path).map_err(|source| DeviceError::Share {
            name: name.clone(),
            path: share.path.clone(),
            source,
        })?;
        let device = Fs::new(
            name.clone(),
            &share.tag,
            root,
            share.queues,
            share.read_only,
        )
        .map_err(|source| DeviceError::Fs { name, source })?;
        all.push(Box::new(device));
    }
    let mut uplinks = Vec::new();
    for (i, (net, tap)) in config.nets.iter().zip(sources.taps).enumerate() {
        let name = format!("net{i}");
        // Validated with the configuration.
        let mac = net.mac_bytes().unwrap_or_default();
        let mut device = Net::new(name.clone(), tap, mac, net.mtu)
            .map_err(|source| DeviceError::Net { name, source })?;
        if let Some(sender) = &net.sender {
            device = device.only_as(Sender {
                mac: sender.mac_bytes().unwrap_or_default(),
                ipv4: sender.ipv4.clone(),
            });
        }
        if let Some(network) = &net.own_network {
            let network = OwnNetwork::new(network.address, network.prefix);
            let (held, control) =
                device
                    .holding_beyond(network)
                    .map_err(|source| DeviceError::Uplink {
                        name: format!("net{i}"),
                        source,
                    })?;
            device = held;
            uplinks.push(control);
        }
        all.push(Box::new(device));
    }
    for (i, (block, file)) in config.blocks.iter().zip(sources.blocks).enumerate() {
        let name = format!("blk{i}");
        let device = Blk::new(name.clone(), file, &block.serial, block.read_only)
            .map_err(|source| DeviceError::Blk { name, source })?;
        all.push(Box::new(device));
    }
    let balloon = config.balloon.then(|| Balloon::new("balloon0".to_owned()));
    let control = balloon.as_ref().map(Balloon::control);
    if let Some(balloon) = balloon {
        all.push(Box::new(balloon));
    }
    // Last, because a guest that boots does not wait for it.
    all.push(Box::new(Rng::new("rng0")));
    Ok(Devices {
        all,
        balloon: control,
        uplinks,
    })
}

/// A handle on a directory that may be used without further rights to its path.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_PATH)
        .open(path)
        .map(|file: File| OwnedFd::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_descriptor_is_taken_once_and_own_ones_never() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut inherited = Inherited::default();
        // Rust opens with FD_CLOEXEC: not inherited.
        let own = std::os::fd::AsRawFd::as_raw_fd(&a);
        assert!(inherited.take("net0", own).is_err());
        // SAFETY: duplicating an open descriptor.
        let through_exec = unsafe { libc::dup(own) };
        let taken = inherited.take("net0", through_exec).unwrap();
        assert!(inherited.take("net1", through_exec).is_err());
        drop(taken);
        for fd in [-1, 0, 2, 9999] {
            assert!(inherited.take("net0", fd).is_err());
        }
    }
}
