//! Wire constants and layouts of the memory balloon device (VIRTIO 1.3 section 5.5).

/// Device id (VIRTIO 1.3 section 5).
pub const DEVICE_TYPE: u32 = 5;

/// Inflate queue: pages that the guest gives away (section 5.5.2).
pub const INFLATE_QUEUE: u16 = 0;
/// Deflate queue: pages that the guest takes back.
pub const DEFLATE_QUEUE: u16 = 1;
/// Number of queues with all features. The specification numbers the reporting queue 4; Linux numbers the queues of
/// agreed features without gaps, which makes it 2 here. Since the two between are not offered, either is understood.
pub const QUEUES: usize = 5;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest takes pages back when it runs out of memory (section 5.5.3).
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the guest tells of free pages.
pub const F_REPORTING: u64 = 1 << 5;
/// VIRTIO_F_INDIRECT_DESC (section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Bytes of a balloon page, whatever the guest's page size is (section 5.5.6).
pub const PAGE_BYTES: u64 = 4096;
/// Balloon pages in a MiB.
pub const PAGES_PER_MIB: u32 = 256;

/// Where `num_pages` is in the configuration space: 32 bits, little-endian (section 5.5.4).
pub const CONFIG_TARGET: u64 = 0;
/// Where `actual` is; the driver writes it.
pub const CONFIG_ACTUAL: u64 = 4;
