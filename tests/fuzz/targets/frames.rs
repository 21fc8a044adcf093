//! Frames of a guest and of the network, through the rings of the network device; what leaves names no other sender.

#![no_main]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use vmpod_fuzz::{Feed, Guest, descriptors};
use vmpod_vmm::virtio::VirtioDevice;
use vmpod_vmm::virtio::net::{Net, Sender, Wire};

const MAC: [u8; 6] = [2, 0x58, 10, 88, 0, 2];
const ADDRESS: [u8; 4] = [10, 88, 0, 2];
const HEADER: usize = 12;
const RX: usize = 0;
const TX: usize = 1;

/// One end of a pair that keeps packet borders, as a tap does.
struct Pair(OwnedFd);

impl AsFd for Pair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wire for Pair {
    fn has_udp_segmentation(&self) -> bool {
        true
    }

    fn set_offloads(&self, _features: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// What nobody but the guest may have in a frame that it sent.
fn is_own(packet: &[u8]) -> bool {
    let frame = &packet[HEADER..];
    let at = |from: usize, n: usize| frame.get(from..from + n);
    if at(6, 6) != Some(&MAC) {
        return false;
    }
    match at(12, 2) {
        Some([8, 0]) => at(26, 4) == Some(&ADDRESS),
        Some([8, 6]) => {
            at(22, 6) == Some(&MAC) && (at(28, 4) == Some(&ADDRESS) || at(28, 4) == Some(&[0; 4]))
        }
        _ => false,
    }
}

fuzz_target!(|data: &[u8]| {
    let (near, far) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .expect("make a pair of sockets");
    let mut feed = Feed::new(data);
    let filtered = feed.u8() & 1 == 0;
    let mut device = Net::on_wire("net0".into(), Box::new(Pair(near)), MAC, 1500);
    if filtered {
        device = device.only_as(Sender {
            mac: MAC,
            ipv4: vec![ADDRESS.into()],
        });
    }
    let mut guest = Guest::start(&mut device, feed.u64());
    while !feed.is_empty() {
        let kind = feed.u8();
        match kind >> 5 {
            0 => guest.put_raw(usize::from(kind & 1), &descriptors(&mut feed)),
            1 => guest.poke(feed.u32(), feed.u64()),
            2 => {
                let length = usize::from(feed.u16()) % 2000;
                guest.put(RX, &[], &[length.max(1)]);
                continue;
            }
            3 => {
                let length = usize::from(feed.u16()) % 4000;
                let mut packet = vec![0; HEADER];
                packet.extend(feed.bytes(length));
                let _ = send(far.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT);
                continue;
            }
            _ => {
                // Half right from the beginning, so that the fuzzer reaches what is behind.
                let mut packet = vec![0; HEADER];
                packet.extend([0xff; 6]);
                packet.extend(MAC);
                packet.extend([8, if kind & 1 == 0 { 0 } else { 6 }]);
                packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0]);
                packet.extend(ADDRESS);
                let length = usize::from(feed.u8());
                packet.extend(feed.bytes(length));
                for _ in 0..kind & 7 {
                    let at = usize::from(feed.u8()) % packet.len();
                    packet[at] = feed.u8();
                }
                let cut = usize::from(feed.u8()) % packet.len();
                let (first, second) = packet.split_at(cut);
                guest.put(TX, &[first, second], &[]);
            }
        }
        guest.wait(TX);
    }
    let queues = device.stop();
    assert_eq!(queues.len(), 2, "the worker did not come back");
    let mut packet = vec![0; 70_000];
    while let Ok(n) = recv(far.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
        if n == 0 {
            break;
        }
        let sent = &packet[..n];
        assert!(
            sent.len() >= HEADER && (!filtered || is_own(sent)),
            "a frame of somebody else left: {sent:x?}"
        );
    }
});
