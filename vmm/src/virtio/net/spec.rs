//! Wire constants and layouts of the network device (VIRTIO 1.3 section 5.1).

/// Device id (VIRTIO 1.3 section 5).
pub const DEVICE_TYPE: u32 = 1;

/// Receive queue: device to driver (section 5.1.2).
pub const RX_QUEUE: u16 = 0;
/// Transmit queue: driver to device.
pub const TX_QUEUE: u16 = 1;

/// The driver may leave checksums to the device (section 5.1.3), as are the following.
pub const F_CSUM: u64 = 1 << 0;
/// The driver takes packets without a full checksum.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The device tells the MTU.
pub const F_MTU: u64 = 1 << 3;
/// The device tells the MAC address.
pub const F_MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 in large pieces.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 in large pieces.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes large pieces with explicit congestion notification.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// The device takes TCP over IPv4 in large pieces.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 in large pieces.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// The device takes large pieces with explicit congestion notification.
pub const F_HOST_ECN: u64 = 1 << 13;
/// Several receive buffers may hold one packet.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// The device tells the link's state.
pub const F_STATUS: u64 = 1 << 16;
/// The driver takes UDP over IPv4 in large pieces.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP over IPv6 in large pieces.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP in large pieces.
pub const F_HOST_USO: u64 = 1 << 56;
/// VIRTIO_F_INDIRECT_DESC (section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Bytes of `struct virtio_net_hdr` with `num_buffers`, which devices of version 1 always have (section 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is in it: 16 bits, little-endian.
pub const NUM_BUFFERS_OFFSET: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM in its first byte: the receiver of the packet is to fill in a checksum, over what is behind
/// `csum_start`, `csum_offset` bytes behind that; both 16 bits, little-endian, from the frame's first byte on.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// Where `csum_start` is in the header.
pub const CSUM_START_AT: usize = 6;
/// Where `csum_offset` is in the header.
pub const CSUM_OFFSET_AT: usize = 8;

/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// Bytes of a VLAN tag.
pub const VLAN_BYTES: usize = 4;
/// Bytes of an Ethernet header with a VLAN tag.
pub const ETHERNET_BYTES: usize = 14 + VLAN_BYTES;
/// Bytes of an Ethernet header: no frame is shorter.
pub const SHORTEST_FRAME: usize = 14;
/// Most bytes of a packet with its header: a large piece has up to 65535 behind the Ethernet header.
pub const LONGEST_PACKET: usize = HEADER_BYTES + ETHERNET_BYTES + 65535;

/// VIRTIO_NET_S_LINK_UP (section 5.1.4).
pub const LINK_UP: u16 = 1;
/// Bytes of `struct virtio_net_config` up to and with `mtu`.
pub const CONFIG_BYTES: usize = 12;
