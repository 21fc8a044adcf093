//! Wire constants and layouts of the socket device (VIRTIO 1.3 section 5.10).

/// Device id (VIRTIO 1.3 section 5).
pub const DEVICE_TYPE: u32 = 19;

/// Receive queue: device to driver (section 5.10.2).
pub const RX_QUEUE: u16 = 0;
/// Transmit queue: driver to device.
pub const TX_QUEUE: u16 = 1;
/// Event queue: device to driver.
pub const EVENT_QUEUE: u16 = 2;

/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
pub const F_STREAM: u64 = 1 << 0;
/// VIRTIO_F_INDIRECT_DESC (section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Context id of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Bytes of a packet header (section 5.10.6, `struct virtio_vsock_hdr`).
pub const HEADER_BYTES: usize = 44;

/// Most payload bytes in a packet that the device takes or sends. Linux sends no larger ones
/// (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
pub const MAX_PAYLOAD: usize = 64 << 10;

/// VIRTIO_VSOCK_TYPE_STREAM (section 5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_OP_REQUEST (section 5.10.6), as are the following.
pub const OP_REQUEST: u16 = 1;
/// Accepts a connection.
pub const OP_RESPONSE: u16 = 2;
/// Refuses or ends a connection at once.
pub const OP_RST: u16 = 3;
/// Ends one or both directions.
pub const OP_SHUTDOWN: u16 = 4;
/// Carries payload.
pub const OP_RW: u16 = 5;
/// Tells the credit.
pub const OP_CREDIT_UPDATE: u16 = 6;
/// Asks for a credit update.
pub const OP_CREDIT_REQUEST: u16 = 7;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will not receive any more (section 5.10.6.4).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, as `struct virtio_vsock_event` (section 5.10.6.7).
pub const EVENT_TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// A packet header; little-endian on the wire, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Payload bytes.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Receive buffer of the sender, in bytes.
    pub buf_alloc: u32,
    /// Bytes the sender has passed on from its receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the wire form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut at = 0;
        let mut next = |n: usize| {
            let mut value = [0; 8];
            for (to, from) in value.iter_mut().zip(bytes.iter().skip(at).take(n)) {
                *to = *from;
            }
            at += n;
            u64::from_le_bytes(value)
        };
        // Fields of two and four bytes come zero-extended, so that these cuts lose nothing.
        Self {
            src_cid: next(8),
            dst_cid: next(8),
            src_port: next(4) as u32,
            dst_port: next(4) as u32,
            len: next(4) as u32,
            socket_type: next(2) as u16,
            op: next(2) as u16,
            flags: next(4) as u32,
            buf_alloc: next(4) as u32,
            fwd_cnt: next(4) as u32,
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.socket_type.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}
