//! Constants and layouts of the file system device (VIRTIO 1.3 section 5.11). The protocol inside the buffers is FUSE:
//! see [`super::fuse`].

/// Device id (VIRTIO 1.3 section 5.11.1).
pub const DEVICE_TYPE: u32 = 26;
/// Index of the high priority queue (VIRTIO 1.3 section 5.11.2). Requests that others wait for; Linux puts FORGET there.
pub const HIPRIO_QUEUE: u16 = 0;
/// Index of the first request queue. No notification queue is offered, so that it comes directly after `hiprio`.
pub const FIRST_REQUEST_QUEUE: u16 = 1;
/// Largest high priority queue offered, in entries.
pub const HIPRIO_QUEUE_SIZE: u16 = 128;
/// Largest request queue offered, in entries. Linux limits a request to this many pages less four, so that it must stay
/// above the 256 pages that FUSE_INIT announces.
pub const REQUEST_QUEUE_SIZE: u16 = 512;
/// Bytes of the mount tag, padded with NUL (VIRTIO 1.3 section 5.11.4).
pub const TAG_BYTES: usize = 36;
/// Bytes of the configuration space: tag, and `num_request_queues` as a little-endian 32-bit number.
pub const CONFIG_BYTES: usize = TAG_BYTES + 4;

/// The configuration space. `tag` is cut to [`TAG_BYTES`].
#[must_use]
pub fn config(tag: &[u8], request_queues: u16) -> [u8; CONFIG_BYTES] {
    let mut bytes = [0; CONFIG_BYTES];
    for (to, from) in bytes.iter_mut().take(TAG_BYTES).zip(tag) {
        *to = *from;
    }
    let count = u32::from(request_queues).to_le_bytes();
    for (to, from) in bytes.iter_mut().skip(TAG_BYTES).zip(count) {
        *to = from;
    }
    bytes
}
