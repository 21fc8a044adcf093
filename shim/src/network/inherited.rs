//! The network of a pod whose namespace somebody else made and filled (CNI): every Ethernet interface in it is joined to a
//! tap of the machine, and the guest takes over its name, MAC address, MTU, addresses, routes and neighbours. The
//! namespace keeps its own; nothing comes in there any more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use vmpod_agent_protocol::messages as m;

use super::localhost::ForwardedLocalhost;
use super::netlink::{
    self, Attributes, Family, Message, NLM_F_ACK, NLM_F_DUMP, NetlinkError, attributes, number,
};
use super::{namespace, redirect, tap};
use crate::pod::boot::Card;
use crate::pod::journal::{Entry, Journal, JournalError};

const RTM_SETLINK: u16 = 19;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// if_arp.h: Ethernet.
const ARPHRD_ETHER: u16 = 1;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;
/// Routes that the kernel makes with an address: the guest's makes them as well.
const RTPROT_KERNEL: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;

/// Interfaces of a pod at most: the machine has a window of registers for each.
const INTERFACES: usize = 8;

/// The network cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// The namespace.
    #[error("cannot enter the pod's network namespace {}; its CNI plugin makes it", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel.
    #[error("in the pod's network namespace {}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: NetlinkError,
    },
    /// The tap.
    #[error("cannot make a tap for interface {interface} on /dev/net/tun; `modprobe tun` may help")]
    Tap {
        /// The interface.
        interface: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Too many.
    #[error(
        "the pod's network namespace has {found} interfaces; a machine has at most {INTERFACES}"
    )]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// An interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interface {
    index: u32,
    name: String,
    mac: [u8; 6],
    mtu: u32,
    addresses: Vec<String>,
}

/// A network that was taken over.
#[derive(Debug, Default)]
pub struct Inherited {
    namespace: PathBuf,
    interfaces: Vec<Interface>,
    routes: Vec<m::Route>,
    neighbours: Vec<m::Neighbour>,
    taps: Vec<OwnedFd>,
    localhost: Option<ForwardedLocalhost>,
}

fn colons(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// MAC address of the machine's card `number`: machines that go on from one template have the same.
fn card_mac(number: usize) -> String {
    format!("02:00:00:00:00:{:02x}", number + 1)
}

/// Name of the tap for interface `index`: no plugin's.
fn tap_name(index: u32) -> String {
    format!("vmpod{index}")
}

impl Inherited {
    /// Takes over the network of the namespace at `path`.
    ///
    /// # Errors
    /// What cannot be joined; what was made until then is in `journal`.
    pub fn take_over(path: &Path, journal: &mut Journal) -> Result<Self, InheritedError> {
        let kernel = |source| InheritedError::Kernel {
            path: path.to_owned(),
            source,
        };
        let enter = |source| InheritedError::Namespace {
            path: path.to_owned(),
            source,
        };
        let mut found = namespace::within(path, || look(path))
            .map_err(enter)?
            .map_err(kernel)?;
        if found.interfaces.len() > INTERFACES {
            return Err(InheritedError::TooMany {
                found: found.interfaces.len(),
            });
        }
        journal.record(&Entry::Redirect {
            namespace: path.to_owned(),
            links: found.interfaces.iter().map(|link| link.index).collect(),
        })?;
        let interfaces = &found.interfaces;
        found.taps = namespace::within(path, || {
            interfaces
                .iter()
                .map(|link| {
                    let tap =
                        tap::open(&tap_name(link.index)).map_err(|source| InheritedError::Tap {
                            interface: link.name.clone(),
                            source,
                        })?;
                    join(link).map_err(kernel)?;
                    Ok(tap)
                })
                .collect::<Result<Vec<_>, InheritedError>>()
        })
        .map_err(enter)??;
        Ok(found)
    }

    /// The machine's cards, once.
    pub fn cards(&mut self) -> Vec<Card> {
        std::mem::take(&mut self.taps)
            .into_iter()
            .zip(&self.interfaces)
            .enumerate()
            .map(|(number, (tap, link))| Card {
                tap,
                mac: card_mac(number),
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
                // Who may send what is the network's business: it made the interface.
                sender: None,
                own_network: None,
            })
            .collect()
    }

    /// The pod's address: the first of its first interface.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        let first = self.interfaces.first()?.addresses.first()?;
        first.split('/').next()?.parse().ok()
    }

    /// What the agent is told of the interfaces.
    #[must_use]
    pub fn interfaces(&self) -> Vec<m::NetworkInterface> {
        self.interfaces
            .iter()
            .enumerate()
            .map(|(number, link)| m::NetworkInterface {
                mac: colons(&link.mac),
                device_mac: card_mac(number),
                name: link.name.clone(),
                mtu: link.mtu,
                addresses: link.addresses.clone(),
                ..Default::default()
            })
            .collect()
    }

    /// What the agent is told of the routes.
    #[must_use]
    pub fn routes(&self) -> Vec<m::Route> {
        self.routes.clone()
    }

    /// What the agent is told of the neighbours.
    #[must_use]
    pub fn neighbours(&self) -> Vec<m::Neighbour> {
        self.neighbours.clone()
    }

    /// Leads connections to localhost in the namespace to the guest behind `socket`, where the host's kernel can.
    pub fn forward_localhost(&mut self, socket: &Path) {
        if self.namespace.as_os_str().is_empty() {
            return;
        }
        match ForwardedLocalhost::start(&self.namespace, socket) {
            Ok(forwarded) => self.localhost = Some(forwarded),
            Err(error) => tracing::warn!(
                %error,
                "ports of the pod cannot be forwarded (bpf(2), sk_lookup: Linux 5.9)"
            ),
        }
    }

    /// Leaves the namespace as it was. One that is gone needs nothing.
    pub fn release(&mut self) {
        self.localhost = None;
        let links: Vec<u32> = self.interfaces.iter().map(|link| link.index).collect();
        if let Err(error) = part(&self.namespace, &links) {
            tracing::warn!(error, "the next `vmpod gc` will try again");
        }
    }
}

/// Takes the redirection away from `links` of the namespace at `path`. A namespace that is gone needs nothing.
///
/// # Errors
/// In words.
pub fn part(path: &Path, links: &[u32]) -> Result<(), String> {
    if links.is_empty() {
        return Ok(());
    }
    let parted = namespace::within(path, || {
        links.iter().try_for_each(|&index| redirect::part(index))
    });
    match parted {
        Ok(Ok(())) => Ok(()),
        // A file without a namespace on it: it was taken away.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(())
        }
        Ok(Err(error)) => Err(format!(
            "cannot part the taps in network namespace {}: {error}",
            path.display()
        )),
        Err(error) => Err(format!(
            "cannot enter network namespace {}: {error}",
            path.display()
        )),
    }
}

/// Takes the tap of `link` into use and joins both.
fn join(link: &Interface) -> Result<(), NetlinkError> {
    let name = tap_name(link.index);
    let mut head = [0; 16];
    let up = libc::IFF_UP.cast_unsigned().to_ne_bytes();
    head[8..12].copy_from_slice(&up);
    head[12..].copy_from_slice(&up);
    let set = Message::new(
        RTM_SETLINK,
        NLM_F_ACK,
        &head,
        &Attributes::new()
            .text(IFLA_IFNAME, &name)
            .native(IFLA_MTU, link.mtu),
        "take the tap into use",
    );
    netlink::exchange(Family::Route, &[set])?;
    let index = links()?
        .into_iter()
        .find(|other| other.name == name)
        .map_or(0, |tap| tap.index);
    redirect::join(link.index, index)
}

/// Everything of a kind.
fn dump(kind: u16, head: &[u8], what: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let ask = Message::new(kind, NLM_F_DUMP, head, &Attributes::new(), what);
    netlink::exchange(Family::Route, &[ask])
}

/// Ethernet interfaces of this namespace, without their addresses.
fn links() -> Result<Vec<Interface>, NetlinkError> {
    let told = dump(RTM_GETLINK, &[0; 16], "list the links")?;
    Ok(told.iter().filter_map(|body| interface(body)).collect())
}

/// The interface in the body of a link message; `None` when it is no Ethernet.
fn interface(body: &[u8]) -> Option<Interface> {
    // struct ifinfomsg: family, padding, type, index, flags, change mask.
    if u16::from_ne_bytes(number(body, 2)?) != ARPHRD_ETHER {
        return None;
    }
    let mut found = Interface {
        index: u32::from_ne_bytes(number(body, 4)?),
        name: String::new(),
        mac: [0; 6],
        mtu: 1500,
        addresses: Vec::new(),
    };
    for (kind, value) in attributes(body, 16) {
        match kind {
            IFLA_ADDRESS => found.mac = value.try_into().ok()?,
            IFLA_IFNAME => {
                found.name = String::from_utf8_lossy(value)
                    .trim_end_matches('\0')
                    .to_owned();
            }
            IFLA_MTU => found.mtu = u32::from_ne_bytes(number(value, 0)?),
            _ => {}
        }
    }
    Some(found)
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(number::<4>(bytes, 0)?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(number::<16>(bytes, 0)?).into()),
        _ => None,
    }
}

/// Link-local addresses and routes to them follow from the MAC address: the guest's kernel makes them.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

/// Looks around in this namespace.
fn look(path: &Path) -> Result<Inherited, NetlinkError> {
    let mut interfaces = links()?;
    // struct ifaddrmsg, struct rtmsg and struct ndmsg, all zero: of every family and link.
    for body in dump(RTM_GETADDR, &[0; 8], "list the addresses")? {
        if let Some((index, text)) = own_address(&body)
            && let Some(interface) = interfaces.iter_mut().find(|link| link.index == index)
        {
            interface.addresses.push(text);
        }
    }
    let routes = dump(RTM_GETROUTE, &[0; 12], "list the routes")?;
    let neighbours = dump(RTM_GETNEIGH, &[0; 12], "list the neighbours")?;
    Ok(Inherited {
        namespace: path.to_owned(),
        routes: routes
            .iter()
            .filter_map(|body| route(body, &interfaces))
            .collect(),
        neighbours: neighbours
            .iter()
            .filter_map(|body| neighbour(body, &interfaces))
            .collect(),
        interfaces,
        taps: Vec::new(),
        localhost: None,
    })
}

fn own_address(body: &[u8]) -> Option<(u32, String)> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let [family, prefix, ..] = number::<4>(body, 0)?;
    let index = u32::from_ne_bytes(number(body, 4)?);
    let attributes = attributes(body, 8);
    let value = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted);
    // On a link with two ends the one is this end's address and the other that of the other.
    let (_, bytes) = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    let address = address(family, bytes)?;
    (!is_link_local(address)).then(|| (index, format!("{address}/{prefix}")))
}

fn route(body: &[u8], interfaces: &[Interface]) -> Option<m::Route> {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let [family, prefix, _, _, table, protocol, scope, kind] = number::<8>(body, 0)?;
    let flags = u32::from_ne_bytes(number(body, 8)?);
    if kind != RTN_UNICAST || protocol == RTPROT_KERNEL {
        return None;
    }
    let mut table = u32::from(table);
    let mut made = m::Route {
        scope: scope.into(),
        onlink: flags & RTNH_F_ONLINK != 0,
        ..Default::default()
    };
    for (kind, value) in attributes(body, 12) {
        let native = || number(value, 0).map(u32::from_ne_bytes);
        match kind {
            RTA_TABLE => table = native()?,
            RTA_DST => {
                let destination = address(family, value)?;
                if is_link_local(destination) || destination.is_multicast() {
                    return None;
                }
                made.destination = format!("{destination}/{prefix}");
            }
            RTA_GATEWAY => made.gateway = address(family, value)?.to_string(),
            RTA_PREFSRC => made.source = address(family, value)?.to_string(),
            RTA_PRIORITY => made.metric = native()?,
            RTA_OIF => {
                let index = native()?;
                let link = interfaces.iter().find(|link| link.index == index)?;
                made.device.clone_from(&link.name);
            }
            _ => {}
        }
    }
    // A route with several next hops names no device of its own.
    if table != RT_TABLE_MAIN || made.device.is_empty() {
        return None;
    }
    if made.destination.is_empty() && made.gateway.is_empty() {
        // To everywhere without a gateway: the family shows in the destination.
        made.destination = match i32::from(family) {
            libc::AF_INET => "0.0.0.0/0".into(),
            _ => "::/0".into(),
        };
    }
    Some(made)
}

fn neighbour(body: &[u8], interfaces: &[Interface]) -> Option<m::Neighbour> {
    // struct ndmsg: family, padding, index, state, flags, type.
    let family = *body.first()?;
    let index = u32::from_ne_bytes(number(body, 4)?);
    let state = u16::from_ne_bytes(number(body, 8)?);
    if state & NUD_PERMANENT == 0 {
        return None;
    }
    let link = interfaces.iter().find(|link| link.index == index)?;
    let attributes = attributes(body, 12);
    let value = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted);
    let address = address(family, value(NDA_DST)?.1)?;
    let mac = value(NDA_LLADDR)?.1;
    (mac.len() == 6 && !address.is_multicast()).then(|| m::Neighbour {
        address: address.to_string(),
        mac: colons(mac),
        device: link.name.clone(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0() -> Vec<Interface> {
        vec![Interface {
            index: 2,
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 9],
            mtu: 1450,
            addresses: Vec::new(),
        }]
    }

    fn message(head: &[u8], rows: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = head.to_vec();
        for (kind, value) in rows {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    #[test]
    fn route_of_the_main_table_is_taken_over_and_those_of_the_kernel_are_not() {
        let head = |protocol, kind| [2, 0, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0];
        let gateway: (u16, &[u8]) = (RTA_GATEWAY, &[10, 1, 0, 1]);
        let device: (u16, &[u8]) = (RTA_OIF, &[2, 0, 0, 0]);
        let made = route(&message(&head(3, 1), &[gateway, device]), &eth0()).unwrap();
        assert_eq!(
            (&*made.gateway, &*made.device, &*made.destination),
            ("10.1.0.1", "eth0", "")
        );
        assert!(route(&message(&head(RTPROT_KERNEL, 1), &[device]), &eth0()).is_none());
        assert!(route(&message(&head(3, 2), &[device]), &eth0()).is_none());
        let elsewhere: (u16, &[u8]) = (RTA_TABLE, &[255, 0, 0, 0]);
        assert!(route(&message(&head(3, 1), &[device, elsewhere]), &eth0()).is_none());
        let nowhere: (u16, &[u8]) = (RTA_OIF, &[9, 0, 0, 0]);
        assert!(route(&message(&head(3, 1), &[gateway, nowhere]), &eth0()).is_none());
    }

    #[test]
    fn address_is_this_ends_and_link_local_ones_are_left_out() {
        let body = message(
            &[2, 24, 0, 0, 2, 0, 0, 0],
            &[(IFA_ADDRESS, &[10, 1, 0, 1]), (IFA_LOCAL, &[10, 1, 0, 7])],
        );
        assert_eq!(own_address(&body), Some((2, "10.1.0.7/24".into())));
        let mut local = [0; 16];
        local[0] = 0xfe;
        local[1] = 0x80;
        let body = message(&[10, 64, 0, 0, 2, 0, 0, 0], &[(IFA_ADDRESS, &local)]);
        assert_eq!(own_address(&body), None);
        local[0] = 0xfd;
        let body = message(&[10, 64, 0, 0, 2, 0, 0, 0], &[(IFA_ADDRESS, &local)]);
        assert_eq!(own_address(&body), Some((2, "fd80::/64".into())));
    }

    #[test]
    fn neighbours_that_somebody_set_are_taken_over() {
        let head = |state: u8| [2, 0, 0, 0, 2, 0, 0, 0, state, 0, 0, 1];
        let rows: [(u16, &[u8]); 2] =
            [(NDA_DST, &[10, 1, 0, 1]), (NDA_LLADDR, &[2, 0, 0, 0, 0, 1])];
        let made = neighbour(&message(&head(0x80), &rows), &eth0()).unwrap();
        assert_eq!(
            (&*made.address, &*made.mac, &*made.device),
            ("10.1.0.1", "02:00:00:00:00:01", "eth0")
        );
        assert!(neighbour(&message(&head(2), &rows), &eth0()).is_none());
    }

    #[test]
    fn messages_cut_anywhere_are_nothing_and_no_panic() {
        let body = message(
            &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[(RTA_GATEWAY, &[10, 1, 0, 1]), (RTA_OIF, &[2, 0, 0, 0])],
        );
        for length in 0..body.len() {
            let cut = &body[..length];
            let _ = (
                route(cut, &eth0()),
                own_address(cut),
                neighbour(cut, &eth0()),
                interface(cut),
            );
        }
    }
}
