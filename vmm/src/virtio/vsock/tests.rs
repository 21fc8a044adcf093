//! Drives the device through its rings and its Unix sockets.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::spec::*;
use super::*;
use crate::virtio::guest_driver::{Chain, GuestDriver};

const CID: u64 = 5;
const WAIT: Duration = Duration::from_secs(10);
const RX: usize = RX_QUEUE as usize;
const TX: usize = TX_QUEUE as usize;

/// A guest's socket driver, and the device.
struct Guest {
    device: Vsock,
    driver: GuestDriver,
    rx: HashMap<u16, Chain>,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new(features: u64, rx_buffers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device =
            Vsock::new("vsock0".into(), CID as u32, &dir.path().join("v.sock")).unwrap();
        let driver = GuestDriver::new(3, 64);
        driver.activate(&mut device, features);
        let mut guest = Self {
            device,
            driver,
            rx: HashMap::new(),
            dir,
        };
        for _ in 0..rx_buffers {
            guest.give_buffer(4096 + HEADER_BYTES);
        }
        guest
    }

    fn give_buffer(&mut self, len: usize) {
        let chain = self
            .driver
            .put(RX, &[], &[HEADER_BYTES, len - HEADER_BYTES]);
        self.rx.insert(chain.head, chain);
        self.driver.kick(RX);
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_raw(&[&header.to_bytes(), payload]);
    }

    fn send_raw(&mut self, parts: &[&[u8]]) {
        let chain = self.driver.put(TX, parts, &[]);
        self.driver.kick(TX);
        let used = self.driver.wait_used(TX, WAIT);
        assert_eq!(used.head, chain.head);
        assert_eq!(used.written, 0);
    }

    /// The next packet from the device; its buffer is given back.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let used = self.driver.wait_used(RX, WAIT);
        let chain = self.rx.remove(&used.head).unwrap();
        let bytes = self.driver.written(&chain, &used);
        self.give_buffer(4096 + HEADER_BYTES);
        let header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
        assert_eq!(header.dst_cid, CID);
        (header, bytes[HEADER_BYTES..].to_vec())
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    fn stays_silent(&mut self) -> bool {
        self.driver.stays_unused(RX, Duration::from_millis(25))
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.dir.path().join("v.sock")).unwrap();
        client.set_read_timeout(Some(WAIT)).unwrap();
        client.set_write_timeout(Some(WAIT)).unwrap();
        client
    }

    /// A host client connected to guest port `port`, and the header that the guest answers with.
    fn connected(&mut self, port: u32) -> (UnixStream, Header) {
        let mut client = self.client();
        writeln!(client, "CONNECT {port}").unwrap();
        let request = self.expect(OP_REQUEST);
        assert_eq!((request.src_cid, request.dst_port), (HOST_CID, port));
        assert_eq!(request.socket_type, TYPE_STREAM);
        assert!(request.buf_alloc >= 64 << 10);
        let reply = packet(port, request.src_port);
        self.send(
            Header {
                op: OP_RESPONSE,
                ..reply
            },
            b"",
        );
        assert_eq!(read_line(&mut client), format!("OK {}", request.src_port));
        (client, reply)
    }
}

/// A packet from guest port to host port with much credit.
fn packet(guest: u32, host: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        socket_type: TYPE_STREAM,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn rw(reply: Header, payload: &[u8]) -> Header {
    Header {
        op: OP_RW,
        len: payload.len() as u32,
        ..reply
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"\n" {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte[0]);
    }
}

fn is_at_end(stream: &mut UnixStream) -> bool {
    stream.read(&mut [0]).unwrap() == 0
}

#[test]
fn socket_file_is_private_replaces_a_stale_one_and_goes_with_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    drop(UnixListener::bind(&path).unwrap());
    let device = Vsock::new("v".into(), 3, &path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    drop(device);
    assert!(!path.exists());
}

#[test]
fn socket_path_longer_than_an_address_works() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let device = Vsock::new("v".into(), 3, &deep.join("v.sock")).unwrap();
    assert!(deep.join("v.sock").exists());
    drop(device);
}

#[test]
fn unusable_paths_and_cids_are_named_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let new = |cid, path: &Path| Vsock::new("v".into(), cid, path).unwrap_err();
    assert!(matches!(new(3, &file), VsockError::NotASocket { .. }));
    assert!(file.exists());
    let missing = dir.path().join("none/v.sock");
    assert!(matches!(new(3, &missing), VsockError::Socket { .. }));
    assert!(matches!(new(2, &file), VsockError::GuestCid { cid: 2 }));
}

#[test]
fn config_read_at_any_offset_gives_the_cid_then_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let device = Vsock::new("v".into(), 0x01020304, &dir.path().join("s")).unwrap();
    let mut all = [0xff; 10];
    device.read_config(0, &mut all);
    assert_eq!(all, [4, 3, 2, 1, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut all);
    assert_eq!(all, [0; 10]);
}

#[test]
fn activation_without_a_transmit_queue_is_refused_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Vsock::new("v".into(), 3, &dir.path().join("s")).unwrap();
    let driver = GuestDriver::new(3, 64);
    let mut activation = driver.activation(0);
    activation.queues.remove(TX);
    assert!(matches!(
        device.activate(activation),
        Err(ActivateError::QueueMissing { index: TX_QUEUE })
    ));
    driver.activate(&mut device, 0);
    assert_eq!(device.stop().len(), 3);
    assert!(device.stop().is_empty());
}

#[test]
fn host_client_and_guest_exchange_bytes_both_ways() {
    for features in [0, F_EVENT_IDX] {
        let mut guest = Guest::new(features, 16);
        let (mut client, reply) = guest.connected(1024);
        client.write_all(b"to the guest").unwrap();
        let (header, payload) = guest.receive();
        assert_eq!(
            (header.op, payload.as_slice()),
            (OP_RW, &b"to the guest"[..])
        );
        guest.send(rw(reply, b"to the host"), b"to the host");
        let mut got = [0; 11];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"to the host");
        let counters = guest.device.counters();
        let read = |c: &std::sync::atomic::AtomicU64| c.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(read(&counters.read_bytes), 12);
        assert_eq!(read(&counters.written_bytes), 11);
        assert_eq!(read(&counters.errors), 0);
    }
}

#[test]
fn bytes_sent_right_behind_the_connect_line_reach_the_guest() {
    let mut guest = Guest::new(0, 16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 7\nearly").unwrap();
    let request = guest.expect(OP_REQUEST);
    let reply = packet(7, request.src_port);
    guest.send(
        Header {
            op: OP_RESPONSE,
            ..reply
        },
        b"",
    );
    assert_eq!(guest.receive().1, b"early");
}

#[test]
fn connect_line_in_pieces_is_understood() {
    let mut guest = Guest::new(0, 16);
    let mut client = guest.client();
    for piece in ["CON", "NECT 10", "24\n"] {
        client.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(guest.expect(OP_REQUEST).dst_port, 1024);
}

#[test]
fn malformed_or_overlong_connect_lines_close_the_client() {
    let mut guest = Guest::new(0, 16);
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT +5\n",
        "CONNECT 4294967295\n",
        "CONNECT 4294967296\n",
        "connect 5\n",
        "CONNECT 00000000000000000000000000000005\n",
    ] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        let end = client.read(&mut [0]);
        assert!(matches!(end, Ok(0) | Err(_)), "{line:?} was answered");
    }
    assert!(guest.stays_silent());
}

#[test]
fn silent_client_is_closed_after_the_limit() {
    let guest = Guest::new(0, 16);
    let mut client = guest.client();
    let start = Instant::now();
    assert!(is_at_end(&mut client));
    assert!(start.elapsed() >= ANSWER_LIMIT - Duration::from_millis(100));
}

#[test]
fn refused_request_closes_the_client() {
    let mut guest = Guest::new(0, 16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let request = guest.expect(OP_REQUEST);
    guest.send(
        Header {
            op: OP_RST,
            ..packet(9, request.src_port)
        },
        b"",
    );
    assert!(is_at_end(&mut client));
    assert!(guest.stays_silent());
}

#[test]
fn unanswered_request_is_reset_and_closed_after_the_limit() {
    let mut guest = Guest::new(0, 16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let request = guest.expect(OP_REQUEST);
    assert!(is_at_end(&mut client));
    assert_eq!(guest.expect(OP_RST).src_port, request.src_port);
    // An answer that comes too late finds nothing.
    guest.send(
        Header {
            op: OP_RESPONSE,
            ..packet(9, request.src_port)
        },
        b"",
    );
    guest.expect(OP_RST);
}

#[test]
fn guest_client_reaches_the_listener_of_its_port() {
    let mut guest = Guest::new(F_EVENT_IDX, 16);
    let listener = UnixListener::bind(guest.dir.path().join("v.sock_52")).unwrap();
    let to_host = packet(2000, 52);
    guest.send(
        Header {
            op: OP_REQUEST,
            ..to_host
        },
        b"",
    );
    let response = guest.expect(OP_RESPONSE);
    assert_eq!((response.src_port, response.dst_port), (52, 2000));
    let (mut server, _) = listener.accept().unwrap();
    guest.send(rw(to_host, b"ping"), b"ping");
    let mut got = [0; 4];
    server.read_exact(&mut got).unwrap();
    server.write_all(b"pong").unwrap();
    assert_eq!(guest.receive().1, b"pong");
}

#[test]
fn guest_client_without_a_listener_is_reset() {
    let mut guest = Guest::new(0, 16);
    guest.send(
        Header {
            op: OP_REQUEST,
            ..packet(2000, 53)
        },
        b"",
    );
    let reset = guest.expect(OP_RST);
    assert_eq!((reset.src_port, reset.dst_port), (53, 2000));
}

#[test]
fn host_half_close_still_delivers_the_guests_answer() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(80);
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.receive().1, b"question");
    assert_eq!(guest.expect(OP_SHUTDOWN).flags, SHUTDOWN_SEND);
    guest.send(rw(reply, b"answer"), b"answer");
    guest.send(
        Header {
            op: OP_SHUTDOWN,
            flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
            ..reply
        },
        b"",
    );
    guest.expect(OP_RST);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "answer");
}

#[test]
fn guest_half_close_is_seen_by_the_host_and_host_data_still_comes() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(80);
    guest.send(rw(reply, b"last"), b"last");
    guest.send(
        Header {
            op: OP_SHUTDOWN,
            flags: SHUTDOWN_SEND,
            ..reply
        },
        b"",
    );
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "last");
    client.write_all(b"more").unwrap();
    assert_eq!(guest.receive().1, b"more");
    // Payload after the end is a violation.
    guest.send(rw(reply, b"x"), b"x");
    guest.expect(OP_RST);
}

#[test]
fn host_close_is_told_as_shutdown_after_the_last_bytes() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(80);
    client.write_all(b"bye").unwrap();
    drop(client);
    let (mut data, mut flags) = (Vec::new(), 0);
    while flags != SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
        let (header, payload) = guest.receive();
        match header.op {
            OP_RW => data.extend(payload),
            OP_SHUTDOWN => flags = header.flags,
            op => panic!("operation {op}"),
        }
    }
    assert_eq!(data, b"bye");
    // What the guest still sends is swallowed, with credit; its RST ends the connection.
    guest.send(rw(reply, b"late"), b"late");
    guest.send(
        Header {
            op: OP_CREDIT_REQUEST,
            ..reply
        },
        b"",
    );
    assert_eq!(guest.expect(OP_CREDIT_UPDATE).fwd_cnt, 4);
    guest.send(
        Header {
            op: OP_RST,
            ..reply
        },
        b"",
    );
    guest.send(rw(reply, b"x"), b"x");
    guest.expect(OP_RST);
}

#[test]
fn guest_credit_limits_what_the_host_may_send() {
    let mut guest = Guest::new(0, 16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 5\n0123456789").unwrap();
    let request = guest.expect(OP_REQUEST);
    let reply = Header {
        buf_alloc: 4,
        ..packet(5, request.src_port)
    };
    guest.send(
        Header {
            op: OP_RESPONSE,
            ..reply
        },
        b"",
    );
    assert_eq!(guest.receive().1, b"0123");
    guest.expect(OP_CREDIT_REQUEST);
    // Credit lies: more passed on than was sent, or no buffer at all.
    for (buf_alloc, fwd_cnt) in [(4, 5), (0, 4), (4, 0x8000_0000)] {
        guest.send(
            Header {
                op: OP_CREDIT_UPDATE,
                buf_alloc,
                fwd_cnt,
                ..reply
            },
            b"",
        );
        assert!(guest.stays_silent(), "{buf_alloc} {fwd_cnt}");
    }
    guest.send(
        Header {
            op: OP_CREDIT_UPDATE,
            buf_alloc: 4,
            fwd_cnt: 4,
            ..reply
        },
        b"",
    );
    assert_eq!(guest.receive().1, b"4567");
}

#[test]
fn stalled_host_reader_holds_up_neither_others_nor_its_own_bytes() {
    let mut guest = Guest::new(0, 16);
    let (mut stalled, stalled_reply) = guest.connected(1);
    let (mut other, other_reply) = guest.connected(2);
    // More than the Unix socket takes, as much as the credit allows.
    let chunk = vec![7; 4096];
    let (mut sent, mut forwarded) = (0u32, 0);
    loop {
        guest.send(
            Header {
                op: OP_CREDIT_REQUEST,
                ..stalled_reply
            },
            b"",
        );
        let update = guest.expect(OP_CREDIT_UPDATE);
        let credit = update.buf_alloc - (sent - update.fwd_cnt);
        if credit < 4096 {
            break;
        }
        forwarded = update.fwd_cnt;
        guest.send(rw(stalled_reply, &chunk), &chunk);
        sent += 4096;
        assert!(sent < 64 << 20, "no limit");
    }
    assert!(sent - forwarded <= BUFFER_BYTES);
    guest.send(rw(other_reply, b"alive"), b"alive");
    let mut got = [0; 5];
    other.read_exact(&mut got).unwrap();
    // The reader wakes up: everything arrives, and the guest gets credit again.
    let mut all = vec![0; sent as usize];
    stalled.read_exact(&mut all).unwrap();
    assert!(all.iter().all(|&b| b == 7));
    assert!(guest.expect(OP_CREDIT_UPDATE).fwd_cnt > forwarded);
}

#[test]
fn bytes_beyond_the_credit_reset_the_connection() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(1);
    let chunk = vec![1; 60 << 10];
    let mut was_reset = false;
    for _ in 0..100 {
        guest.send(rw(reply, &chunk), &chunk);
        while let Some(used) = guest.driver.poll_used(RX) {
            let chain = guest.rx.remove(&used.head).unwrap();
            let bytes = guest.driver.written(&chain, &used);
            guest.give_buffer(1000);
            was_reset |= bytes[30..32] == OP_RST.to_le_bytes();
        }
        if was_reset {
            break;
        }
    }
    assert!(was_reset);
    // What was within the credit still arrives.
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(!all.is_empty() && all.iter().all(|&b| b == 1));
}

#[test]
fn guest_close_with_bytes_on_their_way_delivers_them_all() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(1);
    let chunk = vec![3; 32 << 10];
    for _ in 0..9 {
        guest.send(rw(reply, &chunk), &chunk);
    }
    guest.send(
        Header {
            op: OP_SHUTDOWN,
            flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
            ..reply
        },
        b"",
    );
    loop {
        match guest.receive().0.op {
            OP_RST => break,
            OP_CREDIT_UPDATE => {}
            op => panic!("operation {op}"),
        }
    }
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 9 * chunk.len());
}

#[test]
fn packets_wait_for_receive_buffers_and_take_turns() {
    let mut guest = Guest::new(F_EVENT_IDX, 2);
    let (mut a, _) = guest.connected(1);
    let (mut b, _) = guest.connected(2);
    // Use up the buffers that are there.
    a.write_all(&[b'a'; 40 << 10]).unwrap();
    b.write_all(&[b'b'; 40 << 10]).unwrap();
    let mut from = HashMap::new();
    let mut order = Vec::new();
    while from.values().sum::<usize>() < 80 << 10 {
        let (header, payload) = guest.receive();
        assert_eq!(header.op, OP_RW);
        *from.entry(header.dst_port).or_insert(0) += payload.len();
        order.push(header.dst_port);
    }
    assert_eq!(from[&1], 40 << 10);
    let first_b = order.iter().position(|&p| p == 2).unwrap();
    let last_a = order.iter().rposition(|&p| p == 1).unwrap();
    assert!(first_b < last_a, "{order:?}");
}

#[test]
fn malformed_packets_are_dropped_or_reset_and_the_device_goes_on() {
    let mut guest = Guest::new(0, 32);
    let good = packet(1, 1);
    guest.send_raw(&[b"short"]);
    guest.send_raw(&[]);
    // More payload than there is, or than a packet may have.
    guest.send(rw(good, &[0; 100]), &[0; 10]);
    guest.send(
        Header {
            op: OP_RW,
            len: u32::MAX,
            ..good
        },
        b"",
    );
    // Somebody else's context id.
    guest.send(Header { src_cid: 9, ..good }, b"");
    assert!(guest.stays_silent());
    // Wrong destination, type and operation, and unknown connections are answered.
    let bad = [
        Header { dst_cid: 1, ..good },
        Header {
            socket_type: 2,
            ..good
        },
        Header { op: 0, ..good },
        Header { op: 99, ..good },
        rw(good, b""),
    ];
    for header in bad {
        guest.send(header, b"");
        let reset = guest.expect(OP_RST);
        assert_eq!(reset.src_cid, header.dst_cid);
    }
    // Device-writable where readable is meant, and addresses outside memory.
    guest.driver.put(TX, &[], &[100]);
    guest.driver.put_raw(TX, &[(u64::MAX - 50, 100, 0)]);
    guest.driver.put_raw(TX, &[(1 << 40, 44, 0)]);
    guest.driver.kick(TX);
    for _ in 0..3 {
        guest.driver.wait_used(TX, WAIT);
    }
    guest.connected(1);
}

#[test]
fn receive_buffers_without_room_are_given_back_unused() {
    let mut guest = Guest::new(0, 0);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1\n").unwrap();
    let small = guest.driver.put(RX, &[], &[HEADER_BYTES]);
    let wrong = guest.driver.put(RX, &[&[0; 100]], &[]);
    guest.driver.kick(RX);
    for head in [small.head, wrong.head] {
        let used = guest.driver.wait_used(RX, WAIT);
        assert_eq!((used.head, used.written), (head, 0));
    }
    guest.give_buffer(1000);
    guest.expect(OP_REQUEST);
}

#[test]
fn flood_of_strange_packets_without_receive_buffers_stays_bounded() {
    let mut guest = Guest::new(0, 0);
    for i in 0..2000 {
        guest.send(rw(packet(i, 7), b""), b"");
    }
    // What is left of it is answered, and the device works.
    for _ in 0..16 {
        guest.give_buffer(4096);
    }
    let mut resets = 0;
    while !guest.stays_silent() {
        resets += 1;
        assert!(resets < 2000);
        guest.give_buffer(4096);
    }
}

#[test]
fn open_connections_outlive_a_pause_and_end_with_a_fresh_driver() {
    let mut guest = Guest::new(0, 16);
    let (mut client, reply) = guest.connected(1);
    let stopped = guest.device.stop();
    assert_eq!(stopped.len(), 3);
    client.write_all(b"while paused").unwrap();
    guest.driver.resume(&mut guest.device, 0, stopped);
    assert_eq!(guest.receive().1, b"while paused");
    guest.send(rw(reply, b"ok"), b"ok");
    let mut got = [0; 2];
    client.read_exact(&mut got).unwrap();

    guest.device.stop();
    let driver = GuestDriver::new(3, 64);
    driver.activate(&mut guest.device, 0);
    guest.driver = driver;
    assert!(is_at_end(&mut client));
    guest.rx.clear();
    for _ in 0..8 {
        guest.give_buffer(1000);
    }
    guest.connected(1);
}

#[test]
fn reset_that_waits_for_a_buffer_outlives_a_pause() {
    let mut guest = Guest::new(0, 0);
    guest.send(rw(packet(7, 8), b""), b"");
    let stopped = guest.device.stop();
    guest.driver.resume(&mut guest.device, 0, stopped);
    guest.give_buffer(1000);
    assert_eq!(guest.expect(OP_RST).dst_port, 7);
}

#[test]
fn restored_driver_is_told_of_the_reset_before_anything_else() {
    let event = EVENT_QUEUE as usize;
    let mut guest = Guest::new(0, 16);
    let (_client, reply) = guest.connected(1);
    let buffer = guest.driver.put(event, &[], &[8]);
    guest.driver.put(event, &[], &[8]);
    let queues = guest.device.stop();

    let path = guest.dir.path().join("restored.sock");
    guest.device = Vsock::new("v".into(), CID as u32, &path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 2\n").unwrap();
    guest.driver.resume(&mut guest.device, 0, queues);
    let used = guest.driver.wait_used(event, WAIT);
    assert_eq!(guest.driver.written(&buffer, &used), EVENT_TRANSPORT_RESET);
    assert!(guest.stays_silent());
    // The guest has acted and puts a buffer back.
    guest.driver.put(event, &[], &[8]);
    guest.driver.kick(event);
    assert_eq!(guest.expect(OP_REQUEST).dst_port, 2);
    // The connection from before the restore is unknown.
    guest.send(rw(reply, b"x"), b"x");
    guest.expect(OP_RST);
}

#[test]
fn restored_driver_without_connections_is_told_of_nothing_and_sees_no_port_again() {
    let event = EVENT_QUEUE as usize;
    let mut guest = Guest::new(0, 16);
    let (client, reply) = guest.connected(1);
    let open = {
        let queues = guest.device.stop();
        let saved = guest.device.saved();
        guest.driver.resume(&mut guest.device, 0, queues);
        saved
    };
    assert_eq!(open.first(), Some(&0));
    let reset = Header {
        op: OP_RST,
        ..rw(reply, b"")
    };
    guest.send(reset, b"");
    drop(client);
    guest.driver.put(event, &[], &[8]);
    let queues = guest.device.stop();
    let saved = guest.device.saved();
    assert_eq!(saved.first(), Some(&1));

    let path = guest.dir.path().join("restored.sock");
    guest.device = Vsock::new("v".into(), CID as u32, &path).unwrap();
    for wrong in [&[][..], &[2, 0, 0, 0, 0], &[1], &[1, 0, 0, 0, 0, 0]] {
        assert!(guest.device.restore(wrong).is_err(), "{wrong:?}");
    }
    guest.device.restore(&saved).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 2\n").unwrap();
    guest.driver.resume(&mut guest.device, 0, queues);
    let request = guest.expect(OP_REQUEST);
    assert_eq!(request.dst_port, 2);
    assert_ne!(request.src_port, reply.dst_port);
    assert!(guest.driver.poll_used(event).is_none());
}

fn arbitrary_header() -> impl Strategy<Value = Header> {
    let port = prop_oneof![
        Just(1u32),
        Just(2),
        Just(1 << 30),
        Just((1 << 30) + 1),
        any::<u32>()
    ];
    (
        prop_oneof![8 => Just(CID), 1 => any::<u64>()],
        prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()],
        port.clone(),
        port,
        prop_oneof![6 => 0u32..200, 1 => any::<u32>()],
        prop_oneof![8 => Just(TYPE_STREAM), 1 => any::<u16>()],
        prop_oneof![8 => 0u16..9, 1 => any::<u16>()],
        prop_oneof![4 => 0u32..4, 1 => any::<u32>()],
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(
            |(
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                socket_type,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            )| Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                socket_type,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn header_survives_its_wire_form(header in arbitrary_header()) {
        prop_assert_eq!(Header::from_bytes(&header.to_bytes()), header);
    }

    #[test]
    fn handshake_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
        let _ = super::request::parse_handshake(&bytes);
    }

    #[test]
    fn any_packets_leave_a_working_device(
        packets in proptest::collection::vec((arbitrary_header(), 0usize..200, 0usize..50), 1..60),
    ) {
        let mut guest = Guest::new(0, 16);
        let listener = UnixListener::bind(guest.dir.path().join("v.sock_1")).unwrap();
        let mut client = guest.client();
        client.write_all(b"CONNECT 1\nhello").unwrap();
        for (header, payload, cut) in packets {
            let bytes = header.to_bytes();
            let head = &bytes[..bytes.len() - if cut < HEADER_BYTES / 4 { cut } else { 0 }];
            guest.send_raw(&[head, &vec![1; payload]]);
            while let Some(used) = guest.driver.poll_used(RX) {
                guest.rx.remove(&used.head);
                guest.give_buffer(1000);
            }
        }
        drop(listener);
        while !guest.stays_silent() {
            guest.give_buffer(1000);
        }
        let mut fresh = guest.client();
        fresh.write_all(b"CONNECT 77\n").unwrap();
        loop {
            let (header, _) = guest.receive();
            if header.op == OP_REQUEST && header.dst_port == 77 {
                break;
            }
        }
    }
}
