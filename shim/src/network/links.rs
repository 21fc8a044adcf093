//! Bridge and tap as the kernel's links (rtnetlink(7)). Each operation runs on a thread of its own, so that callers may be
//! synchronous or not; nothing here runs more than twice in a pod's life.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::{NetworkError, Subnet};

/// Runs `work` with a netlink connection.
fn with_netlink<T: Send>(
    work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .build()?;
                runtime.block_on(async {
                    let (connection, handle, _) = rtnetlink::new_connection()?;
                    let connection = tokio::spawn(connection);
                    let result = work(handle).await.map_err(to_io);
                    connection.abort();
                    result
                })
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the netlink thread panicked")))
    })
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Index of interface `name` in this network namespace; `None` when there is none. Found among all: asked for by name
/// (if_nametoindex(3)), the kernel executes modprobe twice for one that it does not know, and sysfs shows the namespace
/// that it was mounted in, which may be another one.
fn index_of(name: &str) -> Option<u32> {
    let all = nix::net::if_::if_nameindex().ok()?;
    all.iter()
        .find(|interface| interface.name().to_bytes() == name.as_bytes())
        .map(|interface| interface.index())
}

/// Makes the bridge with the gateway's address where it is not there. Returns whether it was made.
pub(super) fn ensure_bridge(name: &str, subnet: Subnet, mtu: u16) -> Result<bool, NetworkError> {
    if index_of(name).is_some() {
        return Ok(false);
    }
    let fail = |what| {
        move |source| NetworkError::Link {
            what,
            name: name.to_owned(),
            source,
        }
    };
    let gateway = subnet.gateway();
    let [a, b, c, d] = gateway.octets();
    with_netlink(async |handle| {
        handle
            .link()
            .add(
                LinkBridge::new(name)
                    // A bridge without an address of its own takes its ports' and changes with them.
                    .address(vec![2, 0x58, a, b, c, d])
                    .mtu(u32::from(mtu))
                    .build(),
            )
            .execute()
            .await
    })
    .map_err(fail("make"))?;
    // Pods have IPv4 alone: no router solicitations or duplicate detection on the bridge.
    set_optional(&ipv6_setting(name), "1");
    let index = index_of(name).ok_or_else(|| fail("find")(io::ErrorKind::NotFound.into()))?;
    with_netlink(async |handle| {
        handle
            .address()
            .add(index, IpAddr::V4(gateway), subnet.prefix())
            .execute()
            .await?;
        handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
    })
    .map_err(fail("give an address to"))?;
    set(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")?;
    // A host port on 127.0.0.1 leads to a pod; the rules drop what pods themselves send to that range.
    set(
        &PathBuf::from(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet")),
        "1",
    )?;
    Ok(true)
}

/// Puts interface `name` on `bridge` and takes it into use.
pub(super) fn attach(name: &str, bridge: &str, mtu: u16) -> Result<(), NetworkError> {
    let fail = |what| {
        move |source| NetworkError::Link {
            what,
            name: name.to_owned(),
            source,
        }
    };
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let index = index_of(name).ok_or_else(|| fail("find")(missing()))?;
    let bridge = index_of(bridge).ok_or_else(|| fail("find the bridge of")(missing()))?;
    set_optional(&ipv6_setting(name), "1");
    with_netlink(async |handle| {
        handle
            .link()
            .set(
                LinkUnspec::new_with_index(index)
                    .controller(bridge)
                    .mtu(u32::from(mtu))
                    .up()
                    .build(),
            )
            .execute()
            .await
    })
    .map_err(fail("put on the bridge"))
}

/// Removes interface `name`; one that is not there is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_interface(name: &str) -> Result<(), NetworkError> {
    let Some(index) = index_of(name) else {
        return Ok(());
    };
    match with_netlink(async |handle| handle.link().del(index).execute().await) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map_err(|source| NetworkError::Link {
            what: "remove",
            name: name.to_owned(),
            source,
        }),
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
