//! The rules of pods: one table, `ip vmpod`, written as a whole from the leases, so that a pod's rules go when its lease
//! goes. `nft` is executed: its language is the stable interface.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::{BRIDGE, Lease, NetworkError, Subnet};
use crate::manifest::plan::Protocol;

/// The table that replaces whatever table of that name there is.
pub(super) fn rules(subnet: Subnet, leases: &[Lease]) -> String {
    let mut any = Vec::new();
    let mut one = Vec::new();
    for lease in leases {
        for port in &lease.host_ports {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let target = format!("{} . {}", lease.address, port.container_port);
            match port.host_ip {
                None => any.push(format!("{protocol} . {} : {target}", port.host_port)),
                Some(IpAddr::V4(host)) if host.is_unspecified() => {
                    any.push(format!("{protocol} . {} : {target}", port.host_port));
                }
                Some(IpAddr::V4(host)) => {
                    one.push(format!(
                        "{host} . {protocol} . {} : {target}",
                        port.host_port
                    ));
                }
                Some(IpAddr::V6(_)) => {}
            }
        }
    }
    let mut text = String::from("table ip vmpod\ndelete table ip vmpod\ntable ip vmpod {\n");
    let map = |text: &mut String, name: &str, key: &str, elements: &[String]| {
        let _ = writeln!(text, "\tmap {name} {{");
        let _ = writeln!(text, "\t\ttype {key} : ipv4_addr . inet_service");
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
        }
        text.push_str("\t}\n");
    };
    map(&mut text, "ports", "inet_proto . inet_service", &any);
    map(
        &mut text,
        "address_ports",
        "ipv4_addr . inet_proto . inet_service",
        &one,
    );
    let _ = write!(
        text,
        "\tchain guard {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifname \"{BRIDGE}\" ip daddr 127.0.0.0/8 drop\n\
         \t}}\n\
         \tchain prerouting {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         \t\tfib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address_ports\n\
         \t\tfib daddr type local dnat ip to meta l4proto . th dport map @ports\n\
         \t}}\n\
         \tchain output {{\n\
         \t\ttype nat hook output priority -100; policy accept;\n\
         \t\tfib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address_ports\n\
         \t\tfib daddr type local dnat ip to meta l4proto . th dport map @ports\n\
         \t}}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {subnet} oifname != \"{BRIDGE}\" masquerade\n\
         \t\tip saddr 127.0.0.0/8 oifname \"{BRIDGE}\" masquerade\n\
         \t\tip saddr {subnet} oifname \"{BRIDGE}\" ct status dnat masquerade\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{BRIDGE}\" accept\n\
         \t\toifname \"{BRIDGE}\" accept\n\
         \t}}\n\
         }}\n"
    );
    text
}

/// Has the kernel take `text`, all or nothing.
pub(super) fn apply(text: &str) -> Result<(), NetworkError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetworkError::NftMissing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // An nft that refuses early closes its input: its words matter, not the broken pipe.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetworkError::NftMissing)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::Nft(
        words.lines().take(5).collect::<Vec<_>>().join(" "),
    ))
}

/// Takes the table away; one that is not there is no error.
pub(super) fn remove() -> Result<(), NetworkError> {
    apply("table ip vmpod\ndelete table ip vmpod\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::plan::HostPort;

    #[test]
    fn rules_of_a_host_port_have_its_element() {
        let lease = Lease {
            address: "10.88.0.2".parse().unwrap(),
            pod: "p".into(),
            host_ports: vec![
                HostPort {
                    host_ip: None,
                    host_port: 8001,
                    container_port: 8080,
                    protocol: Protocol::Tcp,
                },
                HostPort {
                    host_ip: Some("192.0.2.1".parse().unwrap()),
                    host_port: 53,
                    container_port: 5353,
                    protocol: Protocol::Udp,
                },
            ],
        };
        let text = rules(Subnet::parse("10.88.0.0/16").unwrap(), &[lease]);
        assert!(text.contains("elements = { tcp . 8001 : 10.88.0.2 . 8080 }"));
        assert!(text.contains("elements = { 192.0.2.1 . udp . 53 : 10.88.0.2 . 5353 }"));
        assert!(text.starts_with("table ip vmpod\ndelete table ip vmpod\n"));
    }
}
