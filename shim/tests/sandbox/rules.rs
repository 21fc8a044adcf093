//! The rules that vmpod gives the kernel by itself against those that nft makes of its own language: as they are listed,
//! and step by step as the kernel runs them.

use crate::host::{Host, nft_elsewhere};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: c
    image: greeter
    command: [x]
    imagePullPolicy: Never
    ports:
    - {containerPort: 80, hostPort: 18080}
    - {containerPort: 53, hostPort: 1053, protocol: UDP}
    - {containerPort: 53, hostPort: 1053, protocol: TCP, hostIP: 0.0.0.0}
    - {containerPort: 443, hostPort: 18443, hostIP: 127.0.0.1}
    - {containerPort: 9, hostPort: 65535, protocol: SCTP, hostIP: 192.0.2.7}
";

/// What the table is to be, as a person writes it.
fn expected(subnet: &str, address: &str) -> String {
    format!(
        r#"table ip vmpod {{
    map ports {{
        type inet_proto . inet_service : ipv4_addr . inet_service
        elements = {{ tcp . 18080 : {address} . 80, udp . 1053 : {address} . 53, tcp . 1053 : {address} . 53 }}
    }}
    map address_ports {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
        elements = {{ 127.0.0.1 . tcp . 18443 : {address} . 443, 192.0.2.7 . sctp . 65535 : {address} . 9 }}
    }}
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "vmpod0" ip daddr 127.0.0.0/8 drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address_ports
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address_ports
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != "vmpod0" masquerade
        ip saddr 127.0.0.0/8 oifname "vmpod0" masquerade
        ip saddr {subnet} oifname "vmpod0" ct status dnat masquerade
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "vmpod0" accept
        oifname "vmpod0" accept
    }}
}}
"#
    )
}

/// The same for pods without ports of the host, that send something to other hosts or do not.
fn expected_without_ports(subnet: &str, outgoing: bool) -> String {
    let translation = format!(
        r#"chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != "vmpod0" masquerade
    }}"#
    );
    format!(
        r#"table ip vmpod {{
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "vmpod0" ip daddr 127.0.0.0/8 drop
    }}
    {}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "vmpod0" accept
        oifname "vmpod0" accept
    }}
}}
"#,
        if outgoing { &translation } else { "" }
    )
}

/// Elements of a map come in the order of a hash table with a seed.
fn without_order(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut elements: Vec<String> = Vec::new();
    let mut inside = false;
    for line in listing.lines() {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix("elements = {") {
            inside = true;
            line = rest.trim();
        }
        if !inside {
            lines.push(line.to_owned());
            continue;
        }
        let last = line.ends_with('}');
        let row = line.trim_end_matches('}');
        elements.extend(
            row.split(',')
                .map(|element| element.trim().to_owned())
                .filter(|element| !element.is_empty()),
        );
        if last {
            inside = false;
            elements.sort();
            lines.append(&mut elements);
        }
    }
    lines
}

/// The steps of the rules as `nft --debug=netlink` shows those that the kernel has. What is no step is left out: handles differ.
fn steps(listing: &str) -> Vec<String> {
    listing
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("[ "))
        .map(str::to_owned)
        .collect()
}

fn compare(mode: &str, pod: &str, subnet: &str, expected: impl Fn(&str, &str) -> String) {
    let host = Host::new();
    let started = host.vmpod(mode, &["run", "-d", "--subnet", subnet, "-f", "-"], pod);
    assert_eq!(started.code, 0, "{started:?}");
    if mode == "outgoing" {
        host.await_open_uplink();
    }
    let address = host.inspect("p")["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let text = expected(subnet, &address);
    for options in [&[][..], &["-nn"], &["-s"]] {
        let list = [options, &["list", "table", "ip", "vmpod"]].concat();
        let ours = without_order(&host.nft(&list));
        assert_eq!(ours, without_order(&nft_elsewhere(&text, &list)));
        assert!(ours.len() > 9, "{ours:?}");
    }
    let list = ["--debug=netlink", "list", "table", "ip", "vmpod"];
    let ours = steps(&host.nft(&list));
    assert_eq!(ours, steps(&nft_elsewhere(&text, &list)));
    assert!(ours.len() > 6, "{ours:?}");
    assert_eq!(host.vmpod("", &["rm", "-f", "p"], "").code, 0);
    host.assert_clean(true);
}

#[test]
fn rules_of_a_pod_with_host_ports_are_those_that_nft_makes_of_their_text() {
    compare("linger", POD, "10.88.0.0/16", expected);
}

#[test]
fn rules_of_a_subnet_whose_prefix_ends_within_a_byte_are_those_that_nft_makes() {
    compare("linger", POD, "10.97.32.0/21", expected);
}

#[test]
fn addresses_of_a_pod_without_host_ports_are_translated_once_it_sends_something_out() {
    let (pod, _) = POD.split_once("    ports:").unwrap();
    for (mode, outgoing) in [("linger", false), ("outgoing", true)] {
        compare(mode, pod, "10.88.0.0/16", |subnet, _| {
            let text = expected_without_ports(subnet, outgoing);
            assert_eq!(text.contains("masquerade"), outgoing);
            text
        });
    }
}
