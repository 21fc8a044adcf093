//! Constants of the entropy device (VIRTIO 1.3 section 5.4). It has no configuration space and no feature bits.

/// Device id (VIRTIO 1.3 section 5.4.1).
pub const DEVICE_TYPE: u32 = 4;
/// Index of the only queue, requestq (VIRTIO 1.3 section 5.4.2).
pub const REQUEST_QUEUE: u16 = 0;
/// Largest request queue offered, in entries. Linux keeps one request under way.
pub const QUEUE_SIZE: u16 = 16;
/// Most bytes given for one request: the specification lets the device fill less than the buffer (section 5.4.6.2), and
/// this bounds the time that one notification costs the host.
pub const REQUEST_BYTES: u32 = 64 * 1024;
