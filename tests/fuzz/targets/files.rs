//! FUSE requests of a guest to the file server, through its rings, on a small tree.

#![no_main]

use std::fs::File;
use std::os::unix::fs::symlink;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vmpod_fuzz::{Feed, Guest, Scratch, descriptors};
use vmpod_vmm::virtio::VirtioDevice;
use vmpod_vmm::virtio::fs::Fs;

/// Bytes of `struct fuse_in_header` (linux/fuse.h).
const HEADER: usize = 40;
const FUSE_INIT: u32 = 26;
const NOTIFICATIONS: usize = 1;
/// The first request queue, behind those for urgent requests and for notifications.
const REQUESTS: usize = 2;

fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(Scratch::enter)
}

fn request(opcode: u32, node: u64, ids: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(((HEADER + payload.len()) as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend(ids.0.to_le_bytes());
    bytes.extend(ids.1.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let scratch = scratch();
    let outside = scratch.path().join("outside");
    std::fs::write(&outside, "untouched").expect("write outside");
    let root = scratch.fresh("root");
    std::fs::create_dir_all(root.join("d/e")).expect("make a directory");
    std::fs::write(root.join("f"), "content").expect("write a file");
    symlink("../outside", root.join("l")).expect("make a link");
    symlink("/mnt/outside", root.join("d/m")).expect("make a link");

    let open = File::open(&root).expect("open the root");
    let mut feed = Feed::new(data);
    let choices = feed.u8();
    let mut device =
        Fs::new("fs0".into(), "t", open.into(), 1, choices & 1 != 0).expect("make a device");
    let mut guest = Guest::start(&mut device, u64::MAX);
    // Version 7.38 and whatever features the input wants.
    let mut init = Vec::new();
    for word in [7, 38, 4096, feed.u32(), feed.u32()] {
        init.extend(word.to_le_bytes());
    }
    init.extend([0; 44]);
    guest.put(REQUESTS, &[&request(FUSE_INIT, 0, (0, 0), &init)], &[80]);
    guest.wait(REQUESTS);
    while !feed.is_empty() {
        let kind = feed.u8();
        let queue = match kind >> 6 {
            0 => usize::from(kind & 1),
            _ => REQUESTS,
        };
        if kind & 0x38 == 0x38 {
            guest.put_raw(queue, &descriptors(&mut feed));
        } else {
            let opcode = u32::from(feed.u8() % 56);
            let node = match feed.u8() {
                255 => feed.u64(),
                small => u64::from(small % 8),
            };
            let length = usize::from(feed.u8());
            let ids = if kind & 4 != 0 {
                (1000, u32::MAX)
            } else {
                (0, 0)
            };
            let bytes = request(opcode, node, ids, feed.bytes(length));
            let answer = usize::from(feed.u16()) % 9000;
            let (first, second) = bytes.split_at(if kind & 2 != 0 { HEADER } else { 4 });
            guest.put(queue, &[first, second], &[16, answer]);
        }
        // Buffers for notifications stay with the device.
        if queue != NOTIFICATIONS {
            guest.wait(queue);
        }
    }
    let queues = device.stop();
    assert_eq!(queues.len(), 3, "a worker did not come back");
    let kept = std::fs::read_to_string(&outside).expect("read outside");
    assert_eq!(kept, "untouched", "the server left its root");
});
