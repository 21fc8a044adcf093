//! Bridge and tap as the kernel's links (rtnetlink(7)): a message or two each. Numbers and layouts are those of
//! include/uapi/linux/{rtnetlink,if_link,if_addr}.h.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::netlink::{
    self, Attributes, Family, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NetlinkError,
};
use super::{NetworkError, Subnet};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

/// `struct ifinfomsg` of link `index` (0: the one that IFLA_IFNAME names), which is taken into use if `up`.
fn link_head(index: u32, up: bool) -> [u8; 16] {
    let mut head = [0; 16];
    let flags = if up { libc::IFF_UP.cast_unsigned() } else { 0 };
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    // Which flags are meant.
    head[12..].copy_from_slice(&flags.to_ne_bytes());
    head
}

/// A request about the link called `name`.
fn about(kind: u16, flags: u16, up: bool, name: &str, rest: Attributes, what: &str) -> Message {
    Message::new(
        kind,
        flags | NLM_F_ACK,
        &link_head(0, up),
        &rest.text(IFLA_IFNAME, name),
        what,
    )
}

fn ask(message: Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
    netlink::exchange(Family::Route, &[message])
}

/// Index of interface `name` in this network namespace; `None` when there is none. Not by if_nametoindex(3), for which the
/// kernel executes modprobe twice when it does not know the name, nor by sysfs, which shows the namespace that it was
/// mounted in.
fn index_of(name: &str) -> Result<Option<u32>, NetlinkError> {
    let shortly = Attributes::new().native(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    match ask(about(RTM_GETLINK, 0, false, name, shortly, "find the link")) {
        Ok(said) => Ok(said
            .first()
            .and_then(|link| netlink::number(link, 4))
            .map(u32::from_ne_bytes)),
        Err(error) if error.number() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn failing(what: &'static str, name: &str) -> impl FnOnce(NetlinkError) -> NetworkError {
    let name = name.to_owned();
    move |source| NetworkError::Link { what, name, source }
}

/// A bridge that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bridge {
    index: u32,
    /// Whether it was not there before.
    pub(super) new: bool,
}

/// Makes the bridge with the gateway's address where it is not there.
pub(super) fn ensure_bridge(name: &str, subnet: Subnet, mtu: u16) -> Result<Bridge, NetworkError> {
    let gateway = subnet.gateway();
    let [a, b, c, d] = gateway.octets();
    let bridge = Attributes::new()
        // A bridge without an address of its own takes its ports' and changes with them.
        .bytes(IFLA_ADDRESS, &[2, 0x58, a, b, c, d])
        .native(IFLA_MTU, mtu.into())
        .nested(
            IFLA_LINKINFO,
            &Attributes::new().text(IFLA_INFO_KIND, "bridge"),
        );
    let new = NLM_F_CREATE | NLM_F_EXCL;
    match ask(about(
        RTM_NEWLINK,
        new,
        false,
        name,
        bridge,
        "make the link",
    )) {
        Ok(_) => {}
        Err(error) if error.number() == Some(libc::EEXIST) => {
            let index = known_index(name, "find")?;
            return Ok(Bridge { index, new: false });
        }
        Err(error) => return Err(failing("make", name)(error)),
    }
    // Pods have IPv4 alone: no router solicitations or duplicate detection on the bridge.
    set_optional(&ipv6_setting(name), "1");
    let index = known_index(name, "find")?;
    // `struct ifaddrmsg`
    let mut head = [0; 8];
    head[0] = libc::AF_INET as u8;
    head[1] = subnet.prefix();
    head[4..].copy_from_slice(&index.to_ne_bytes());
    let address = Attributes::new()
        .bytes(IFA_LOCAL, &gateway.octets())
        .bytes(IFA_ADDRESS, &gateway.octets())
        .bytes(IFA_BROADCAST, &subnet.broadcast().octets());
    let give = Message::new(
        RTM_NEWADDR,
        new | NLM_F_ACK,
        &head,
        &address,
        "give the link an address",
    );
    let up = about(
        RTM_SETLINK,
        0,
        true,
        name,
        Attributes::new(),
        "take the link into use",
    );
    netlink::exchange(Family::Route, &[give, up]).map_err(failing("give an address to", name))?;
    set(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")?;
    // A host port on 127.0.0.1 leads to a pod; the rules drop what pods themselves send to that range.
    set(
        &PathBuf::from(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet")),
        "1",
    )?;
    Ok(Bridge { index, new: true })
}

fn known_index(name: &str, what: &'static str) -> Result<u32, NetworkError> {
    index_of(name)
        .and_then(|index| {
            index.ok_or_else(|| NetlinkError::Refused {
                what: "find the link".into(),
                words: String::new(),
                source: io::Error::from_raw_os_error(libc::ENODEV),
            })
        })
        .map_err(failing(what, name))
}

/// Puts interface `name` on `bridge` and takes it into use.
pub(super) fn attach(name: &str, bridge: Bridge, mtu: u16) -> Result<(), NetworkError> {
    set_optional(&ipv6_setting(name), "1");
    let port = Attributes::new()
        .native(IFLA_MASTER, bridge.index)
        .native(IFLA_MTU, mtu.into());
    ask(about(
        RTM_SETLINK,
        0,
        true,
        name,
        port,
        "put the link on the bridge",
    ))
    .map(drop)
    .map_err(failing("put on the bridge", name))
}

/// Removes interface `name`; one that is not there is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_interface(name: &str) -> Result<(), NetworkError> {
    match ask(about(
        RTM_DELLINK,
        0,
        false,
        name,
        Attributes::new(),
        "remove the link",
    )) {
        Err(error) if error.number() == Some(libc::ENODEV) => Ok(()),
        other => other.map(drop).map_err(failing("remove", name)),
    }
}

fn ipv6_setting(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))
}

fn set_optional(path: &Path, value: &str) {
    // A kernel without IPv6 has no such file.
    let _ = fs::write(path, value);
}

/// Writes a setting unless it has that value: /proc/sys may be read-only where it is right already.
fn set(path: &Path, value: &'static str) -> Result<(), NetworkError> {
    if fs::read_to_string(path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| NetworkError::Setting {
        path: path.to_owned(),
        value,
        source,
    })
}

/// MTU of the interface with the default route; 1500 without one.
pub(super) fn uplink_mtu() -> u16 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let default = fields.get(1)? == &"00000000" && fields.get(7)? == &"00000000";
            let device = fields.first().filter(|_| default)?;
            fs::read_to_string(Path::new("/sys/class/net").join(device).join("mtu"))
                .ok()?
                .trim()
                .parse::<u16>()
                .ok()
        })
        // Below 1280 many programs misbehave; above 9000 a loopback-like uplink says nothing about a bridge.
        .map(|mtu| mtu.clamp(1280, 9000))
        .next()
        .unwrap_or(1500)
}
