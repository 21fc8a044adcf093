//! The rules of pods: one table, `ip vmpod`, written as a whole from the leases, so that a pod's rules go when its lease
//! goes. In nft's language:
//!
//! ```text
//! map ports         { type inet_proto . inet_service : ipv4_addr . inet_service; }
//! map address_ports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
//! chain guard       { type filter hook prerouting priority raw; }
//!     iifname "vmpod0" ip daddr 127.0.0.0/8 drop
//! chain prerouting  { type nat hook prerouting priority dstnat; }
//!     fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address_ports
//!     fib daddr type local dnat ip to meta l4proto . th dport map @ports
//! chain output      { type nat hook output priority dstnat; }
//!     the same two
//! chain postrouting { type nat hook postrouting priority srcnat; }
//!     ip saddr SUBNET oifname != "vmpod0" masquerade
//!     ip saddr 127.0.0.0/8 oifname "vmpod0" masquerade
//!     ip saddr SUBNET oifname "vmpod0" ct status dnat masquerade
//! chain forward     { type filter hook forward priority filter; }
//!     iifname "vmpod0" accept
//!     oifname "vmpod0" accept
//! ```
//!
//! Without ports of the host there are only the rules that all pods need, those of `guard` and `forward`; and the first of
//! `postrouting` once a pod sends something beyond the pods' network, because it makes the host track connections.
//!
//! The kernel is told by netlink, in one transaction. The program `nft` would do, and takes as many instructions as the
//! rest of a pod's network; it is what tests compare with.

mod objects;

use std::net::{IpAddr, Ipv4Addr};

use self::objects::{BaseChain, Field, Hook, Map, Meta, Part, Register, Step};
use super::netlink::{self, Family, Message, NetlinkError};
use super::{BRIDGE, Lease, Subnet};
use crate::manifest::plan::Protocol;

const TABLE: &str = "vmpod";

/// What a host port leads to.
const TARGET: &[Part] = &[Part::Ipv4Address, Part::Port];

/// Host ports at all addresses.
const PORTS: Map = Map {
    name: "ports",
    id: 1,
    key: &[Part::Protocol, Part::Port],
    value: TARGET,
};

/// Host ports at one address.
const ADDRESS_PORTS: Map = Map {
    name: "address_ports",
    id: 2,
    key: &[Part::Ipv4Address, Part::Protocol, Part::Port],
    value: TARGET,
};

/// Priorities of netfilter's own hooks (`enum nf_ip_hook_priorities`).
const RAW: i32 = -300;
const DESTINATION_NAT: i32 = -100;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

const CHAINS: [BaseChain; 5] = [
    BaseChain {
        name: "guard",
        kind: "filter",
        hook: Hook::Prerouting,
        priority: RAW,
    },
    BaseChain {
        name: "prerouting",
        kind: "nat",
        hook: Hook::Prerouting,
        priority: DESTINATION_NAT,
    },
    BaseChain {
        name: "output",
        kind: "nat",
        hook: Hook::Output,
        priority: DESTINATION_NAT,
    },
    BaseChain {
        name: "postrouting",
        kind: "nat",
        hook: Hook::Postrouting,
        priority: SOURCE_NAT,
    },
    BaseChain {
        name: "forward",
        kind: "filter",
        hook: Hook::Forward,
        priority: FILTER,
    },
];

const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);

/// A key of a map with its value.
type Element = (Vec<u8>, Vec<u8>);

/// The transaction that puts the table in place of whatever table of that name there is.
#[derive(Debug)]
pub(super) struct Rules(Vec<Message>);

impl Rules {
    pub(super) fn of(subnet: Subnet, leases: &[Lease]) -> Self {
        // Made where it is missing, so that it can be deleted.
        let mut steps = vec![
            objects::table(TABLE),
            objects::delete_table(TABLE),
            objects::table(TABLE),
        ];
        let (any, one) = elements(leases);
        let mut rules = rules(subnet);
        let ports = !(any.is_empty() && one.is_empty());
        let uplink = leases.iter().any(|lease| lease.uplink);
        rules.retain(|(purpose, ..)| match purpose {
            For::Pods => true,
            For::Uplinks => uplink,
            For::HostPorts => ports,
        });
        if ports {
            for (map, elements) in [(PORTS, any), (ADDRESS_PORTS, one)] {
                steps.push(map.message(TABLE));
                steps.extend(map.elements(TABLE, &elements));
            }
        }
        steps.extend(
            CHAINS
                .iter()
                .filter(|chain| rules.iter().any(|(_, of, _)| *of == chain.name))
                .map(|chain| chain.message(TABLE)),
        );
        steps.extend(
            rules
                .iter()
                .map(|(_, chain, parts)| objects::rule(TABLE, chain, parts)),
        );
        Self(objects::transaction(steps, "write the rules of pods"))
    }

    /// What the kernel is sent: the same rules are the same bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        netlink::datagram(&self.0)
    }

    /// Has the kernel take them, all or nothing.
    pub(super) fn apply(&self) -> Result<(), NetlinkError> {
        netlink::exchange(Family::Netfilter, &self.0).map(drop)
    }
}

/// Takes the table away; one that is not there is no error.
pub(super) fn remove() -> Result<(), NetlinkError> {
    let steps = vec![objects::table(TABLE), objects::delete_table(TABLE)];
    let all = objects::transaction(steps, "remove the rules of pods");
    netlink::exchange(Family::Netfilter, &all).map(drop)
}

/// Whether the kernel has a packet filter that takes such rules.
pub(super) fn probe() -> Result<(), NetlinkError> {
    netlink::exchange(Family::Netfilter, &[objects::ask_generation()]).map(drop)
}

/// The elements of [`PORTS`] and [`ADDRESS_PORTS`].
fn elements(leases: &[Lease]) -> (Vec<Element>, Vec<Element>) {
    let (mut any, mut one) = (Vec::new(), Vec::new());
    for lease in leases {
        for port in &lease.host_ports {
            let protocol = match port.protocol {
                Protocol::Tcp => libc::IPPROTO_TCP,
                Protocol::Udp => libc::IPPROTO_UDP,
                Protocol::Sctp => libc::IPPROTO_SCTP,
            };
            let key = [
                // Numbers of protocols are bytes (RFC 791).
                objects::protocol_part(protocol as u8),
                objects::port_part(port.host_port),
            ]
            .concat();
            let target = [
                objects::address_part(lease.address),
                objects::port_part(port.container_port),
            ]
            .concat();
            match port.host_ip {
                None => any.push((key, target)),
                Some(IpAddr::V4(host)) if host.is_unspecified() => any.push((key, target)),
                Some(IpAddr::V4(host)) => {
                    let key = [&objects::address_part(host)[..], &key].concat();
                    one.push((key, target));
                }
                Some(IpAddr::V6(_)) => {}
            }
        }
    }
    (any, one)
}

/// Whom a rule is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// All pods.
    Pods,
    /// Those that send beyond the pods' network.
    Uplinks,
    /// Those with ports of the host: without one, the rule is left out.
    HostPorts,
}

/// Each rule with its chain.
fn rules(subnet: Subnet) -> Vec<(For, &'static str, Vec<Step>)> {
    use Step::{
        Accept, Drop, IsInterface, IsNotInterface, IsWithin, LoadField, LoadMeta, LookUp,
        Masquerade, Redirect, ToThisHost, WasRedirected,
    };
    let from_bridge = [
        LoadMeta(Meta::InputName, Register::First),
        IsInterface(BRIDGE),
    ];
    let to_bridge = [
        LoadMeta(Meta::OutputName, Register::First),
        IsInterface(BRIDGE),
    ];
    let from_pod = IsWithin(Field::Source, subnet.address(), subnet.prefix());
    let redirect_at_address = vec![
        ToThisHost,
        LoadField(Field::Destination, Register::First),
        LoadMeta(Meta::Protocol, Register::SecondQuarter),
        LoadField(Field::DestinationPort, Register::ThirdQuarter),
        LookUp(ADDRESS_PORTS),
        Redirect,
    ];
    let redirect = vec![
        ToThisHost,
        LoadMeta(Meta::Protocol, Register::First),
        LoadField(Field::DestinationPort, Register::SecondQuarter),
        LookUp(PORTS),
        Redirect,
    ];
    let join = |parts: &[&[Step]]| parts.concat();
    vec![
        (
            For::Pods,
            "guard",
            join(&[
                &from_bridge,
                &[IsWithin(Field::Destination, LOOPBACK.0, LOOPBACK.1), Drop],
            ]),
        ),
        (For::HostPorts, "prerouting", redirect_at_address.clone()),
        (For::HostPorts, "prerouting", redirect.clone()),
        (For::HostPorts, "output", redirect_at_address),
        (For::HostPorts, "output", redirect),
        (
            For::Uplinks,
            "postrouting",
            vec![
                from_pod.clone(),
                LoadMeta(Meta::OutputName, Register::First),
                IsNotInterface(BRIDGE),
                Masquerade,
            ],
        ),
        (
            For::HostPorts,
            "postrouting",
            join(&[
                &[IsWithin(Field::Source, LOOPBACK.0, LOOPBACK.1)],
                &to_bridge,
                &[Masquerade],
            ]),
        ),
        (
            For::HostPorts,
            "postrouting",
            join(&[&[from_pod], &to_bridge, &[WasRedirected, Masquerade]]),
        ),
        (For::Pods, "forward", join(&[&from_bridge, &[Accept]])),
        (For::Pods, "forward", join(&[&to_bridge, &[Accept]])),
    ]
}
