//! The pod's network interfaces, addresses, routes and neighbours.
//!
//! The guest's own network namespace is the pod's. Interfaces are found by MAC address; the requests are composed as
//! plain data ([`requests`]) and sent in one go.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use vmpod_agent_protocol::messages::{Neighbour, NetworkInterface, Route, SandboxConfig};

use super::netlink::Request;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_PID: u16 = 19;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// The address is usable at once: the host has assigned it, nobody else can have it.
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// Longest interface name (IFNAMSIZ without the NUL byte).
const NAME_BYTES: usize = 15;

/// A network that cannot be configured as asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(String);

/// An interface of the guest: its index and its present name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    index: u32,
    name: String,
}

/// The guest's interfaces by MAC address, in lower case. Asked by netlink: a look into sysfs makes the kernel build a dozen
/// inodes for each.
pub fn links() -> HashMap<String, Link> {
    nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter(|interface| interface.interface_name != "lo")
        .filter_map(|interface| {
            let address = interface.address?;
            // Tunnels have addresses of another length.
            let link = address.as_link_addr().filter(|link| link.halen() == 6)?;
            let mac = link.addr()?.map(|byte| format!("{byte:02x}")).join(":");
            let index = u32::try_from(link.ifindex()).ok()?;
            let name = interface.interface_name;
            Some((mac, Link { index, name }))
        })
        .collect()
}

/// An address with its prefix length.
fn cidr(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let bad = || {
        NetworkError(format!(
            "{text:?} is not an address with a prefix length, like 10.88.0.2/16"
        ))
    };
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok((address, prefix))
}

fn address(text: &str) -> Result<IpAddr, NetworkError> {
    text.parse()
        .map_err(|_| NetworkError(format!("{text:?} is not an IP address")))
}

fn mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let bad = || {
        NetworkError(format!(
            "{text:?} is not a MAC address, like 02:00:00:00:00:01"
        ))
    };
    let parts: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .map_err(|_| bad())?;
    parts.try_into().map_err(|_| bad())
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// All requests for the network in `sandbox`, in the order in which they must be made.
pub fn requests(
    sandbox: &SandboxConfig,
    links: &HashMap<String, Link>,
) -> Result<Vec<Request>, NetworkError> {
    let mut found: Vec<(&NetworkInterface, &Link)> = Vec::new();
    for interface in &sandbox.interfaces {
        if interface.name.is_empty() || interface.name.len() > NAME_BYTES {
            return Err(NetworkError(format!(
                "{:?} is not an interface name of 1 to {NAME_BYTES} bytes",
                interface.name
            )));
        }
        mac(&interface.mac)?;
        let key = device_mac(interface);
        mac(&key)?;
        let link = links.get(&key).ok_or_else(|| {
            let mut there: Vec<&str> = links.keys().map(String::as_str).collect();
            there.sort_unstable();
            NetworkError(format!(
                "no network interface has the MAC address {key} (there are: {})",
                there.join(", ")
            ))
        })?;
        found.push((interface, link));
    }
    let mut requests = make_room(&found);
    for (interface, link) in &found {
        requests.push(set_link(interface, link)?);
        for text in &interface.addresses {
            requests.push(add_address(text, interface, link)?);
        }
    }
    let device = |name: &str| -> Result<u32, NetworkError> {
        found
            .iter()
            .find(|(interface, _)| name.is_empty() || interface.name == name)
            .map(|(_, link)| link.index)
            .ok_or_else(|| NetworkError(format!("no interface of the pod is named {name:?}")))
    };
    // A gateway must be reachable when its route is added: routes to links come first.
    let (gateways, direct): (Vec<_>, Vec<_>) = sandbox
        .routes
        .iter()
        .partition(|route| !route.gateway.is_empty());
    for route in direct.into_iter().chain(gateways) {
        requests.push(add_route(route, device(&route.device)?)?);
    }
    for neighbour in &sandbox.neighbours {
        requests.push(add_neighbour(neighbour, device(&neighbour.device)?)?);
    }
    Ok(requests)
}

/// Requests that move the cards of `sandbox` into the network namespace of process `pid`.
pub fn moves(
    sandbox: &SandboxConfig,
    links: &HashMap<String, Link>,
    pid: libc::pid_t,
) -> Vec<Request> {
    sandbox
        .interfaces
        .iter()
        .filter_map(|interface| links.get(&device_mac(interface)))
        .map(|link| {
            let what = format!("move interface {} into the pod's network", link.name);
            Request::new(RTM_NEWLINK, 0, &link_body(link.index, false), what)
                .with(IFLA_NET_NS_PID, &pid.to_ne_bytes())
        })
        .collect()
}

/// The MAC address by which the card is found, in lower case.
fn device_mac(interface: &NetworkInterface) -> String {
    if interface.device_mac.is_empty() {
        interface.mac.to_lowercase()
    } else {
        interface.device_mac.to_lowercase()
    }
}

fn link_body(index: u32, up: bool) -> Vec<u8> {
    // struct ifinfomsg: family, padding, type, index, flags, change mask.
    let flags: u32 = if up { libc::IFF_UP.unsigned_abs() } else { 0 };
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body
}

fn name_attribute(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Moves interfaces out of the way whose present names other interfaces shall get.
fn make_room(found: &[(&NetworkInterface, &Link)]) -> Vec<Request> {
    found
        .iter()
        .filter(|(interface, link)| {
            interface.name != link.name
                && found
                    .iter()
                    .any(|(other, other_link)| other.name == link.name && other_link != link)
        })
        .map(|(_, link)| {
            let name = format!("vmpod{}", link.index);
            let what = format!("rename interface {} to {name}", link.name);
            Request::new(RTM_NEWLINK, 0, &link_body(link.index, false), what)
                .with(IFLA_IFNAME, &name_attribute(&name))
        })
        .collect()
}

fn set_link(interface: &NetworkInterface, link: &Link) -> Result<Request, NetworkError> {
    let what = format!(
        "set interface {} up as {:?} with MTU {}",
        link.name, interface.name, interface.mtu
    );
    let mut request = Request::new(RTM_NEWLINK, 0, &link_body(link.index, true), what);
    if interface.name != link.name {
        request = request.with(IFLA_IFNAME, &name_attribute(&interface.name));
    }
    if interface.mtu != 0 {
        request = request.with(IFLA_MTU, &interface.mtu.to_ne_bytes());
    }
    if !interface.device_mac.is_empty() {
        // The kernel changes the address before it sets the interface up.
        request = request.with(IFLA_ADDRESS, &mac(&interface.mac)?);
    }
    Ok(request)
}

fn add_address(
    text: &str,
    interface: &NetworkInterface,
    link: &Link,
) -> Result<Request, NetworkError> {
    let (address, prefix) = cidr(text)?;
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![family(address), prefix, IFA_F_NODAD, 0];
    body.extend_from_slice(&link.index.to_ne_bytes());
    let request = Request::new(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        &body,
        format!("add address {text} to {}", interface.name),
    )
    .with(IFA_LOCAL, &octets(address))
    .with(IFA_ADDRESS, &octets(address));
    Ok(match address {
        IpAddr::V4(address) if prefix < 31 => {
            let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            request.with(IFA_BROADCAST, &Ipv4Addr::from(broadcast).octets())
        }
        _ => request,
    })
}

fn add_route(route: &Route, index: u32) -> Result<Request, NetworkError> {
    let gateway = (!route.gateway.is_empty())
        .then(|| address(&route.gateway))
        .transpose()?;
    let destination = (!route.destination.is_empty())
        .then(|| cidr(&route.destination))
        .transpose()?;
    let family = match (destination, gateway) {
        (Some((address, _)), _) => family(address),
        (None, Some(gateway)) => family(gateway),
        (None, None) => libc::AF_INET as u8,
    };
    let scope = match (route.scope, gateway) {
        (0, None) if family == libc::AF_INET as u8 => RT_SCOPE_LINK,
        (scope, _) => u8::try_from(scope)
            .map_err(|_| NetworkError(format!("{scope} is not the scope of a route")))?,
    };
    let prefix = destination.map_or(0, |(_, prefix)| prefix);
    // struct rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags.
    let mut body = vec![
        family,
        prefix,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        scope,
        RTN_UNICAST,
    ];
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    body.extend_from_slice(&flags.to_ne_bytes());
    let what = format!(
        "add route to {} by {}",
        if route.destination.is_empty() {
            "everywhere"
        } else {
            &route.destination
        },
        if route.gateway.is_empty() {
            "the link"
        } else {
            &route.gateway
        },
    );
    let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, what)
        .with(RTA_OIF, &index.to_ne_bytes());
    if let Some((address, prefix)) = destination.filter(|(_, prefix)| *prefix > 0) {
        request = request.with(RTA_DST, &network(address, prefix));
    }
    if let Some(gateway) = gateway {
        request = request.with(RTA_GATEWAY, &octets(gateway));
    }
    if !route.source.is_empty() {
        request = request.with(RTA_PREFSRC, &octets(address(&route.source)?));
    }
    if route.metric != 0 {
        request = request.with(RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    Ok(request)
}

/// The address with the bits after the prefix cleared, which the kernel insists on.
fn network(address: IpAddr, prefix: u8) -> Vec<u8> {
    let mut bytes = octets(address);
    for (place, byte) in bytes.iter_mut().enumerate() {
        let kept = usize::from(prefix).saturating_sub(place * 8).min(8);
        let mask = 0xff_u8
            .checked_shl(u32::try_from(8 - kept).unwrap_or(8))
            .unwrap_or(0);
        *byte &= mask;
    }
    bytes
}

fn add_neighbour(neighbour: &Neighbour, index: u32) -> Result<Request, NetworkError> {
    let address = address(&neighbour.address)?;
    // struct ndmsg: family, padding, index, state, flags, type.
    let mut body = vec![family(address), 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    body.extend_from_slice(&[0, 0]);
    Ok(Request::new(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        &body,
        format!("add neighbour {} at {}", neighbour.address, neighbour.mac),
    )
    .with(NDA_DST, &octets(address))
    .with(NDA_LLADDR, &mac(&neighbour.mac)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_of_a_prefix_has_no_host_bits() {
        assert_eq!(network("10.88.3.7".parse().unwrap(), 16), [10, 88, 0, 0]);
        assert_eq!(network("10.88.3.7".parse().unwrap(), 12), [10, 80, 0, 0]);
        assert_eq!(network("255.1.2.3".parse().unwrap(), 32), [255, 1, 2, 3]);
        let bytes = network("fd00::1:2".parse().unwrap(), 64);
        assert_eq!(bytes.get(..2), Some([0xfd, 0].as_slice()));
        assert_eq!(bytes.get(8..), Some([0; 8].as_slice()));
    }

    fn one_card() -> HashMap<String, Link> {
        let link = Link {
            index: 2,
            name: "eth0".into(),
        };
        HashMap::from([("02:00:00:00:00:01".to_owned(), link)])
    }

    #[test]
    fn links_of_this_machine_have_the_index_and_address_that_sysfs_has() {
        for (mac, link) in links() {
            let read = |file: &str| {
                let path = format!("/sys/class/net/{}/{file}", link.name);
                std::fs::read_to_string(path).unwrap().trim().to_owned()
            };
            assert_eq!(read("ifindex"), link.index.to_string());
            assert_eq!(read("address"), mac);
        }
    }

    #[test]
    fn interface_with_an_unknown_mac_names_those_that_are_there() {
        let sandbox = SandboxConfig {
            interfaces: vec![NetworkInterface {
                mac: "02:00:00:00:00:09".into(),
                name: "eth0".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let links = one_card();
        let error = requests(&sandbox, &links).unwrap_err().to_string();
        assert!(error.contains("02:00:00:00:00:09"), "{error}");
        assert!(error.contains("there are: 02:00:00:00:00:01"), "{error}");
    }

    #[test]
    fn interface_found_by_its_device_address_is_given_the_pods() {
        let sandbox = SandboxConfig {
            interfaces: vec![NetworkInterface {
                mac: "02:00:00:00:00:09".into(),
                device_mac: "02:00:00:00:00:01".into(),
                name: "eth0".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let links = one_card();
        let requests = requests(&sandbox, &links).unwrap();
        // Length 10, attribute IFLA_ADDRESS, six bytes.
        let attribute = [10, 0, 1, 0, 2, 0, 0, 0, 0, 9];
        assert!(
            format!("{:?}", requests.first()).contains(&format!("{attribute:?}")[1..29]),
            "{requests:?}"
        );
        let mut wrong = sandbox;
        wrong.interfaces[0].mac = "none".into();
        assert!(super::requests(&wrong, &links).is_err());
    }

    #[test]
    fn addresses_and_routes_that_are_none_are_refused() {
        for text in ["10.0.0.1", "10.0.0.1/33", "fe80::/129", "x/8", ""] {
            assert!(cidr(text).is_err(), "{text}");
        }
        assert!(mac("02:00:00:00:00").is_err());
        assert!(mac("02:00:00:00:00:0g").is_err());
    }
}
