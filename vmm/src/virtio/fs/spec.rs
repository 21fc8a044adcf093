//! Constants and layouts of the file system device (VIRTIO 1.3 section 5.11). The protocol inside the buffers is FUSE:
//! see [`super::fuse`].

/// Device id (VIRTIO 1.3 section 5.11.1).
pub const DEVICE_TYPE: u32 = 26;
/// Index of the high priority queue (VIRTIO 1.3 section 5.11.2). Requests that others wait for; Linux puts FORGET there.
pub const HIPRIO_QUEUE: u16 = 0;
/// Feature bit VIRTIO_FS_F_NOTIFICATION: there is a notification queue (VIRTIO 1.3 section 5.11.3).
pub const FEATURE_NOTIFICATION: u64 = 1;
/// Index of the notification queue, if the feature was agreed on. The driver puts empty buffers there.
pub const NOTIFICATION_QUEUE: u16 = 1;
/// Largest high priority queue offered, in entries.
pub const HIPRIO_QUEUE_SIZE: u16 = 128;
/// Largest notification queue offered, in entries.
pub const NOTIFICATION_QUEUE_SIZE: u16 = 32;
/// Bytes of a notification buffer (VIRTIO 1.3 section 5.11.4, `notify_buf_size`): header, event and the longest name.
pub const NOTIFICATION_BYTES: u32 = 320;
/// Largest request queue offered, in entries. Linux limits a request to this many pages less four, so that it must stay
/// above the 256 pages that FUSE_INIT announces.
pub const REQUEST_QUEUE_SIZE: u16 = 512;
/// Bytes of the mount tag, padded with NUL (VIRTIO 1.3 section 5.11.4).
pub const TAG_BYTES: usize = 36;
/// Bytes of the configuration space: tag, and `num_request_queues` and `notify_buf_size` as little-endian 32-bit numbers.
pub const CONFIG_BYTES: usize = TAG_BYTES + 8;

/// Index of the first request queue with these agreed features: it comes after the queues that there are before it.
#[must_use]
pub fn first_request_queue(features: u64) -> u16 {
    if features & FEATURE_NOTIFICATION == 0 {
        NOTIFICATION_QUEUE
    } else {
        NOTIFICATION_QUEUE + 1
    }
}

/// The configuration space. `tag` is cut to [`TAG_BYTES`].
#[must_use]
pub fn config(tag: &[u8], request_queues: u16) -> [u8; CONFIG_BYTES] {
    let mut bytes = [0; CONFIG_BYTES];
    for (to, from) in bytes.iter_mut().take(TAG_BYTES).zip(tag) {
        *to = *from;
    }
    let count = u32::from(request_queues).to_le_bytes();
    let numbers = count.into_iter().chain(NOTIFICATION_BYTES.to_le_bytes());
    for (to, from) in bytes.iter_mut().skip(TAG_BYTES).zip(numbers) {
        *to = from;
    }
    bytes
}
