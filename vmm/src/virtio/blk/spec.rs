//! Wire constants and layouts of the block device (VIRTIO 1.3 section 5.2).

/// Device id (VIRTIO 1.3 section 5).
pub const DEVICE_TYPE: u32 = 2;
/// The one request queue (section 5.2.2).
pub const REQUEST_QUEUE: u16 = 0;
/// Its size.
pub const QUEUE_SIZE: u16 = 256;

/// VIRTIO_BLK_F_SEG_MAX (section 5.2.3), as are the following.
pub const F_SEG_MAX: u64 = 1 << 2;
/// The device is read-only.
pub const F_RO: u64 = 1 << 5;
/// The device tells its block size.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// The device has a cache that is flushed on request.
pub const F_FLUSH: u64 = 1 << 9;
/// The device can forget ranges.
pub const F_DISCARD: u64 = 1 << 13;
/// The device can zero ranges.
pub const F_WRITE_ZEROES: u64 = 1 << 14;
/// VIRTIO_F_INDIRECT_DESC (section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Bytes of a sector, whatever the block size (section 5.2.6).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a request's header: type, reserved, sector (section 5.2.6, `struct virtio_blk_req`).
pub const HEADER_BYTES: usize = 16;
/// Bytes of a range to discard or zero (section 5.2.6, `struct virtio_blk_discard_write_zeroes`).
pub const RANGE_BYTES: usize = 16;
/// Bytes of the serial number (section 5.2.6.1).
pub const ID_BYTES: usize = 20;

/// VIRTIO_BLK_T_IN: read.
pub const T_IN: u32 = 0;
/// VIRTIO_BLK_T_OUT: write.
pub const T_OUT: u32 = 1;
/// VIRTIO_BLK_T_FLUSH.
pub const T_FLUSH: u32 = 4;
/// VIRTIO_BLK_T_GET_ID.
pub const T_GET_ID: u32 = 8;
/// VIRTIO_BLK_T_DISCARD.
pub const T_DISCARD: u32 = 11;
/// VIRTIO_BLK_T_WRITE_ZEROES.
pub const T_WRITE_ZEROES: u32 = 13;

/// VIRTIO_BLK_S_OK.
pub const S_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub const S_IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub const S_UNSUPP: u8 = 2;

/// Range flag: zeroes may be made by giving the space back.
pub const RANGE_UNMAP: u32 = 1;

/// Most data segments of a request: a full ring without header and status.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most sectors of a range to discard (4 GiB).
pub const MAX_DISCARD_SECTORS: u32 = 8 << 20;
/// Most sectors of a range to zero (4 MiB): a file system that cannot do it has them written.
pub const MAX_ZERO_SECTORS: u32 = 8 << 10;
/// Most ranges of a request.
pub const MAX_RANGES: u32 = 16;
/// Most data bytes of a read or write, so that one request ends in bounded time. Linux sends no more than 4 MiB.
pub const MAX_DATA: usize = 64 << 20;

/// Bytes of `struct virtio_blk_config` up to and with the limits for zeroes (section 5.2.4).
pub const CONFIG_BYTES: usize = 60;

/// Fills the configuration space of a device with so many sectors.
#[must_use]
pub fn config(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut bytes = [0; CONFIG_BYTES];
    let mut put = |at: usize, value: &[u8]| {
        for (to, from) in bytes.iter_mut().skip(at).zip(value) {
            *to = *from;
        }
    };
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    put(34, &1u16.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(4096 / SECTOR_BYTES as u32).to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    bytes
}
