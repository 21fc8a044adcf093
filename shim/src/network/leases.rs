//! Who has which address: one file an address, written and removed under the network's lock.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{NetworkError, Subnet};
use crate::manifest::plan::HostPort;
use crate::pod::durable;

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Id of the pod.
    pub pod: String,
    /// Ports of the host that lead to it.
    pub host_ports: Vec<HostPort>,
    /// Whether what it sends to others than pods and this host gets the host's address.
    #[serde(default)]
    pub uplink: bool,
}

fn path_of(directory: &Path, address: Ipv4Addr) -> PathBuf {
    directory.join("leases").join(address.to_string())
}

/// All leases, by address. A file that does not hold one is passed over: a kill can leave one beside its final name.
///
/// # Errors
/// When the directory cannot be read.
pub fn leases(directory: &Path) -> Result<Vec<Lease>, NetworkError> {
    let path = directory.join("leases");
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(NetworkError::Directory { path, source }),
    };
    let mut found: Vec<Lease> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<Ipv4Addr>().is_ok())
        })
        .filter_map(|entry| durable::read_json(&entry.path()).ok())
        .collect();
    found.sort_by_key(|lease| lease.address);
    Ok(found)
}

/// The first address after the one given last, so that an address rests before it is given again.
pub(super) fn free_address(directory: &Path, subnet: Subnet) -> Result<Ipv4Addr, NetworkError> {
    let taken: BTreeSet<Ipv4Addr> = leases(directory)?.iter().map(|l| l.address).collect();
    let last: Option<Ipv4Addr> = durable::read_json(&directory.join("last-address")).ok();
    let after = subnet
        .pod_addresses()
        .filter(|address| last.is_none_or(|last| *address > last));
    let free = after
        .chain(subnet.pod_addresses())
        .find(|address| !taken.contains(address))
        .ok_or(NetworkError::Exhausted { subnet })?;
    durable::write_json(&directory.join("last-address"), &free)?;
    Ok(free)
}

pub(super) fn write(directory: &Path, lease: &Lease) -> Result<(), NetworkError> {
    Ok(durable::write_json(
        &path_of(directory, lease.address),
        lease,
    )?)
}

/// Notes that what `pod` sends from `address` gets the host's address. Returns whether that is new; a lease that is not
/// `pod`'s stays as it is.
pub(super) fn give_uplink(
    directory: &Path,
    address: Ipv4Addr,
    pod: &str,
) -> Result<bool, NetworkError> {
    let mut lease: Lease = durable::read_json(&path_of(directory, address))?;
    if lease.pod != pod || lease.uplink {
        return Ok(false);
    }
    lease.uplink = true;
    write(directory, &lease)?;
    Ok(true)
}

/// Removes the lease of `address` if it is `pod`'s.
pub(super) fn remove(directory: &Path, address: Ipv4Addr, pod: &str) -> Result<(), NetworkError> {
    let path = path_of(directory, address);
    match durable::read_json::<Lease>(&path) {
        Ok(lease) if lease.pod != pod => return Ok(()),
        Err(error) if error.is_absent() => return Ok(()),
        _ => {}
    }
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(NetworkError::Directory { path, source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: Ipv4Addr, pod: &str) -> Lease {
        Lease {
            address,
            pod: pod.into(),
            host_ports: vec![],
            uplink: false,
        }
    }

    #[test]
    fn address_given_back_rests_until_the_others_were_given() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("leases")).unwrap();
        let subnet = Subnet::parse("192.0.2.0/29").unwrap();
        let mut given = vec![];
        for _ in 0..5 {
            let address = free_address(dir.path(), subnet).unwrap();
            write(dir.path(), &lease(address, "a")).unwrap();
            given.push(address.octets()[3]);
            if address.octets()[3] == 2 {
                remove(dir.path(), address, "a").unwrap();
            }
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        let again = free_address(dir.path(), subnet).unwrap();
        assert_eq!(again.octets()[3], 2);
        write(dir.path(), &lease(again, "b")).unwrap();
        assert!(matches!(
            free_address(dir.path(), subnet),
            Err(NetworkError::Exhausted { .. })
        ));
        // The former owner cannot take the new one's address away.
        remove(dir.path(), again, "a").unwrap();
        assert_eq!(leases(dir.path()).unwrap().len(), 5);
    }
}
