//! Drives the device through its ring, on files.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;

use super::spec::*;
use super::*;
use crate::virtio::guest_driver::{DESC_WRITE, GuestDriver};

const WAIT: Duration = Duration::from_secs(10);
const SECTORS: u64 = 64;

struct Guest {
    device: Blk,
    driver: GuestDriver,
    file: File,
}

impl Guest {
    fn new(features: u64, read_only: bool) -> Self {
        // Not whole sectors, on purpose.
        let mut file = tempfile::tempfile().unwrap();
        let contents: Vec<u8> = (0..SECTORS * 512 + 100).map(pattern).collect();
        file.write_all(&contents).unwrap();
        let device = file.try_clone().unwrap();
        let mut device = Blk::new("blk0".into(), device, "rootfs", read_only).unwrap();
        let driver = GuestDriver::new(1, 64);
        driver.activate(&mut device, features);
        Self {
            device,
            driver,
            file,
        }
    }

    /// Sends a request with the header apart; returns data and status.
    fn request(&mut self, kind: u32, sector: u64, payload: &[u8], room: usize) -> (Vec<u8>, u8) {
        let header = header(kind, sector);
        let writable = [room, 1];
        let writable = if room == 0 {
            &writable[1..]
        } else {
            &writable[..]
        };
        let chain = self.driver.put(0, &[&header, payload], writable);
        self.driver.kick(0);
        let used = self.driver.wait_used(0, WAIT);
        // The status is at the end of the room, not of what is written.
        let whole = crate::virtio::guest_driver::Used {
            written: u32::try_from(room + 1).unwrap(),
            ..used.clone()
        };
        let mut bytes = self.driver.written(&chain, &whole);
        let status = bytes.pop().unwrap();
        bytes.truncate(used.written as usize - 1);
        (bytes, status)
    }

    fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn errors(&self) -> u64 {
        self.device.counters().errors.load(Ordering::Relaxed)
    }
}

fn pattern(at: u64) -> u8 {
    (at / 512 * 31 + at) as u8 | 1
}

fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn config_tells_capacity_and_limits() {
    let guest = Guest::new(0, false);
    let mut config = [0xff; 64];
    guest.device.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    assert!(guest.device.features() & F_RO == 0);
    assert!(Guest::new(0, true).device.features() & F_RO != 0);
}

#[test]
fn serial_that_does_not_fit_is_refused() {
    for serial in ["", "more than twenty bytes"] {
        let file = tempfile::tempfile().unwrap();
        let refused = Blk::new("b".into(), file, serial, true);
        assert!(matches!(refused, Err(BlkError::Serial { .. })));
    }
}

#[test]
fn reads_and_writes_reach_the_file() {
    for features in [0, F_FLUSH, F_FLUSH | F_EVENT_IDX] {
        let mut guest = Guest::new(features, false);
        let (data, status) = guest.request(T_IN, 3, b"", 1024);
        let expected: Vec<u8> = (3 * 512..5 * 512).map(pattern).collect();
        assert_eq!((data, status), (expected, S_OK));
        let new = vec![0xee; 1536];
        assert_eq!(guest.request(T_OUT, SECTORS - 3, &new, 0).1, S_OK);
        assert_eq!(guest.on_disk((SECTORS - 3) * 512, 1536), new);
        // The part behind the last whole sector is as it was.
        assert_eq!(guest.on_disk(SECTORS * 512, 1)[0], pattern(SECTORS * 512));
        assert_eq!(guest.request(T_FLUSH, 0, b"", 0).1, S_OK);
        let counters = guest.device.counters();
        assert_eq!(counters.read_bytes.load(Ordering::Relaxed), 1024);
        assert_eq!(counters.written_bytes.load(Ordering::Relaxed), 1536);
        assert_eq!(guest.errors(), 0);
    }
}

#[test]
fn request_cut_in_odd_pieces_is_the_same_request() {
    let mut guest = Guest::new(0, false);
    let header = header(T_OUT, 1);
    let data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let whole = [&header[..], &data].concat();
    let pieces: Vec<&[u8]> = whole.chunks(100).collect();
    let chain = guest.driver.put(0, &pieces, &[1]);
    guest.driver.kick(0);
    let used = guest.driver.wait_used(0, WAIT);
    assert_eq!(guest.driver.written(&chain, &used), [S_OK]);
    assert_eq!(guest.on_disk(512, 512), data);
    // Data and status in one descriptor, and the data in several.
    let got = guest
        .driver
        .request(0, &[&self::header(T_IN, 1)], &[7, 300, 206]);
    assert_eq!(got, [&data[..], &[S_OK]].concat());
}

#[test]
fn serial_number_is_given_in_twenty_bytes() {
    let mut guest = Guest::new(0, true);
    let (id, status) = guest.request(T_GET_ID, 0, b"", 20);
    assert_eq!((&id[..7], status), (&b"rootfs\0"[..], S_OK));
    assert_eq!(id.len(), 20);
    assert_eq!(guest.request(T_GET_ID, 0, b"", 3), (b"roo".to_vec(), S_OK));
}

#[test]
fn discard_and_zeroes_change_what_they_name() {
    let mut guest = Guest::new(F_FLUSH, false);
    let before = guest.file.metadata().unwrap().blocks();
    let two = [range(8, 8, 0), range(24, 8, 0)].concat();
    assert_eq!(guest.request(T_DISCARD, 0, &two, 0).1, S_OK);
    assert!(guest.file.metadata().unwrap().blocks() <= before);
    for flags in [0, RANGE_UNMAP] {
        let start = 40 + u64::from(flags) * 3;
        let zero = range(start, 2, flags);
        assert_eq!(guest.request(T_WRITE_ZEROES, 0, &zero, 0).1, S_OK);
        assert_eq!(guest.on_disk(start * 512, 1024), [0; 1024]);
        assert_ne!(guest.on_disk(start * 512 - 1, 1), [0]);
        assert_ne!(guest.on_disk(start * 512 + 1024, 1), [0]);
    }
    assert_eq!(guest.errors(), 0);
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let mut guest = Guest::new(0, false);
    let sector = [7; 512];
    let long = range(0, MAX_ZERO_SECTORS + 1, 0);
    let many = range(0, 1, 0).repeat(MAX_RANGES as usize + 1);
    let (beyond, wrapping) = (range(SECTORS, 1, 0), range(u64::MAX, 1, 0));
    let strange = range(0, 1, 2);
    let cases: [(u32, u64, &[u8], usize, u8); 16] = [
        (T_IN, SECTORS, b"", 512, S_IOERR),
        (T_IN, SECTORS - 1, b"", 1024, S_IOERR),
        (T_IN, u64::MAX, b"", 512, S_IOERR),
        (T_IN, u64::MAX / 512, b"", 1024, S_IOERR),
        (T_IN, 0, b"", 511, S_IOERR),
        (T_IN, 0, b"", 0, S_IOERR),
        (T_OUT, SECTORS, &sector, 0, S_IOERR),
        (T_OUT, 0, &sector[1..], 0, S_IOERR),
        (T_OUT, 0, b"", 0, S_IOERR),
        (T_DISCARD, 0, b"half a range", 0, S_IOERR),
        (T_DISCARD, 0, &beyond, 0, S_IOERR),
        (T_DISCARD, 0, &range(0, 1, RANGE_UNMAP), 0, S_UNSUPP),
        (T_WRITE_ZEROES, 0, &wrapping, 0, S_IOERR),
        (T_WRITE_ZEROES, 0, &long, 0, S_IOERR),
        (T_WRITE_ZEROES, 0, &many, 0, S_IOERR),
        (T_WRITE_ZEROES, 0, &strange, 0, S_UNSUPP),
    ];
    for (kind, sector, payload, room, status) in cases {
        let (data, got) = guest.request(kind, sector, payload, room);
        assert_eq!((data.len(), got), (0, status), "{kind} {sector} {room}");
    }
    for unknown in [2, 3, 10, 14, u32::MAX] {
        assert_eq!(guest.request(unknown, 0, b"", 0).1, S_UNSUPP);
    }
    let contents = guest.on_disk(0, (SECTORS * 512) as usize);
    assert!((0..).zip(contents).all(|(at, byte)| byte == pattern(at)));
    assert_eq!(guest.errors(), 21);
}

#[test]
fn read_only_device_refuses_every_change() {
    let mut guest = Guest::new(0, true);
    assert_eq!(guest.request(T_OUT, 0, &[0; 512], 0).1, S_IOERR);
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        assert_eq!(guest.request(kind, 0, &range(0, 1, 0), 0).1, S_IOERR);
    }
    assert_eq!(guest.on_disk(0, 1)[0], pattern(0));
}

#[test]
fn chains_without_header_status_or_memory_are_given_back() {
    let mut guest = Guest::new(0, false);
    let header = header(T_FLUSH, 0);
    // No status byte, a short header, a hole, a writable header.
    assert!(guest.driver.request(0, &[&header], &[]).is_empty());
    assert_eq!(guest.driver.request(0, &[&header[1..]], &[1]), [S_IOERR]);
    for parts in [
        [(1 << 40, 16, 0), (0x40_0000, 1, DESC_WRITE)],
        [(0x40_0000, 16, DESC_WRITE), (0x40_1000, 1, 0)],
    ] {
        guest.driver.put_raw(0, &parts);
        guest.driver.kick(0);
        assert_eq!(guest.driver.wait_used(0, WAIT).written, 0);
    }
    assert_eq!(guest.request(T_FLUSH, 0, b"", 0).1, S_OK);
}

#[test]
fn file_that_became_shorter_is_an_error_of_the_request() {
    let mut guest = Guest::new(0, false);
    guest.file.set_len(1024).unwrap();
    assert_eq!(guest.request(T_IN, 1, b"", 1024).1, S_IOERR);
    assert_eq!(guest.request(T_IN, 1, b"", 512).1, S_OK);
}

#[test]
fn pause_gives_the_queue_back_and_requests_go_on() {
    let mut guest = Guest::new(F_EVENT_IDX, false);
    guest.request(T_FLUSH, 0, b"", 0);
    let queues = guest.device.stop();
    assert_eq!(queues.len(), 1);
    assert!(guest.device.stop().is_empty());
    let chain = guest.driver.put(0, &[&header(T_FLUSH, 0)], &[1]);
    // Nobody notifies again of what came in meanwhile.
    guest.driver.resume(&mut guest.device, F_EVENT_IDX, queues);
    let used = guest.driver.wait_used(0, WAIT);
    assert_eq!(guest.driver.written(&chain, &used), [S_OK]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_requests_leave_a_working_device(
        requests in proptest::collection::vec(
            (
                prop_oneof![0..15u32, any::<u32>()],
                prop_oneof![0..SECTORS + 2, any::<u64>()],
                proptest::collection::vec(0..1100usize, 0..4),
                proptest::collection::vec(0..1100usize, 0..4),
                0..=HEADER_BYTES,
            ),
            1..40,
        ),
    ) {
        let mut guest = Guest::new(0, false);
        for (kind, sector, readable, writable, cut) in requests {
            let header = header(kind, sector);
            let header = if cut % 4 == 0 { &header[cut..] } else { &header[..] };
            let payload = [3; 1100];
            let mut parts = vec![header];
            parts.extend(readable.iter().map(|&len| &payload[..len]));
            guest.driver.request(0, &parts, &writable);
        }
        prop_assert_eq!(guest.file.metadata().unwrap().len(), SECTORS * 512 + 100);
        prop_assert_eq!(guest.request(T_FLUSH, 0, b"", 0).1, S_OK);
    }
}
