//! Tables, chains, maps, elements and rules as the kernel takes them: messages of nfnetlink's subsystem nf_tables. Numbers
//! and layouts are those of include/uapi/linux/netfilter/{nfnetlink,nf_tables,nf_conntrack_common}.h. What the rules are
//! is not known here.

use std::net::Ipv4Addr;

use crate::network::netlink::{Attributes, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};

const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETGEN: u16 = 16;

/// `struct nfgenmsg`: family, version 0, resource in network order.
fn head(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    // Families are small numbers (sys/socket.h).
    [family as u8, 0, high, low]
}

fn message(kind: u16, flags: u16, attributes: &Attributes, what: impl Into<String>) -> Message {
    Message::new(
        SUBSYSTEM << 8 | kind,
        flags | NLM_F_ACK,
        &head(libc::AF_INET, 0),
        attributes,
        what,
    )
}

/// `steps` as one transaction: the kernel does all of them or none.
pub(super) fn transaction(steps: Vec<Message>, what: &str) -> Vec<Message> {
    let edge = |kind| {
        let head = head(libc::AF_UNSPEC, SUBSYSTEM);
        Message::new(kind, 0, &head, &Attributes::new(), what)
    };
    let mut all = vec![edge(NFNL_MSG_BATCH_BEGIN)];
    all.extend(steps);
    all.push(edge(NFNL_MSG_BATCH_END));
    all
}

/// Asks for the number of the rules' generation, which every kernel with nf_tables has.
pub(super) fn ask_generation() -> Message {
    Message::new(
        SUBSYSTEM << 8 | NFT_MSG_GETGEN,
        NLM_F_ACK,
        &head(libc::AF_UNSPEC, 0),
        &Attributes::new(),
        "tell of its packet filter nf_tables",
    )
}

/// Makes the table, unless it is there.
pub(super) fn table(name: &str) -> Message {
    // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS
    let attributes = Attributes::new().text(1, name).big_endian(2, 0);
    let what = format!("make table ip {name}");
    message(NFT_MSG_NEWTABLE, NLM_F_CREATE, &attributes, what)
}

/// Takes the table away with everything in it.
pub(super) fn delete_table(name: &str) -> Message {
    let what = format!("remove table ip {name}");
    message(NFT_MSG_DELTABLE, 0, &Attributes::new().text(1, name), what)
}

/// Where packets come into a chain (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain at a hook, which accepts what its rules do not decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct BaseChain {
    pub(super) name: &'static str,
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) hook: Hook,
    /// Its place among the chains of the hook.
    pub(super) priority: i32,
}

impl BaseChain {
    pub(super) fn message(self, table: &str) -> Message {
        // NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
        let hook = Attributes::new()
            .big_endian(1, self.hook as u32)
            .big_endian(2, self.priority.cast_unsigned());
        // NFTA_CHAIN_TABLE, _NAME, _TYPE, _POLICY, _HOOK
        let attributes = Attributes::new()
            .text(1, table)
            .text(3, self.name)
            .text(7, self.kind)
            .big_endian(5, ACCEPT)
            .nested(4, &hook);
        let what = format!("make chain {} of type {}", self.name, self.kind);
        message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attributes, what)
    }
}

/// What a part of a map's key or value is: its number in nft's listings, which shows it by that.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Ipv4Address = 7,
    Protocol = 12,
    Port = 13,
}

impl Part {
    fn types(parts: &[Self]) -> u32 {
        // Six bits each, as nft has them for concatenations.
        parts.iter().fold(0, |sum, part| sum << 6 | *part as u32)
    }
}

/// Bytes of each part in a key or value: a register of 32 bits.
const PART_BYTES: u32 = 4;

/// A part of a key or value, in its register: in network order from the front.
pub(super) fn address_part(address: Ipv4Addr) -> [u8; 4] {
    address.octets()
}

/// The same of a port.
pub(super) fn port_part(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The same of a protocol's number.
pub(super) fn protocol_part(number: u8) -> [u8; 4] {
    [number, 0, 0, 0]
}

/// A map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pub(super) name: &'static str,
    /// Its number within the transaction.
    pub(super) id: u32,
    pub(super) key: &'static [Part],
    pub(super) value: &'static [Part],
}

/// Elements in a message: the length of an attribute has 16 bits.
const ELEMENTS_AT_ONCE: usize = 1000;

impl Map {
    pub(super) fn message(self, table: &str) -> Message {
        const NFT_SET_MAP: u32 = 8;
        let bytes = |parts: &[Part]| PART_BYTES * parts.len() as u32;
        // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _ID
        let attributes = Attributes::new()
            .text(1, table)
            .text(2, self.name)
            .big_endian(3, NFT_SET_MAP)
            .big_endian(4, Part::types(self.key))
            .big_endian(5, bytes(self.key))
            .big_endian(6, Part::types(self.value))
            .big_endian(7, bytes(self.value))
            .big_endian(10, self.id);
        let what = format!("make map {}", self.name);
        message(NFT_MSG_NEWSET, NLM_F_CREATE, &attributes, what)
    }

    /// Puts keys with their values in.
    pub(super) fn elements(self, table: &str, elements: &[(Vec<u8>, Vec<u8>)]) -> Vec<Message> {
        elements
            .chunks(ELEMENTS_AT_ONCE)
            .map(|chunk| {
                let list = chunk.iter().fold(Attributes::new(), |list, (key, value)| {
                    // NFTA_SET_ELEM_KEY, _DATA
                    let element = Attributes::new()
                        .nested(1, &value_data(key))
                        .nested(2, &value_data(value));
                    list.nested(LIST_ELEMENT, &element)
                });
                // NFTA_SET_ELEM_LIST_TABLE, _SET, _SET_ID, _ELEMENTS
                let attributes = Attributes::new()
                    .text(1, table)
                    .text(2, self.name)
                    .big_endian(4, self.id)
                    .nested(3, &list);
                let what = format!("put host ports into map {}", self.name);
                message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, &attributes, what)
            })
            .collect()
    }
}

/// NFTA_LIST_ELEM
const LIST_ELEMENT: u16 = 1;

/// NFTA_DATA_VALUE
fn value_data(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

/// A register that an expression reads or writes. The first whole one has 16 bytes, and its quarters have numbers of their own:
/// it is the first quarter as well.
#[derive(Clone, Copy, Debug)]
pub(super) enum Register {
    First = 1,
    SecondQuarter = 9,
    ThirdQuarter = 10,
}

/// `enum nft_verdicts`, of nf_tables and netfilter alike.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Facts about a packet that are not in it (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    InputName = 6,
    OutputName = 7,
    Protocol = 16,
}

/// What is read from a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Source,
    Destination,
    /// Of TCP, UDP and SCTP alike.
    DestinationPort,
}

impl Field {
    /// Header (1: network, 2: transport), offset and length in bytes.
    fn place(self) -> (u32, u32, u32) {
        match self {
            Self::Source => (1, 12, 4),
            Self::Destination => (1, 16, 4),
            Self::DestinationPort => (2, 2, 2),
        }
    }
}

/// A step of a rule. One that does not hold ends the rule for the packet.
#[derive(Clone, Debug)]
pub(super) enum Step {
    LoadMeta(Meta, Register),
    LoadField(Field, Register),
    /// The interface whose name is in the first register is this one.
    IsInterface(&'static str),
    IsNotInterface(&'static str),
    /// Source or destination lies in a subnet: address and length of the prefix.
    IsWithin(Field, Ipv4Addr, u8),
    /// The destination is an address of this host.
    ToThisHost,
    /// The connection's destination was translated.
    WasRedirected,
    /// Looks the first register up in a map, whose value takes its place.
    LookUp(Map),
    /// Translates the destination to address and port in the first two quarters.
    Redirect,
    Masquerade,
    Accept,
    Drop,
}

impl Step {
    /// The kernel's expressions for it: names with attributes.
    fn expressions(&self) -> Vec<(&'static str, Attributes)> {
        let none = Attributes::new;
        match self {
            // NFTA_META_KEY, _DREG
            Self::LoadMeta(key, register) => vec![(
                "meta",
                none()
                    .big_endian(2, *key as u32)
                    .big_endian(1, *register as u32),
            )],
            Self::LoadField(field, register) => {
                let (header, offset, length) = field.place();
                vec![payload(*register, header, offset, length)]
            }
            Self::IsInterface(name) => vec![compare(true, &interface_name(name))],
            Self::IsNotInterface(name) => vec![compare(false, &interface_name(name))],
            Self::IsWithin(field, address, prefix) => within(*field, *address, *prefix),
            Self::ToThisHost => {
                const NFTA_FIB_F_DADDR: u32 = 2;
                const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
                const RTN_LOCAL: u32 = 2;
                // NFTA_FIB_FLAGS, _RESULT, _DREG
                let fib = none()
                    .big_endian(3, NFTA_FIB_F_DADDR)
                    .big_endian(2, NFT_FIB_RESULT_ADDRTYPE)
                    .big_endian(1, Register::First as u32);
                vec![("fib", fib), compare(true, &RTN_LOCAL.to_ne_bytes())]
            }
            Self::WasRedirected => {
                const NFT_CT_STATUS: u32 = 2;
                const IPS_DST_NAT: u32 = 1 << 5;
                // NFTA_CT_KEY, _DREG
                let ct = none()
                    .big_endian(2, NFT_CT_STATUS)
                    .big_endian(1, Register::First as u32);
                vec![
                    ("ct", ct),
                    masked(&IPS_DST_NAT.to_ne_bytes()),
                    compare(false, &[0; 4]),
                ]
            }
            // NFTA_LOOKUP_SREG, _DREG, _SET, _SET_ID
            Self::LookUp(map) => vec![(
                "lookup",
                none()
                    .big_endian(2, Register::First as u32)
                    .big_endian(3, Register::First as u32)
                    .text(1, map.name)
                    .big_endian(4, map.id),
            )],
            Self::Redirect => {
                const NFT_NAT_DNAT: u32 = 1;
                // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN
                let nat = none()
                    .big_endian(1, NFT_NAT_DNAT)
                    .big_endian(2, libc::AF_INET.cast_unsigned())
                    .big_endian(3, Register::First as u32)
                    .big_endian(5, Register::SecondQuarter as u32);
                vec![("nat", nat)]
            }
            Self::Masquerade => vec![("masq", none())],
            Self::Accept => vec![verdict(ACCEPT)],
            Self::Drop => vec![verdict(DROP)],
        }
    }
}

fn payload(
    register: Register,
    header: u32,
    offset: u32,
    length: u32,
) -> (&'static str, Attributes) {
    // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
    let attributes = Attributes::new()
        .big_endian(1, register as u32)
        .big_endian(2, header)
        .big_endian(3, offset)
        .big_endian(4, length);
    ("payload", attributes)
}

/// The first register holds `bytes`, or not.
fn compare(equal: bool, bytes: &[u8]) -> (&'static str, Attributes) {
    // NFTA_CMP_SREG, _OP (0: equal, 1: not), _DATA
    let attributes = Attributes::new()
        .big_endian(1, Register::First as u32)
        .big_endian(2, u32::from(!equal))
        .nested(3, &value_data(bytes));
    ("cmp", attributes)
}

/// The bits of the first register that are in `mask`.
fn masked(mask: &[u8; 4]) -> (&'static str, Attributes) {
    // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
    let attributes = Attributes::new()
        .big_endian(1, Register::First as u32)
        .big_endian(2, Register::First as u32)
        .big_endian(3, 4)
        .nested(4, &value_data(mask))
        .nested(5, &value_data(&[0; 4]));
    ("bitwise", attributes)
}

/// A prefix of whole bytes is read alone, as nft has it; of another the rest is masked away.
fn within(field: Field, address: Ipv4Addr, prefix: u8) -> Vec<(&'static str, Attributes)> {
    let (header, offset, length) = field.place();
    let octets = address.octets();
    let whole = usize::from(prefix / 8);
    match octets.get(..whole) {
        Some(bytes) if prefix.is_multiple_of(8) && whole > 0 => vec![
            payload(Register::First, header, offset, u32::from(prefix / 8)),
            compare(true, bytes),
        ],
        _ => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.min(32)))
                .unwrap_or(0);
            vec![
                payload(Register::First, header, offset, length),
                masked(&mask.to_be_bytes()),
                compare(true, &octets),
            ]
        }
    }
}

/// As the kernel keeps names of interfaces: 16 bytes, so that a longer name with the same beginning is another.
fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    bytes
}

fn verdict(code: u32) -> (&'static str, Attributes) {
    const NFT_REG_VERDICT: u32 = 0;
    // NFTA_VERDICT_CODE in NFTA_DATA_VERDICT
    let data = Attributes::new().nested(2, &Attributes::new().big_endian(1, code));
    // NFTA_IMMEDIATE_DREG, _DATA
    let attributes = Attributes::new()
        .big_endian(1, NFT_REG_VERDICT)
        .nested(2, &data);
    ("immediate", attributes)
}

/// A rule at the end of `chain`.
pub(super) fn rule(table: &str, chain: &str, steps: &[Step]) -> Message {
    let list =
        steps
            .iter()
            .flat_map(Step::expressions)
            .fold(Attributes::new(), |list, (name, data)| {
                // NFTA_EXPR_NAME, _DATA
                list.nested(
                    LIST_ELEMENT,
                    &Attributes::new().text(1, name).nested(2, &data),
                )
            });
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
    let attributes = Attributes::new()
        .text(1, table)
        .text(2, chain)
        .nested(4, &list);
    let names: Vec<&str> = steps
        .iter()
        .flat_map(|step| step.expressions().into_iter().map(|(name, _)| name))
        .collect();
    // A kernel that lacks an expression says only that something is not there.
    let what = format!("add a rule of {} to chain {chain}", names.join(", "));
    message(
        NFT_MSG_NEWRULE,
        NLM_F_CREATE | NLM_F_APPEND,
        &attributes,
        what,
    )
}
