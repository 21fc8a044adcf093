//! The pods' IPv4 subnet: its arithmetic, and the choice of one that the host does not route elsewhere.

use std::fs;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{BRIDGE, NetworkError};

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// Reads `a.b.c.d/n` with n from 8 to 29.
    ///
    /// # Errors
    /// When it is none, or has bits set beyond its prefix.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let bad = |why: &str| NetworkError::BadSubnet {
            subnet: text.to_owned(),
            why: why.to_owned(),
        };
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| bad("expected a form such as 10.88.0.0/16"))?;
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_| bad("the part before `/` is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|n| (8..=29).contains(n))
            .ok_or_else(|| bad("the prefix length must be from 8 to 29"))?;
        let subnet = Self {
            base: u32::from(address),
            prefix,
        };
        if subnet.base & !subnet.mask() != 0 {
            return Err(bad("there are bits set beyond the prefix"));
        }
        Ok(subnet)
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address that all others begin with.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The last address, which is everybody's.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !self.mask())
    }

    /// The host's own address on the bridge: the first.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | 1)
    }

    /// Addresses for pods in order: all but network, gateway and broadcast.
    pub fn pod_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let last = self.base | !self.mask();
        (self.base + 2..last).map(Ipv4Addr::from)
    }

    fn overlaps(self, other_base: u32, other_mask: u32) -> bool {
        let common = self.mask() & other_mask;
        self.base & common == other_base & common
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl TryFrom<String> for Subnet {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        Self::parse(&text)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// The subnet to use: `wanted` where it is free, else the first free one of a row of private /16.
pub(super) fn choose(wanted: Option<Subnet>) -> Result<Subnet, NetworkError> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    choose_beside(wanted, &routes)
}

fn choose_beside(wanted: Option<Subnet>, routes: &str) -> Result<Subnet, NetworkError> {
    let taken: Vec<(u32, u32, String)> = routes.lines().skip(1).filter_map(route).collect();
    let overlapping = |subnet: Subnet| {
        taken
            .iter()
            .find(|(base, mask, _)| subnet.overlaps(*base, *mask))
    };
    if let Some(wanted) = wanted {
        return match overlapping(wanted) {
            None => Ok(wanted),
            Some((_, _, device)) => Err(NetworkError::BadSubnet {
                subnet: wanted.to_string(),
                why: format!("it overlaps with a route of this host by way of {device}"),
            }),
        };
    }
    let candidates = (88..128)
        .map(|second| Ipv4Addr::new(10, second, 0, 0))
        .chain((24..32).map(|second| Ipv4Addr::new(172, second, 0, 0)));
    candidates
        .map(|address| Subnet {
            base: u32::from(address),
            prefix: 16,
        })
        .find(|subnet| overlapping(*subnet).is_none())
        .ok_or(NetworkError::NoSubnet)
}

/// Destination, mask and device of a line of `/proc/net/route` (numbers in the machine's byte order); `None` for the
/// default route and for our own bridge.
fn route(line: &str) -> Option<(u32, u32, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| {
        u32::from_str_radix(fields.get(index)?, 16)
            .ok()
            .map(u32::from_be)
    };
    let (device, base, mask) = (fields.first()?, number(1)?, number(7)?);
    (mask != 0 && *device != BRIDGE).then(|| (base, mask, (*device).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        vmpod0\t0000590A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn subnet_that_is_routed_is_passed_over() {
        assert_eq!(
            choose_beside(None, ROUTES).unwrap().to_string(),
            "10.89.0.0/16"
        );
        let wanted = Subnet::parse("10.88.128.0/17").unwrap();
        let text = choose_beside(Some(wanted), ROUTES).unwrap_err().to_string();
        assert!(text.contains("by way of eth0"), "{text}");
    }

    #[test]
    fn subnet_addresses_leave_out_gateway_and_broadcast() {
        let subnet = Subnet::parse("192.0.2.0/29").unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(192, 0, 2, 1));
        let all: Vec<_> = subnet.pod_addresses().collect();
        assert_eq!(all.first(), Some(&Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(192, 0, 2, 6)));
    }

    #[test]
    fn subnet_malformed_is_refused() {
        for text in [
            "10.0.0.0",
            "10.0.0.1/16",
            "10.0.0.0/30",
            "x/16",
            "10.0.0.0/x",
        ] {
            assert!(Subnet::parse(text).is_err(), "{text}");
        }
    }
}
