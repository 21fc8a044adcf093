//! Drives the device through its rings; a pair of packet sockets stands for the tap, which has a test of its own.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;

use super::spec::*;
use super::tap::{set_nonblocking, tap_offloads};
use super::*;
use crate::virtio::guest_driver::{Chain, GuestDriver};

const WAIT: Duration = Duration::from_secs(10);
const RX: usize = RX_QUEUE as usize;
const TX: usize = TX_QUEUE as usize;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// One end of a socket pair that keeps packet borders, as a tap does.
struct PacketSocket {
    fd: OwnedFd,
    offloads: Arc<Mutex<Vec<u64>>>,
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wire for PacketSocket {
    fn has_udp_segmentation(&self) -> bool {
        true
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.offloads.lock().unwrap().push(features);
        Ok(())
    }
}

struct Guest {
    device: Net,
    driver: GuestDriver,
    rx: HashMap<u16, Chain>,
    far: OwnedFd,
    offloads: Arc<Mutex<Vec<u64>>>,
}

impl Guest {
    fn new(features: u64, ring: u16) -> Self {
        Self::as_sender(features, ring, None)
    }

    fn as_sender(features: u64, ring: u16, sender: Option<Sender>) -> Self {
        Self::with(features, ring, |device| match sender {
            Some(sender) => device.only_as(sender),
            None => device,
        })
    }

    fn with(features: u64, ring: u16, equip: impl FnOnce(Net) -> Net) -> Self {
        let (near, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        set_nonblocking(near.as_fd()).unwrap();
        set_nonblocking(far.as_fd()).unwrap();
        let offloads = Arc::default();
        let wire = PacketSocket {
            fd: near,
            offloads: Arc::clone(&offloads),
        };
        let mut device = equip(Net::on_wire("net0".into(), Box::new(wire), MAC, 1500));
        let driver = GuestDriver::new(2, ring);
        driver.activate(&mut device, features);
        Self {
            device,
            driver,
            rx: HashMap::new(),
            far,
            offloads,
        }
    }

    fn give_buffers(&mut self, n: usize, len: usize) {
        for _ in 0..n {
            let chain = self.driver.put(RX, &[], &[len]);
            self.rx.insert(chain.head, chain);
        }
        self.driver.kick(RX);
    }

    /// A packet from the device: `num_buffers`, and all bytes behind the header.
    fn receive(&mut self) -> (u16, Vec<u8>) {
        let mut bytes = self.used_buffer();
        let count = u16::from_le_bytes(bytes[10..12].try_into().unwrap());
        for _ in 1..count {
            // All parts of a packet are visible at once.
            let used = self.driver.poll_used(RX).expect("part of a packet");
            let chain = self.rx.remove(&used.head).unwrap();
            bytes.extend(self.driver.written(&chain, &used));
        }
        (count, bytes[HEADER_BYTES..].to_vec())
    }

    fn used_buffer(&mut self) -> Vec<u8> {
        let used = self.driver.wait_used(RX, WAIT);
        let chain = self.rx.remove(&used.head).unwrap();
        self.driver.written(&chain, &used)
    }

    fn transmit(&mut self, frame: &[u8]) {
        self.driver.put(TX, &[&[0; HEADER_BYTES], frame], &[]);
        self.driver.kick(TX);
    }

    /// Sends a frame from the far end.
    fn wire_send(&self, frame: &[u8]) {
        let packet = [&[0; HEADER_BYTES], frame].concat();
        send(self.far_fd(), &packet, MsgFlags::empty()).unwrap();
    }

    /// The next frame at the far end.
    fn wire_receive(&self) -> Vec<u8> {
        let mut packet = vec![0; 70_000];
        let end = std::time::Instant::now() + WAIT;
        loop {
            match recv(self.far_fd(), &mut packet, MsgFlags::empty()) {
                Ok(n) => return packet[HEADER_BYTES..n].to_vec(),
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("{e}"),
            }
            assert!(std::time::Instant::now() < end, "no frame on the wire");
        }
    }

    fn far_fd(&self) -> i32 {
        self.far.as_raw_fd()
    }

    fn errors(&self) -> u64 {
        self.device.counters().errors.load(Ordering::Relaxed)
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect()
}

#[test]
fn config_tells_mac_status_and_mtu() {
    let guest = Guest::new(0, 64);
    let mut config = [0xff; 14];
    guest.device.read_config(0, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [1, 0, 1, 0, 0xdc, 5, 0, 0]);
    guest.device.read_config(u64::MAX - 3, &mut config);
    assert_eq!(config, [0; 14]);
}

#[test]
fn activation_tells_the_wire_what_was_agreed() {
    let features = F_GUEST_CSUM | F_GUEST_TSO4;
    let guest = Guest::new(features, 64);
    assert_eq!(*guest.offloads.lock().unwrap(), [features]);
}

#[test]
fn offloads_without_the_checksum_they_depend_on_are_none() {
    assert_eq!(tap_offloads(F_GUEST_TSO4 | F_GUEST_ECN | F_GUEST_USO4), 0);
    assert_eq!(
        tap_offloads(F_GUEST_CSUM | F_GUEST_ECN | F_GUEST_USO4),
        libc::TUN_F_CSUM
    );
    assert_eq!(
        tap_offloads(
            F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6
        ),
        libc::TUN_F_CSUM
            | libc::TUN_F_TSO4
            | libc::TUN_F_TSO6
            | libc::TUN_F_TSO_ECN
            | libc::TUN_F_USO4
            | libc::TUN_F_USO6
    );
}

#[test]
fn descriptor_that_is_no_tap_is_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let refused = Net::new("net0".into(), null.into(), MAC, 1500);
    assert!(matches!(refused, Err(NetError::Tap { .. })));
}

#[test]
fn frames_pass_both_ways() {
    for features in [0, F_EVENT_IDX, F_MRG_RXBUF | F_EVENT_IDX] {
        let mut guest = Guest::new(features, 64);
        for seed in 0..5 {
            let out = frame(100 + usize::from(seed), seed);
            guest.transmit(&out);
            assert_eq!(guest.wire_receive(), out);
            assert_eq!(guest.driver.wait_used(TX, WAIT).written, 0);
        }
        guest.give_buffers(16, 1600);
        for seed in 0..5 {
            let inward = frame(60 + usize::from(seed), seed);
            guest.wire_send(&inward);
            assert_eq!(guest.receive(), (1, inward));
        }
        let counters = guest.device.counters();
        assert_eq!(counters.requests.load(Ordering::Relaxed), 10);
        assert_eq!(counters.written_bytes.load(Ordering::Relaxed), 510);
        assert_eq!(counters.read_bytes.load(Ordering::Relaxed), 310);
        assert_eq!(guest.errors(), 0);
    }
}

#[test]
fn frame_in_many_descriptors_leaves_as_one() {
    let mut guest = Guest::new(0, 64);
    let whole = frame(1000, 3);
    let mut header = [0; HEADER_BYTES];
    header[10] = 0xff;
    let parts: Vec<&[u8]> = std::iter::once(&header[..5])
        .chain(std::iter::once(&header[5..]))
        .chain(whole.chunks(100))
        .collect();
    guest.driver.put(TX, &parts, &[]);
    guest.driver.kick(TX);
    assert_eq!(guest.wire_receive(), whole);
}

#[test]
fn large_packet_spans_mergeable_buffers() {
    let mut guest = Guest::new(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, 64);
    guest.give_buffers(60, 1536);
    let large = frame(40_000, 1);
    guest.wire_send(&large);
    let (count, got) = guest.receive();
    assert_eq!(usize::from(count), (40_000 + HEADER_BYTES).div_ceil(1536));
    assert_eq!(got, large);
    // The small one behind it takes one, as soon as there is room for a large one again.
    let small = frame(60, 2);
    guest.wire_send(&small);
    assert!(guest.driver.stays_unused(RX, Duration::from_millis(50)));
    guest.give_buffers(27, 1536);
    assert_eq!(guest.receive(), (1, small));
}

#[test]
fn ring_too_small_for_a_large_packet_still_works_and_cut_frames_are_dropped() {
    let mut guest = Guest::new(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, 4);
    guest.give_buffers(4, 1000);
    guest.wire_send(&frame(5000, 1));
    let small = frame(1500, 2);
    guest.wire_send(&small);
    assert_eq!(guest.receive(), (2, small));
    assert_eq!(guest.errors(), 1);
}

#[test]
fn buffers_of_the_smallest_size_take_full_frames_and_longer_ones_are_dropped() {
    let mut guest = Guest::new(0, 64);
    guest.give_buffers(4, 1526);
    guest.wire_send(&frame(2000, 1));
    guest.wire_send(&frame(1514, 2));
    // The first was taken for whole: nothing tells the two apart.
    assert_eq!(guest.receive().1, frame(1514, 1)[..1514]);
    assert_eq!(guest.receive().1, frame(1514, 2));
    let mut guest = Guest::new(F_MRG_RXBUF, 64);
    guest.give_buffers(8, 1526);
    guest.wire_send(&frame(2000, 1));
    guest.wire_send(&frame(1514, 2));
    assert_eq!(guest.receive().1, frame(1514, 2));
    assert_eq!(guest.errors(), 1);
}

#[test]
fn frames_wait_in_order_while_the_guest_gives_no_buffers() {
    let mut guest = Guest::new(F_EVENT_IDX, 64);
    for seed in 0..20 {
        guest.wire_send(&frame(64, seed));
    }
    std::thread::sleep(Duration::from_millis(30));
    for seed in 0..20 {
        guest.give_buffers(1, 1600);
        assert_eq!(guest.receive().1, frame(64, seed));
    }
    assert_eq!(guest.errors(), 0);
}

#[test]
fn frames_wait_in_order_while_the_wire_takes_none() {
    let mut guest = Guest::new(0, 256);
    // Large ones, so that the socket is full before the ring is.
    let count = 60u8;
    for seed in 0..count {
        guest.transmit(&frame(9000, seed));
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut done = 0;
    while guest.driver.poll_used(TX).is_some() {
        done += 1;
    }
    assert!(done < count, "the socket took everything: no test");
    for seed in 0..count {
        assert_eq!(guest.wire_receive(), frame(9000, seed));
    }
    for _ in done..count {
        guest.driver.wait_used(TX, WAIT);
    }
    assert_eq!(guest.errors(), 0);
}

#[test]
fn malformed_frames_are_dropped_and_counted() {
    let mut guest = Guest::new(0, 64);
    guest.driver.put(TX, &[b"short"], &[]);
    guest
        .driver
        .put(TX, &[&[0; HEADER_BYTES], b"no frame"], &[]);
    guest.driver.put(TX, &[&vec![0; LONGEST_PACKET + 1]], &[]);
    guest.driver.put(TX, &[], &[2000]);
    guest.driver.put_raw(TX, &[(u64::MAX - 10, 100, 0)]);
    guest.driver.put_raw(TX, &[(0x1000, u32::MAX, 0)]);
    guest.driver.kick(TX);
    for _ in 0..6 {
        guest.driver.wait_used(TX, WAIT);
    }
    assert_eq!(guest.errors(), 6);
    guest.transmit(&frame(60, 1));
    assert_eq!(guest.wire_receive(), frame(60, 1));
}

/// The only address of a guest that is told whom it may send as.
const ADDRESS: [u8; 4] = [10, 88, 0, 9];

fn sender() -> Option<Sender> {
    Some(Sender {
        mac: MAC,
        ipv4: vec![ADDRESS.into()],
    })
}

/// An IPv4 frame of `len` bytes that says it is from `source`.
fn frame_from(source: [u8; 4], len: usize) -> Vec<u8> {
    let mut bytes = frame(len, 5);
    bytes[6..12].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    bytes[14] = 0x45;
    bytes[26..30].copy_from_slice(&source);
    bytes
}

#[test]
fn frames_of_another_sender_stay_and_are_counted_and_own_ones_leave_whole() {
    let mut guest = Guest::as_sender(0, 256, sender());
    for len in [34, 60, 86, 1514, 60_000] {
        guest.transmit(&frame_from([10, 88, 0, 8], len));
        let own = frame_from(ADDRESS, len);
        // In pieces that end within what is looked at, and in one.
        let parts: Vec<&[u8]> = std::iter::once(&[0; HEADER_BYTES][..])
            .chain(own.chunks(len.min(1000) / 3 + 1))
            .collect();
        guest.driver.put(TX, &parts, &[]);
        guest.transmit(&own);
        for _ in 0..2 {
            assert_eq!(guest.wire_receive(), own);
        }
        for _ in 0..3 {
            guest.driver.wait_used(TX, WAIT);
        }
    }
    let counters = guest.device.counters();
    assert_eq!(counters.dropped.load(Ordering::Relaxed), 5);
    assert_eq!(counters.requests.load(Ordering::Relaxed), 10);
    assert_eq!(guest.errors(), 0);
}

/// The same to `destination`.
fn frame_to(destination: [u8; 4], len: usize) -> Vec<u8> {
    let mut bytes = frame_from(ADDRESS, len);
    bytes[30..34].copy_from_slice(&destination);
    bytes
}

#[test]
fn frames_to_other_networks_wait_in_order_until_the_way_is_opened_also_over_a_reset() {
    let mut control = None;
    let mut guest = Guest::with(0, 256, |device| {
        let network = OwnNetwork::new(ADDRESS.into(), 16);
        let (device, uplink) = device
            .only_as(sender().unwrap())
            .holding_beyond(network)
            .unwrap();
        control = Some(uplink);
        device
    });
    let control = control.unwrap();
    let near = frame_to([10, 88, 0, 1], 60);
    guest.transmit(&near);
    assert_eq!(guest.wire_receive(), near);
    assert!(!control.take_wanted());

    let far = frame_to([192, 0, 2, 1], 1514);
    guest.transmit(&far);
    guest.transmit(&near);
    let end = std::time::Instant::now() + WAIT;
    while !control.take_wanted() {
        assert!(std::time::Instant::now() < end, "nobody asks for the way");
        std::thread::sleep(Duration::from_millis(1));
    }
    // A device that is stopped and started again holds them still.
    let queues = guest.device.stop();
    guest.driver.resume(&mut guest.device, 0, queues);
    std::thread::sleep(Duration::from_millis(20));
    let mut got = [0; 200];
    let early = recv(guest.far_fd(), &mut got, MsgFlags::empty());
    assert_eq!(early, Err(Errno::EAGAIN));

    control.open();
    assert_eq!(guest.wire_receive(), far);
    assert_eq!(guest.wire_receive(), near);
    for _ in 0..3 {
        guest.driver.wait_used(TX, WAIT);
    }
    guest.transmit(&far);
    assert_eq!(guest.wire_receive(), far);
    let dropped = &guest.device.counters().dropped;
    assert_eq!(dropped.load(Ordering::Relaxed) + guest.errors(), 0);
}

#[test]
fn sender_that_changes_its_frame_after_the_look_at_it_sends_what_was_looked_at() {
    use std::sync::atomic::AtomicBool;
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::as_sender(0, 64, sender());
    let packet = [&[0; HEADER_BYTES], frame_from(ADDRESS, 60).as_slice()].concat();
    let at = guest.driver.allocate(packet.len());
    let memory = Arc::clone(&guest.driver.memory);
    memory.write_slice(&packet, GuestAddress(at)).unwrap();
    let done = AtomicBool::new(false);
    let source_at = GuestAddress(at + (HEADER_BYTES + 26) as u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                memory.write_slice(&[10, 88, 0, 8], source_at).unwrap();
                memory.write_slice(&ADDRESS, source_at).unwrap();
            }
        });
        for _ in 0..2000 {
            guest.driver.put_raw(TX, &[(at, packet.len() as u32, 0)]);
            guest.driver.kick(TX);
            guest.driver.wait_used(TX, WAIT);
            let mut got = [0; 200];
            match recv(guest.far_fd(), &mut got, MsgFlags::empty()) {
                Ok(_) => assert_eq!(got[HEADER_BYTES + 26..][..4], ADDRESS),
                Err(Errno::EAGAIN) => {}
                Err(e) => panic!("{e}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let counters = guest.device.counters();
    assert!(counters.requests.load(Ordering::Relaxed) > 0);
    assert_eq!(guest.errors(), 0);
}

#[test]
fn receive_buffers_without_room_are_given_back_unused() {
    let mut guest = Guest::new(F_MRG_RXBUF, 64);
    guest.give_buffers(1, HEADER_BYTES);
    assert!(guest.used_buffer().is_empty());
    guest.driver.put(RX, &[&[0; 2000]], &[]);
    guest.driver.kick(RX);
    assert_eq!(guest.driver.wait_used(RX, WAIT).written, 0);
    assert_eq!(guest.errors(), 2);
}

#[test]
fn runt_from_the_wire_is_dropped() {
    let mut guest = Guest::new(0, 64);
    guest.give_buffers(1, 1600);
    guest.wire_send(b"runt");
    guest.wire_send(&frame(60, 1));
    assert_eq!(guest.receive(), (1, frame(60, 1)));
    assert_eq!(guest.errors(), 1);
}

#[test]
fn pause_gives_unused_buffers_back_and_nothing_is_lost() {
    let mut guest = Guest::new(F_MRG_RXBUF, 64);
    guest.give_buffers(10, 1600);
    guest.wire_send(&frame(60, 1));
    assert_eq!(guest.receive(), (1, frame(60, 1)));
    let stopped = guest.device.stop();
    assert_eq!(stopped.len(), 2);
    assert!(guest.device.stop().is_empty());
    guest.wire_send(&frame(60, 2));
    guest.transmit(&frame(60, 3));
    guest.driver.resume(&mut guest.device, F_MRG_RXBUF, stopped);
    assert_eq!(guest.receive(), (1, frame(60, 2)));
    assert_eq!(guest.wire_receive(), frame(60, 3));
    // Each of the others is still there.
    for seed in 10..18 {
        guest.wire_send(&frame(60, seed));
        assert_eq!(guest.receive(), (1, frame(60, seed)));
    }
}

#[test]
fn far_end_that_goes_away_leaves_a_device_that_stops() {
    let mut guest = Guest::new(0, 64);
    guest.give_buffers(4, 1600);
    let (replacement, _) = nix::unistd::pipe().unwrap();
    drop(std::mem::replace(&mut guest.far, replacement));
    guest.transmit(&frame(60, 1));
    guest.driver.wait_used(TX, WAIT);
    assert_eq!(guest.device.stop().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_chains_leave_a_working_device(
        features in any::<u64>(),
        chains in proptest::collection::vec(
            (0..2usize, proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..8), 0..5)),
            1..30,
        ),
    ) {
        let mut guest = Guest::new(features & (F_MRG_RXBUF | F_EVENT_IDX | F_GUEST_CSUM), 256);
        for (queue, mut parts) in chains {
            for (address, length, flags) in &mut parts {
                // Mostly inside memory; never an indirect table at a random place.
                if *address & 7 != 0 {
                    *address = 0x40_0000 + *address % 0x100_0000;
                    *length %= 5000;
                }
                *flags &= 2;
            }
            if !parts.is_empty() {
                guest.driver.put_raw(queue, &parts);
                guest.driver.kick(queue);
            }
        }
        guest.wire_send(&frame(60, 1));
        // The transmit ring still works.
        let marker = [b"this very frame".as_slice(), &[0; 50]].concat();
        guest.transmit(&marker);
        while guest.wire_receive() != marker {}
        prop_assert_eq!(guest.device.stop().len(), 2);
    }
}

/// Puts the calling thread into a network namespace of its own with a tap `vmt0` that is up.
fn tap_in_own_namespace() -> OwnedFd {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let tap: OwnedFd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap()
        .into();
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"vmt0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let control = nix::sys::socket::socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    let up = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    assert_eq!(up, 0, "{}", io::Error::last_os_error());
    tap
}

/// A raw socket on `vmt0`.
fn raw_socket() -> OwnedFd {
    use std::os::fd::FromRawFd;
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain socket(2).
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            i32::from(all),
        )
    };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just opened and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = nix::net::if_::if_nametoindex("vmt0").unwrap() as i32;
    // SAFETY: bind(2) reads one sockaddr_ll.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            std::mem::size_of_val(&address) as u32,
        )
    };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    fd
}

#[test]
#[ignore = "needs root and /dev/net/tun: makes a network namespace with a tap"]
fn real_tap_carries_frames_both_ways_and_takes_large_pieces() {
    let tap = tap_in_own_namespace();
    let raw = raw_socket();
    let mut device = Net::new("net0".into(), tap, MAC, 1500).unwrap();
    let features = device.features();
    assert!(features & F_MRG_RXBUF != 0);
    let driver = GuestDriver::new(2, 64);
    driver.activate(&mut device, features);
    let mut guest = Guest {
        device,
        driver,
        rx: HashMap::new(),
        far: raw,
        offloads: Arc::default(),
    };
    guest.give_buffers(60, 1536);

    // An EtherType of nobody's, so that the host does not answer.
    let mut out = frame(200, 1);
    out[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    out[0] &= 0xfe;
    guest.transmit(&out);
    let mut got = vec![0; 70_000];
    let mut next = || {
        let end = std::time::Instant::now() + WAIT;
        loop {
            match recv(guest.far.as_raw_fd(), &mut got, MsgFlags::empty()) {
                Ok(n) => return got[..n].to_vec(),
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("{e}"),
            }
            assert!(std::time::Instant::now() < end, "no frame");
        }
    };
    while next() != out {}

    // A TCP segment of 8000 bytes that the host is to cut: it stays whole until it leaves the machine.
    let payload = 8000usize;
    let mut segment = vec![0; 14 + 20 + 20 + payload];
    segment[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    segment[6..12].copy_from_slice(&MAC);
    segment[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
    segment[14] = 0x45;
    segment[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
    segment[22] = 64;
    segment[23] = 6;
    segment[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    segment[46] = 0x50;
    // flags: needs checksum; gso: TCPv4; header length, segment size, checksum start and offset.
    let mut header = [0u8; HEADER_BYTES];
    header[0] = 1;
    header[1] = 1;
    header[2..4].copy_from_slice(&54u16.to_le_bytes());
    header[4..6].copy_from_slice(&1448u16.to_le_bytes());
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    guest.driver.put(TX, &[&header, &segment], &[]);
    guest.driver.kick(TX);
    while next().len() != segment.len() {}

    // The other way; frames that the host's stack sends by itself may come in between.
    out[1] = 0xee;
    send(guest.far.as_raw_fd(), &out, MsgFlags::empty()).unwrap();
    loop {
        let (count, bytes) = guest.receive();
        assert_eq!(count, 1);
        if bytes == out {
            break;
        }
    }
    assert_eq!(guest.errors(), 0);

    // A header that makes no sense is the host's to refuse, and the guest's loss.
    header[6..8].copy_from_slice(&60_000u16.to_le_bytes());
    guest.driver.put(TX, &[&header, &segment], &[]);
    guest.driver.kick(TX);
    for _ in 0..3 {
        guest.driver.wait_used(TX, WAIT);
    }
    assert_eq!(guest.errors(), 1);
    assert_eq!(guest.device.stop().len(), 2);
}
