//! The network of standalone pods: one bridge with a private subnet, one tap a pod, NAT, host ports.
//!
//! The state is the lease files below `<run>/network`, changed under a lock; bridge and rules are made from them as a
//! whole, so that there is no rule to forget. The last lease takes bridge and rules away. The tap is a descriptor that
//! the VMM inherits: it goes with the VMM.

mod host_ports;
pub mod inherited;
mod leases;
mod links;
mod localhost;
mod namespace;
mod netlink;
mod nftables;
mod redirect;
mod subnet;
mod tap;

pub use host_ports::{HeldPorts, PortConflict, conflict_between, hold};
pub use leases::{Lease, leases};
pub use links::remove_interface;
pub use netlink::NetlinkError;
pub use subnet::Subnet;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::manifest::plan::HostPort;
use crate::pod::durable::{self, DurableError};
use crate::pod::journal::{Entry, Journal, JournalError};
use crate::pod::process;

/// Name of the bridge.
pub const BRIDGE: &str = "vmpod0";

/// The pod's network cannot be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The directory or its lock.
    #[error("cannot use the network's directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A record.
    #[error(transparent)]
    Record(#[from] DurableError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No subnet is free.
    #[error(
        "every private subnet that vmpod would take overlaps with a route of this host; choose one with --subnet"
    )]
    NoSubnet,
    /// The chosen subnet does not do.
    #[error("subnet {subnet}: {why}")]
    BadSubnet {
        /// As given.
        subnet: String,
        /// Why not.
        why: String,
    },
    /// All addresses are taken.
    #[error("all addresses of {subnet} are taken by running pods")]
    Exhausted {
        /// The subnet.
        subnet: Subnet,
    },
    /// A link.
    #[error("cannot {what} network interface {name}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// On which.
        name: String,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// The tap.
    #[error("cannot make the pod's tap {name} on /dev/net/tun; `modprobe tun` may help")]
    Tap {
        /// Its name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A kernel setting.
    #[error("cannot set {} to {value}", path.display())]
    Setting {
        /// File below /proc/sys.
        path: PathBuf,
        /// Value.
        value: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The rules.
    #[error(
        "cannot change the packet filter's rules for pods; `vmpod check` says what the host lacks"
    )]
    Rules(#[source] NetlinkError),
    /// A host port.
    #[error(transparent)]
    Port(#[from] PortConflict),
}

/// What was chosen once for all pods that run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    subnet: Subnet,
    mtu: u16,
}

/// A pod's place on the network: an address that is its own until it is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The subnet.
    pub subnet: Subnet,
    /// MTU of the uplink.
    pub mtu: u16,
}

impl Place {
    /// MAC address of the guest's side.
    #[must_use]
    pub fn mac(&self) -> String {
        mac_of(self.address)
    }
}

/// A pod on the network.
#[derive(Debug)]
pub struct PodNetwork {
    /// Its place.
    pub place: Place,
    /// The tap, for the VMM to inherit; `None` when it has.
    pub tap: Option<OwnedFd>,
    /// Whether what it sends beyond the pods' network may leave from the start.
    pub uplink: bool,
}

/// Takes an address for pod `id`, with `ports` of the host that shall lead to it. Nothing but files is made.
///
/// # Errors
/// When no address can be had.
pub fn lease(
    directory: &Path,
    id: &str,
    ports: &[HostPort],
    wanted: Option<&str>,
    journal: &mut Journal,
) -> Result<Place, NetworkError> {
    let _lock = locked(directory)?;
    let settings = settings(directory, wanted)?;
    let address = leases::free_address(directory, settings.subnet)?;
    journal.record(&Entry::Lease {
        network: directory.to_owned(),
        address,
        pod: id.to_owned(),
    })?;
    leases::write(
        directory,
        &Lease {
            address,
            pod: id.to_owned(),
            host_ports: ports.to_vec(),
            uplink: !ports.is_empty(),
        },
    )?;
    Ok(Place {
        address,
        subnet: settings.subnet,
        mtu: settings.mtu,
    })
}

/// Puts pod `id` at its place: bridge, rules, tap.
///
/// # Errors
/// The first part that cannot be made; what was made until then is in the journal.
pub fn attach(
    directory: &Path,
    id: &str,
    place: &Place,
    journal: &mut Journal,
) -> Result<PodNetwork, NetworkError> {
    let _lock = locked(directory)?;
    let bridge = links::ensure_bridge(BRIDGE, place.subnet, place.mtu)?;
    let leases = leases::leases(directory)?;
    let uplink = leases
        .iter()
        .any(|lease| lease.address == place.address && lease.uplink);
    apply_rules(directory, place.subnet, &leases, bridge.new)?;
    let name = tap_name(id);
    journal.record(&Entry::Interface { name: name.clone() })?;
    let tap = tap::open(&name).map_err(|source| NetworkError::Tap {
        name: name.clone(),
        source,
    })?;
    links::attach(&name, bridge, place.mtu)?;
    Ok(PodNetwork {
        place: place.clone(),
        tap: Some(tap),
        uplink,
    })
}

/// Has what pod `pod` sends beyond the pods' network, from now on, leave with the host's address. Pods begin without that
/// unless they have ports of the host: translating addresses makes the host track connections, all of its own as well, which
/// is not for pods that never talk to others. The VMM holds such frames back until then.
///
/// # Errors
/// When the rules resist.
pub fn open_uplink(directory: &Path, address: Ipv4Addr, pod: &str) -> Result<(), NetworkError> {
    let _lock = locked(directory)?;
    if !leases::give_uplink(directory, address, pod)? {
        return Ok(());
    }
    let settings: Settings = durable::read_json(&settings_path(directory))?;
    apply_rules(
        directory,
        settings.subnet,
        &leases::leases(directory)?,
        false,
    )
}

/// Gives back the address of `pod` with its host ports; the last one takes bridge and rules away. An address that has
/// another owner by now stays.
///
/// # Errors
/// When rules or bridge resist.
pub fn release(directory: &Path, address: Ipv4Addr, pod: &str) -> Result<(), NetworkError> {
    if !directory.exists() {
        return Ok(());
    }
    let _lock = locked(directory)?;
    leases::remove(directory, address, pod)?;
    let Ok(settings) = durable::read_json::<Settings>(&settings_path(directory)) else {
        return Ok(());
    };
    let leases = leases::leases(directory)?;
    if leases.is_empty() {
        nftables::remove().map_err(NetworkError::Rules)?;
        links::remove_interface(BRIDGE)?;
        for path in [settings_path(directory), applied_path(directory)] {
            let _ = std::fs::remove_file(path);
        }
        return Ok(());
    }
    apply_rules(directory, settings.subnet, &leases, false)
}

/// Takes away leases whose pod is gone, as `alive` says, and writes the rules anew: another program may have flushed
/// them.
///
/// # Errors
/// When rules or bridge resist.
pub fn repair(directory: &Path, alive: impl Fn(&str) -> bool) -> Result<Vec<Lease>, NetworkError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let stale: Vec<Lease> = {
        let _lock = locked(directory)?;
        leases::leases(directory)?
            .into_iter()
            .filter(|lease| !alive(&lease.pod))
            .collect()
    };
    for lease in &stale {
        release(directory, lease.address, &lease.pod)?;
    }
    let _lock = locked(directory)?;
    let leases = leases::leases(directory)?;
    if leases.is_empty() {
        // A kill between the settings and the first lease leaves settings alone, or a bridge without them.
        if settings_path(directory).exists() {
            nftables::remove().map_err(NetworkError::Rules)?;
            links::remove_interface(BRIDGE)?;
            let _ = std::fs::remove_file(settings_path(directory));
            let _ = std::fs::remove_file(applied_path(directory));
        }
    } else if let Ok(settings) = durable::read_json::<Settings>(&settings_path(directory)) {
        apply_rules(directory, settings.subnet, &leases, true)?;
    }
    Ok(stale)
}

fn locked(directory: &Path) -> Result<std::fs::File, NetworkError> {
    let fail = |source| NetworkError::Directory {
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory.join("leases")).map_err(fail)?;
    process::lock(&directory.join("lock")).map_err(fail)
}

fn settings_path(directory: &Path) -> PathBuf {
    directory.join("settings.json")
}

fn applied_path(directory: &Path) -> PathBuf {
    directory.join("rules")
}

/// The settings that running pods share, or new ones.
fn settings(directory: &Path, wanted: Option<&str>) -> Result<Settings, NetworkError> {
    let path = settings_path(directory);
    let wanted = wanted.map(Subnet::parse).transpose()?;
    match durable::read_json::<Settings>(&path) {
        Ok(found) => {
            if let Some(wanted) = wanted
                && wanted != found.subnet
            {
                return Err(NetworkError::BadSubnet {
                    subnet: wanted.to_string(),
                    why: format!(
                        "pods that run use {}; a change needs all of them stopped",
                        found.subnet
                    ),
                });
            }
            Ok(found)
        }
        Err(_) => {
            let settings = Settings {
                subnet: subnet::choose(wanted)?,
                mtu: links::uplink_mtu(),
            };
            durable::write_json(&path, &settings)?;
            Ok(settings)
        }
    }
}

/// Writes the rules that `leases`, which are all, ask for, unless they are what was written last.
fn apply_rules(
    directory: &Path,
    subnet: Subnet,
    leases: &[Lease],
    force: bool,
) -> Result<(), NetworkError> {
    let rules = nftables::Rules::of(subnet, leases);
    let bytes = rules.bytes();
    let path = applied_path(directory);
    if !force && std::fs::read(&path).is_ok_and(|applied| applied == bytes) {
        return Ok(());
    }
    // The record goes first: a kill in between makes the next pod write the rules again.
    let _ = std::fs::remove_file(&path);
    rules.apply().map_err(NetworkError::Rules)?;
    durable::write_bytes(&path, &bytes, 0o600)?;
    Ok(())
}

/// Whether the kernel has the packet filter that pods' rules need.
///
/// # Errors
/// The kernel's answer.
pub fn probe_packet_filter() -> Result<(), NetlinkError> {
    nftables::probe()
}

/// Name of a pod's tap: at most 15 bytes (IFNAMSIZ).
#[must_use]
pub fn tap_name(id: &str) -> String {
    format!("vmtap{}", id.get(..10).unwrap_or(id))
}

/// A locally administered MAC address made of the IP address: an address that is given again keeps its MAC, and
/// neighbours' caches stay right.
fn mac_of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_of_an_address_is_local_and_unicast() {
        assert_eq!(mac_of(Ipv4Addr::new(10, 88, 0, 2)), "02:58:0a:58:00:02");
    }

    #[test]
    fn tap_name_of_an_id_fits() {
        assert_eq!(tap_name("0123456789ab").len(), 15);
        assert_eq!(tap_name("ab"), "vmtapab");
    }
}
