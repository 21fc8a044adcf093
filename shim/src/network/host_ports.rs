//! Ports of the host: who may have one, and the sockets that keep others from taking it while a pod runs. No traffic ever
//! reaches those sockets: the rules lead it away before.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::manifest::plan::{HostPort, Protocol};

/// A host port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortConflict {
    /// Another pod has it.
    #[error("host port {port}/{protocol} is taken by pod {pod:?}", protocol = protocol_name(*protocol))]
    Pod {
        /// Port.
        port: u16,
        /// Protocol.
        protocol: Protocol,
        /// Name of the other pod.
        pod: String,
    },
    /// A process of the host has it.
    #[error("host port {port}/{protocol} cannot be had on {address}; `ss -lntup` shows which process has it", protocol = protocol_name(*protocol))]
    Host {
        /// Port.
        port: u16,
        /// Protocol.
        protocol: Protocol,
        /// Address of the host.
        address: IpAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// IPv6.
    #[error(
        "hostIP {address}: host ports are served on IPv4 addresses; leave hostIP out or give an IPv4 address"
    )]
    Family {
        /// Address as given.
        address: IpAddr,
    },
}

/// Name of a protocol as it is written beside a port.
fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Sockets that hold host ports.
#[derive(Debug, Default)]
pub struct HeldPorts {
    _sockets: Vec<OwnedFd>,
}

/// The first of `ours` that one of `theirs`, the ports of pod `name`, stands in the way of.
#[must_use]
pub fn conflict_between(
    ours: &[HostPort],
    theirs: &[HostPort],
    name: &str,
) -> Option<PortConflict> {
    ours.iter()
        .find(|mine| {
            theirs.iter().any(|other| {
                mine.host_port == other.host_port
                    && mine.protocol == other.protocol
                    && (address(mine) == address(other)
                        || address(mine).is_unspecified()
                        || address(other).is_unspecified())
            })
        })
        .map(|mine| PortConflict::Pod {
            port: mine.host_port,
            protocol: mine.protocol,
            pod: name.to_owned(),
        })
}

/// Takes hold of each port, so that no process of the host can.
///
/// # Errors
/// The first port that somebody has.
pub fn hold(ports: &[HostPort]) -> Result<HeldPorts, PortConflict> {
    let mut held = HeldPorts::default();
    for port in ports {
        let address = address(port);
        let IpAddr::V4(v4) = address else {
            return Err(PortConflict::Family { address });
        };
        let fail = |source| PortConflict::Host {
            port: port.host_port,
            protocol: port.protocol,
            address,
            source,
        };
        match port.protocol {
            Protocol::Tcp => held
                ._sockets
                .push(hold_tcp(SocketAddr::from((v4, port.host_port))).map_err(fail)?),
            Protocol::Udp => held
                ._sockets
                .push(UdpSocket::bind((v4, port.host_port)).map_err(fail)?.into()),
            // A host without SCTP has nobody to take the port either.
            Protocol::Sctp => {}
        }
    }
    Ok(held)
}

/// A bound socket that does not listen: a connection that went past the rules would be refused.
fn hold_tcp(address: SocketAddr) -> std::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Without SO_REUSEADDR: with it on both sides, a process of the host could bind the port all the same.
    bind(&socket, &address)?;
    Ok(socket)
}

fn address(port: &HostPort) -> IpAddr {
    port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, host_ip: Option<&str>) -> HostPort {
        HostPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: number,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn port_of_another_pod_is_a_conflict_where_addresses_meet() {
        let any = [port(80, None)];
        let one = [port(80, Some("192.0.2.1"))];
        let two = [port(80, Some("192.0.2.2"))];
        assert!(conflict_between(&any, &one, "p").is_some());
        assert!(conflict_between(&one, &two, "p").is_none());
        let text = conflict_between(&any, &any, "web").unwrap().to_string();
        assert_eq!(text, "host port 80/tcp is taken by pod \"web\"");
    }

    #[test]
    fn port_that_listens_cannot_be_held() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let wanted = [port(number, Some("127.0.0.1"))];
        assert!(matches!(hold(&wanted), Err(PortConflict::Host { .. })));
        drop(listener);
        let held = hold(&wanted).unwrap();
        assert!(std::net::TcpListener::bind(("127.0.0.1", number)).is_err());
        drop(held);
    }

    #[test]
    fn port_on_ipv6_is_refused() {
        assert!(matches!(
            hold(&[port(0, Some("::1"))]),
            Err(PortConflict::Family { .. })
        ));
    }
}
