//! Who the guest may be on the wire: frames that name another sender, at any layer that others learn addresses from, do
//! not leave. Pure; the worker asks before each frame, about a copy that the guest cannot change any more.
//!
//! Only what the sender says of itself is looked at. Whom a frame is for, and what comes in, is the host's to filter.

use std::net::Ipv4Addr;

use super::spec::{
    CSUM_OFFSET_AT, CSUM_START_AT, ETHERTYPE_ARP, ETHERTYPE_IPV4, FLAG_NEEDS_CSUM, HEADER_BYTES,
    SHORTEST_FRAME,
};

/// Most bytes of a packet, from its virtio header on, that a decision depends on: the longest IPv4 header.
pub const DECISIVE_BYTES: usize = HEADER_BYTES + SHORTEST_FRAME + IPV4_LONGEST;

/// Longest and shortest IPv4 header (RFC 791 section 3.1).
const IPV4_LONGEST: usize = 60;
const IPV4_SHORTEST: usize = 20;
/// Where the source address is in it.
const IPV4_SOURCE_AT: usize = 12;

/// Ethernet and IPv4, lengths 6 and 4 (RFC 826): the only address resolution that there is on this wire.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Where the sender's hardware and protocol addresses are behind it and the operation.
const ARP_HARDWARE_AT: usize = 8;
const ARP_PROTOCOL_AT: usize = 14;

/// Addresses of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
}

/// `N` bytes from `at` on.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes
        .get(at..)?
        .get(..N)
        .and_then(|found| found.try_into().ok())
}

impl Sender {
    /// Whether a packet may leave, by its first [`DECISIVE_BYTES`] or all of it if it is shorter.
    ///
    /// IPv4 and ARP may, from the own addresses; ARP from address zero too, which asks whether an address is free
    /// (RFC 5227). Nothing else may: a guest without IPv6 addresses has no say in router and neighbour discovery, and a
    /// VLAN tag, a bridge's own protocols or a length field would hide what follows from these rules.
    #[must_use]
    pub fn may_send(&self, packet: &[u8]) -> bool {
        self.check(packet).unwrap_or(false)
    }

    /// `None` for a packet that ends too early.
    fn check(&self, packet: &[u8]) -> Option<bool> {
        let (header, frame) = packet.split_at_checked(HEADER_BYTES)?;
        if field(frame, 6)? != self.mac {
            return Some(false);
        }
        let payload = frame.get(SHORTEST_FRAME..)?;
        // Behind this the host may fill in a checksum where the guest says.
        let fixed = match u16::from_be_bytes(field(frame, 12)?) {
            ETHERTYPE_IPV4 => {
                let [first] = field(payload, 0)?;
                let length = usize::from(first & 0x0f) * 4;
                let source = Ipv4Addr::from(field::<4>(payload, IPV4_SOURCE_AT)?);
                if first >> 4 != 4 || length < IPV4_SHORTEST || !self.ipv4.contains(&source) {
                    return Some(false);
                }
                SHORTEST_FRAME + length
            }
            ETHERTYPE_ARP => {
                let source = Ipv4Addr::from(field::<4>(payload, ARP_PROTOCOL_AT)?);
                if field(payload, 0)? != ARP_KIND
                    || field(payload, ARP_HARDWARE_AT)? != self.mac
                    || !(self.ipv4.contains(&source) || source.is_unspecified())
                {
                    return Some(false);
                }
                // There is no checksum in it.
                usize::MAX
            }
            _ => return Some(false),
        };
        let [flags] = field(header, 0)?;
        if flags & FLAG_NEEDS_CSUM == 0 {
            return Some(true);
        }
        let start = usize::from(u16::from_le_bytes(field(header, CSUM_START_AT)?));
        let offset = usize::from(u16::from_le_bytes(field(header, CSUM_OFFSET_AT)?));
        // The host adds up from `start` on and writes at both together, which must not be an address that was just looked at.
        Some(start >= fixed && start.checked_add(offset)? >= fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0x58, 10, 88, 0, 2];
    const OTHER_MAC: [u8; 6] = [2, 0x58, 10, 88, 0, 3];
    const OWN: [u8; 4] = [10, 88, 0, 2];
    const OTHER: [u8; 4] = [10, 88, 0, 3];

    fn sender() -> Sender {
        Sender {
            mac: MAC,
            ipv4: vec![OWN.into()],
        }
    }

    fn packet(mac: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend([0xff; 6]);
        packet.extend(mac);
        packet.extend(ethertype.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn ipv4(source: [u8; 4]) -> Vec<u8> {
        let mut header = vec![0; 28];
        header[0] = 0x45;
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&[10, 88, 0, 1]);
        header
    }

    fn arp(hardware: [u8; 6], protocol: [u8; 4]) -> Vec<u8> {
        let mut message = ARP_KIND.to_vec();
        message.extend([0, 2]);
        message.extend(hardware);
        message.extend(protocol);
        message.extend([0; 10]);
        message
    }

    #[test]
    fn own_addresses_and_the_question_for_a_free_one_may_leave() {
        for (ethertype, payload) in [
            (ETHERTYPE_IPV4, ipv4(OWN)),
            (ETHERTYPE_ARP, arp(MAC, OWN)),
            (ETHERTYPE_ARP, arp(MAC, [0; 4])),
        ] {
            assert!(sender().may_send(&packet(MAC, ethertype, &payload)));
        }
    }

    #[test]
    fn addresses_of_others_may_not_leave_at_any_layer() {
        for (mac, ethertype, payload) in [
            (OTHER_MAC, ETHERTYPE_IPV4, ipv4(OWN)),
            (MAC, ETHERTYPE_IPV4, ipv4(OTHER)),
            (MAC, ETHERTYPE_IPV4, ipv4([0; 4])),
            (OTHER_MAC, ETHERTYPE_ARP, arp(MAC, OWN)),
            (MAC, ETHERTYPE_ARP, arp(OTHER_MAC, OWN)),
            (MAC, ETHERTYPE_ARP, arp(MAC, OTHER)),
        ] {
            let packet = packet(mac, ethertype, &payload);
            assert!(!sender().may_send(&packet), "{packet:x?}");
        }
    }

    #[test]
    fn protocols_that_hide_or_replace_these_may_not_leave() {
        // IPv6, both VLAN tags, reverse address resolution, LLDP, a length as in 802.3.
        for ethertype in [0x86dd, 0x8100, 0x88a8, 0x8035, 0x88cc, 38] {
            assert!(
                !sender().may_send(&packet(MAC, ethertype, &ipv4(OWN))),
                "{ethertype:x}"
            );
        }
        let mut other_kind = arp(MAC, OWN);
        other_kind[5] = 16;
        assert!(!sender().may_send(&packet(MAC, ETHERTYPE_ARP, &other_kind)));
        for first in [0x65, 0x44, 0x40] {
            let mut header = ipv4(OWN);
            header[0] = first;
            assert!(!sender().may_send(&packet(MAC, ETHERTYPE_IPV4, &header)));
        }
    }

    #[test]
    fn packet_cut_before_its_addresses_may_not_leave() {
        for (ethertype, payload, needed) in [
            (ETHERTYPE_IPV4, ipv4(OWN), IPV4_SOURCE_AT + 4),
            (ETHERTYPE_ARP, arp(MAC, OWN), ARP_PROTOCOL_AT + 4),
        ] {
            let whole = packet(MAC, ethertype, &payload);
            for length in 0..whole.len() {
                assert_eq!(
                    sender().may_send(&whole[..length]),
                    length >= HEADER_BYTES + SHORTEST_FRAME + needed,
                    "{length}"
                );
            }
        }
    }

    #[test]
    fn checksum_is_never_written_over_what_was_looked_at() {
        let with = |ethertype, payload: &[u8], start: u16, offset: u16| {
            let mut packet = packet(MAC, ethertype, payload);
            packet[0] = FLAG_NEEDS_CSUM;
            packet[CSUM_START_AT..CSUM_START_AT + 2].copy_from_slice(&start.to_le_bytes());
            packet[CSUM_OFFSET_AT..CSUM_OFFSET_AT + 2].copy_from_slice(&offset.to_le_bytes());
            sender().may_send(&packet)
        };
        // UDP behind a header without options; then into the source address, by start and by a sum that wraps in 16 bits.
        assert!(with(ETHERTYPE_IPV4, &ipv4(OWN), 34, 6));
        assert!(!with(ETHERTYPE_IPV4, &ipv4(OWN), 14, 12));
        assert!(!with(ETHERTYPE_IPV4, &ipv4(OWN), 0, 26));
        assert!(!with(ETHERTYPE_IPV4, &ipv4(OWN), 33, 6));
        assert!(with(ETHERTYPE_IPV4, &ipv4(OWN), 34, u16::MAX));
        assert!(!with(ETHERTYPE_ARP, &arp(MAC, OWN), 34, 6));
    }
}
