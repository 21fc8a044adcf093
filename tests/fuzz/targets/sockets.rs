//! Packets of a guest to the socket device, with a host that listens, connects and talks back.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vmpod_fuzz::{Feed, Guest, Scratch, descriptors};
use vmpod_vmm::virtio::VirtioDevice;
use vmpod_vmm::virtio::vsock::Vsock;

const CID: u32 = 3;
const RX: usize = 0;
const TX: usize = 1;
/// The port that the host listens on.
const PORT: u32 = 9;

/// `struct virtio_vsock_hdr` (VIRTIO 1.3 section 5.10.6).
fn packet(ports: (u32, u32), length: u32, operation: u16, feed: &mut Feed<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let odd = feed.u8();
    let source = if odd == 1 { feed.u64() } else { u64::from(CID) };
    let target = if odd == 2 { feed.u64() } else { 2 };
    bytes.extend(source.to_le_bytes());
    bytes.extend(target.to_le_bytes());
    bytes.extend(ports.0.to_le_bytes());
    bytes.extend(ports.1.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(if odd == 3 { feed.u16() } else { 1 }.to_le_bytes());
    bytes.extend(operation.to_le_bytes());
    bytes.extend(feed.u32().to_le_bytes());
    bytes.extend(if odd == 4 { feed.u32() } else { 1 << 18 }.to_le_bytes());
    bytes.extend(feed.u32().to_le_bytes());
    bytes
}

fuzz_target!(|data: &[u8]| {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    let directory = SCRATCH.get_or_init(Scratch::enter).fresh("sockets");
    let path = directory.join("v");
    let listener =
        UnixListener::bind(directory.join(format!("v_{PORT}"))).expect("listen for the guest");
    listener.set_nonblocking(true).expect("never wait");
    let mut device = Vsock::new("vsock0".into(), CID, &path).expect("make a device");
    let mut feed = Feed::new(data);
    let mut guest = Guest::start(&mut device, feed.u64());
    let mut hosts: Vec<UnixStream> = Vec::new();
    for _ in 0..20 {
        guest.put(RX, &[], &[44, 500]);
    }
    while !feed.is_empty() {
        let kind = feed.u8();
        match kind >> 5 {
            0 => guest.put_raw(usize::from(kind % 3), &descriptors(&mut feed)),
            1 => guest.poke(feed.u32(), feed.u64()),
            2 => {
                if let Ok((stream, _)) = listener.accept() {
                    hosts.push(stream);
                } else if let Ok(mut stream) = UnixStream::connect(&path) {
                    let _ = stream.write_all(feed.bytes(usize::from(kind & 31)));
                    let _ = stream.write_all(b"CONNECT 5\n");
                    hosts.push(stream);
                }
                continue;
            }
            3 => {
                let Some(host) = hosts.get_mut(usize::from(kind & 3)) else {
                    continue;
                };
                host.set_nonblocking(true).expect("never wait");
                let length = usize::from(feed.u8());
                let _ = host.write(feed.bytes(length));
                let _ = host.read(&mut [0; 4096]);
                if kind & 16 != 0 {
                    hosts.remove(usize::from(kind & 3));
                }
                continue;
            }
            _ => {
                let operation = u16::from(feed.u8() % 9);
                let source = match kind & 3 {
                    0 => feed.u32(),
                    small => u32::from(small),
                };
                let target = match kind & 12 {
                    0 => feed.u32(),
                    _ => PORT,
                };
                let length = usize::from(feed.u8());
                let said = if kind & 16 != 0 {
                    feed.u32()
                } else {
                    length as u32
                };
                let header = packet((source, target), said, operation, &mut feed);
                guest.put(TX, &[&header, feed.bytes(length)], &[]);
            }
        }
        guest.wait(TX);
    }
    let queues = device.stop();
    assert!(!queues.is_empty(), "the worker did not come back");
});
