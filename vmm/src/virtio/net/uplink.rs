//! The way beyond the guest's own network, which may be closed at first: frames to addresses out there wait until the
//! host has made it. Owned by the device; the worker asks before each frame, the control thread opens.
//!
//! Only the destination is looked at, on the copy that leaves. Who the guest sends as is `sender`'s business, and what the
//! host does to open the way is not known here.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::spec::{ETHERTYPE_IPV4, HEADER_BYTES, SHORTEST_FRAME};

/// Where the destination address is in an IPv4 header (RFC 791 section 3.1).
const IPV4_DESTINATION_AT: usize = 16;
/// Where the type is in an Ethernet frame.
const ETHERTYPE_AT: usize = 12;

/// The guest's own network: what is in it is reached without the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnNetwork {
    address: u32,
    mask: u32,
}

impl OwnNetwork {
    /// The network that `address` is in, with a prefix of 0 to 32 bits; longer ones are 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(prefix.min(32)))
            .unwrap_or(0);
        Self {
            address: address.to_bits() & mask,
            mask,
        }
    }

    /// Whether a packet, by its first bytes from its virtio header on, goes beyond it. What is no IPv4, and what no router
    /// passes on (broadcast and multicast), does not.
    fn is_left_by(&self, packet: &[u8]) -> bool {
        let beyond = || {
            let frame = packet.get(HEADER_BYTES..)?;
            let kind = frame.get(ETHERTYPE_AT..SHORTEST_FRAME)?;
            if kind != ETHERTYPE_IPV4.to_be_bytes() {
                return Some(false);
            }
            let header = frame.get(SHORTEST_FRAME..)?;
            let address = header.get(IPV4_DESTINATION_AT..)?.first_chunk::<4>()?;
            let address = Ipv4Addr::from(*address);
            Some(
                address.to_bits() & self.mask != self.address
                    && !address.is_multicast()
                    && !address.is_broadcast(),
            )
        };
        beyond().unwrap_or(false)
    }
}

/// The device's part.
#[derive(Clone, Debug)]
pub struct Uplink {
    network: OwnNetwork,
    /// Shared by the device, its worker and the control thread's [`UplinkControl`].
    gate: Arc<Gate>,
}

/// The control thread's part.
#[derive(Debug)]
pub struct UplinkControl(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    open: AtomicBool,
    asked: AtomicBool,
    /// Readable from the first frame that has to wait until somebody has taken note.
    wanted: EventFd,
    /// Readable from the opening on until the worker has taken note.
    opened: EventFd,
}

impl Uplink {
    /// One that is closed for what leaves `network`.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn closed(network: OwnNetwork) -> io::Result<(Self, UplinkControl)> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let gate = Arc::new(Gate {
            open: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            wanted: event()?,
            opened: event()?,
        });
        let uplink = Self {
            network,
            gate: Arc::clone(&gate),
        };
        Ok((uplink, UplinkControl(gate)))
    }

    /// Whether a packet, by its first bytes, may leave now. The first that may not makes the control thread's descriptor
    /// readable.
    pub fn lets_pass(&self, packet: &[u8]) -> bool {
        if self.gate.open.load(Ordering::Acquire) || !self.network.is_left_by(packet) {
            return true;
        }
        if !self.gate.asked.swap(true, Ordering::Relaxed) {
            // Adding 1 to a fresh eventfd cannot block or fail.
            let _ = self.gate.wanted.write(1);
        }
        // It may have been opened between both looks, and the worker told of it before it knew that it waits.
        self.gate.open.load(Ordering::Acquire)
    }

    /// Becomes readable when the way is opened.
    pub fn opened_fd(&self) -> RawFd {
        self.gate.opened.as_raw_fd()
    }

    /// Takes note of the opening.
    pub fn acknowledge_opening(&self) {
        // Nothing to read is fine.
        let _ = self.gate.opened.read();
    }
}

impl UplinkControl {
    /// Becomes readable when the guest wants to send beyond its network.
    #[must_use]
    pub fn wanted_fd(&self) -> RawFd {
        self.0.wanted.as_raw_fd()
    }

    /// Whether the guest has wanted to since the last call.
    #[must_use]
    pub fn take_wanted(&self) -> bool {
        self.0.wanted.read().is_ok()
    }

    /// Lets everything pass from now on. Idempotent.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::Release);
        // A counter at its maximum is readable too.
        let _ = self.0.opened.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ethertype: u16, destination: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_BYTES + SHORTEST_FRAME + 20];
        let frame = &mut packet[HEADER_BYTES..];
        frame[ETHERTYPE_AT..SHORTEST_FRAME].copy_from_slice(&ethertype.to_be_bytes());
        frame[SHORTEST_FRAME + IPV4_DESTINATION_AT..][..4].copy_from_slice(&destination);
        packet
    }

    #[test]
    fn packets_that_leave_the_network_wait_until_the_way_is_open() {
        let network = OwnNetwork::new(Ipv4Addr::new(10, 88, 3, 9), 16);
        let (uplink, control) = Uplink::closed(network).unwrap();
        for inside in [
            [10, 88, 0, 1],
            [10, 88, 255, 254],
            [224, 0, 0, 251],
            [255; 4],
        ] {
            assert!(uplink.lets_pass(&packet(ETHERTYPE_IPV4, inside)));
        }
        // Address resolution has other bytes there, and a packet that ends early none.
        assert!(uplink.lets_pass(&packet(0x0806, [192, 0, 2, 1])));
        assert!(uplink.lets_pass(&packet(ETHERTYPE_IPV4, [192, 0, 2, 1])[..40]));
        assert!(!control.take_wanted());

        let beyond = [
            packet(ETHERTYPE_IPV4, [10, 89, 0, 1]),
            packet(ETHERTYPE_IPV4, [192, 0, 2, 1]),
        ];
        for packet in &beyond {
            assert!(!uplink.lets_pass(packet));
        }
        assert!(control.take_wanted());
        assert!(!uplink.lets_pass(&beyond[0]));
        assert!(!control.take_wanted(), "it is told once");
        control.open();
        for packet in &beyond {
            assert!(uplink.lets_pass(packet));
        }
    }

    #[test]
    fn network_of_any_prefix_is_what_it_says() {
        let one = Ipv4Addr::new(192, 0, 2, 1);
        let other = packet(ETHERTYPE_IPV4, [192, 0, 2, 3]);
        for (prefix, left) in [
            (0, false),
            (24, false),
            (30, false),
            (31, true),
            (32, true),
            (99, true),
        ] {
            assert_eq!(
                OwnNetwork::new(one, prefix).is_left_by(&other),
                left,
                "{prefix}"
            );
        }
    }
}
