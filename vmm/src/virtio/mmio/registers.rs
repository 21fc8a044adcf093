//! Register offsets and status bits of virtio over MMIO (VIRTIO 1.3 section 4.2.2 and 2.1).

/// "virt"
pub const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout; 1 is the legacy one.
pub const VERSION: u32 = 2;
/// "vmpd"
pub const VENDOR: u32 = 0x6470_6d76;
/// "vmpq": a device whose configuration never changes. Each of its interrupts is an edge of its own, so that a driver which
/// knows that has no status to read and nothing to acknowledge, which are two exits (`guest-image/patches/0007`).
pub const VENDOR_PLAIN: u32 = 0x7170_6d76;

/// Offsets.
pub mod offset {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// First and last register of the selected shared memory region.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Not of the standard, and told by the vendor: the I/O port that takes notifications as [`QUEUE_NOTIFY`] does, 0 when
    /// there is none. An exit for a port tells all that the host has to know; one for this page has it decode an
    /// instruction (`guest-image/patches/0014`).
    pub const NOTIFY_PORT: u64 = 0x0d0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// The device's configuration space begins here.
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the Status register.
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Bits of InterruptStatus.
pub mod interrupt {
    pub const USED_BUFFER: u32 = 1;
    pub const CONFIG_CHANGE: u32 = 2;
}
