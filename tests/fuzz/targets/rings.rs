//! Descriptor tables and rings as an attacker writes them, under the block, random and balloon devices.

#![no_main]

use std::io::Write;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vmpod_fuzz::{Feed, Guest, Scratch, descriptors};
use vmpod_vmm::virtio::VirtioDevice;
use vmpod_vmm::virtio::balloon::Balloon;
use vmpod_vmm::virtio::blk::Blk;
use vmpod_vmm::virtio::rng::Rng;

/// Bytes of the disk.
const DISK: u64 = 64 << 10;

fn disk() -> std::fs::File {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    let path = SCRATCH.get_or_init(Scratch::enter).path().join("disk");
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("make a disk");
    file.write_all(b"start").expect("write to it");
    file.set_len(DISK).expect("size it");
    file
}

fuzz_target!(|data: &[u8]| {
    let mut feed = Feed::new(data);
    let choices = feed.u8();
    let mut disk_of_blk = None;
    let mut device: Box<dyn VirtioDevice> = match choices % 4 {
        0 => Box::new(Rng::new("rng0")),
        1 => Box::new(Balloon::new("balloon0".into())),
        _ => {
            let file = disk();
            disk_of_blk = Some(file.try_clone().expect("a second descriptor"));
            Box::new(Blk::new("blk0".into(), file, "s", choices & 4 != 0).expect("make a device"))
        }
    };
    let mut guest = Guest::start(device.as_mut(), feed.u64());
    let count = device.queue_sizes().len();
    while !feed.is_empty() {
        let kind = feed.u8();
        let queue = usize::from(kind) % count;
        match kind >> 5 {
            0 => guest.poke(feed.u32(), feed.u64()),
            1 => {
                let mut config = [0; 64];
                device.read_config(feed.u64(), &mut config);
                device.write_config(feed.u64(), feed.bytes(8));
            }
            2 | 3 => guest.put_raw(queue, &descriptors(&mut feed)),
            _ => {
                // A block request: kind, sector, data, status (VIRTIO 1.3 section 5.2.6).
                let mut header = [0; 16];
                header[0] = feed.u8() % 16;
                let sector = match feed.u8() {
                    255 => feed.u64(),
                    small => u64::from(small),
                };
                header[8..].copy_from_slice(&sector.to_le_bytes());
                let length = usize::from(feed.u16()) % 5000;
                if kind & 1 == 0 {
                    guest.put(queue, &[&header, feed.bytes(length % 600)], &[1]);
                } else {
                    guest.put(queue, &[&header], &[length, 1]);
                }
            }
        }
        guest.wait(queue);
    }
    let queues = device.stop();
    // The balloon leaves queues alone that belong to features it has not agreed on.
    let least = if choices % 4 == 1 { 2 } else { count };
    assert!(queues.len() >= least, "a worker did not come back");
    if let Some(disk) = disk_of_blk {
        let bytes = disk.metadata().expect("look at the disk").len();
        assert_eq!(bytes, DISK, "the disk has changed its size");
    }
});
