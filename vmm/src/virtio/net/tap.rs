//! The host's end of the wire: a tap with a packet header in front of each frame, and what it is told about offloads.
//!
//! A trait, so that the device works on anything that keeps packet borders; only a real tap needs the ioctls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::spec::{
    F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, HEADER_BYTES,
};

/// A packet source and sink. One read or write is one packet; non-blocking.
pub trait Wire: AsFd + Send {
    /// True when UDP may come and go in large pieces.
    fn has_udp_segmentation(&self) -> bool;

    /// Says what the guest takes, by the features that were agreed on.
    ///
    /// # Errors
    /// The wire does not do that.
    fn set_offloads(&self, features: u64) -> io::Result<()>;
}

/// A tap device.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    udp_segmentation: bool,
}

impl Tap {
    /// Makes a tap ready: non-blocking, header of the size that the device uses.
    ///
    /// # Errors
    /// The descriptor is not a tap with IFF_VNET_HDR, or its kernel is too old.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(fd.as_fd())?;
        let header: libc::c_int = HEADER_BYTES as libc::c_int;
        // SAFETY: this ioctl reads one c_int.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut tap = Self {
            fd,
            udp_segmentation: false,
        };
        // Linux 6.2 and later; nothing is agreed on yet, so everything is off afterwards.
        tap.udp_segmentation = tap
            .offload(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6)
            .is_ok();
        tap.offload(0)?;
        Ok(tap)
    }

    fn offload(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: this ioctl takes its argument by value.
        let done = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wire for Tap {
    fn has_udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.offload(tap_offloads(features))
    }
}

/// TUN_F_* flags for the features that were agreed on. The others depend on the checksum (VIRTIO 1.3 section 5.1.3.1).
pub fn tap_offloads(features: u64) -> libc::c_uint {
    let has = |wanted: u64| features & wanted == wanted;
    let mut flags = 0;
    if has(F_GUEST_CSUM) {
        flags |= libc::TUN_F_CSUM;
        if has(F_GUEST_TSO4) {
            flags |= libc::TUN_F_TSO4;
        }
        if has(F_GUEST_TSO6) {
            flags |= libc::TUN_F_TSO6;
        }
        if has(F_GUEST_ECN) && (has(F_GUEST_TSO4) || has(F_GUEST_TSO6)) {
            flags |= libc::TUN_F_TSO_ECN;
        }
        // The kernel takes both or none.
        if has(F_GUEST_USO4 | F_GUEST_USO6) {
            flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
    }
    flags
}

/// Sets O_NONBLOCK.
///
/// # Errors
/// fcntl(2) failed.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
