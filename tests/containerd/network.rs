//! The pod's network is what the CNI plugins made.

use k8s_cri::v1;
use vmpod_tests::{Sandbox, containerd, eventually, on_both};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn interface_has_addresses_routes_and_mtu_of_the_plugin() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let status = pod.status();
        let network = status.network.unwrap();
        let second = network
            .additional_ips
            .first()
            .expect("an IPv6 address")
            .ip
            .clone();
        let container = pod.shell("sleep 1000");
        let addresses = container.sh("ip addr show eth0");
        assert!(
            addresses.contains(&format!("inet {}/24", network.ip)),
            "{addresses}"
        );
        assert!(
            addresses.contains(&format!("inet6 {second}/64")),
            "{addresses}"
        );
        assert!(addresses.contains("mtu 1420"), "{addresses}");
        assert!(
            container
                .sh("ip route")
                .contains("default via 10.77.0.1 dev eth0")
        );
        assert!(
            container
                .sh("ip -6 route")
                .contains("default via fd77::1 dev eth0")
        );
        assert_eq!(
            container.sh("ping -c 1 -w 20 10.77.0.1 > /dev/null && echo yes"),
            "yes\n"
        );
        assert_eq!(
            container.sh("ping -6 -c 1 -w 20 fd77::1 > /dev/null && echo yes"),
            "yes\n"
        );
        assert_eq!(container.sh("hostname").trim(), pod.config.hostname);
        let resolv = container.sh("cat /etc/resolv.conf");
        assert!(
            resolv.contains("nameserver 10.9.8.7") && resolv.contains("search test.local"),
            "{resolv}"
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pods_reach_each_other_and_a_large_answer_arrives_whole() {
    containerd();
    on_both(|handler| {
        let (one, two) = (Sandbox::run(handler), Sandbox::run(handler));
        let server = one.shell(
            "dd if=/dev/zero of=/tmp/large bs=1M count=8 2>/dev/null; httpd -f -p 80 -h /tmp",
        );
        let client = two.shell("sleep 1000");
        let line = format!("wget -q -O - http://{}/large | wc -c", one.address());
        eventually("the whole answer", || {
            let ran = client.exec(&["sh", "-c", &line], 60).ok()?;
            (ran.out.trim() == "8388608").then_some(())
        });
        drop(server);
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn host_port_leads_to_the_pod() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run_with(handler, |config| {
            config.port_mappings = vec![v1::PortMapping {
                protocol: v1::Protocol::Tcp.into(),
                container_port: 8080,
                host_port: 18501,
                host_ip: String::new(),
            }];
        });
        let _server = pod.shell("echo by the port > /tmp/index.html; httpd -f -p 8080 -h /tmp");
        eventually("an answer at the host's port", || {
            (vmpod_tests::get("http://127.0.0.1:18501/")? == "by the port\n").then_some(())
        });
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn port_forward_reaches_localhost_of_the_pod() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container =
            pod.shell("echo forwarded > /tmp/index.html; httpd -f -p 127.0.0.1:8081 -h /tmp");
        eventually("a server in the pod", || {
            (container
                .exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:8081/"], 60)
                .ok()?
                .code
                == 0)
                .then_some(())
        });
        let request = b"GET / HTTP/1.0\r\n\r\n";
        let answer = pod.port_forward(8081, request, |got| got.ends_with(b"forwarded\n"));
        let text = String::from_utf8_lossy(&answer);
        assert!(text.ends_with("forwarded\n"), "{text}");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn namespace_is_left_as_it_was_found() {
    containerd();
    let path = "/run/netns/vmpod-test";
    let sh = |line: &str| {
        let done = std::process::Command::new("sh")
            .args(["-e", "-c", line])
            .output()
            .unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    sh(
        "ip netns del vmpod-test 2>/dev/null || true; ip netns add vmpod-test; ip -n vmpod-test link add eth7 type veth peer name eth8; ip -n vmpod-test addr add 10.66.0.2/24 dev eth7; ip -n vmpod-test link set eth7 up; ip -n vmpod-test link set eth8 up; ip -n vmpod-test link set lo up",
    );
    let look = || {
        sh(
            "ip -n vmpod-test -o link | sed 's/ qdisc.*//; s/state.*//'; tc -n vmpod-test qdisc; tc -n vmpod-test filter show dev eth7 ingress; ip -n vmpod-test addr show eth7 | sed -n '/inet/{s/tentative//;p}' | tr -d ' '; ip netns exec vmpod-test nft list ruleset",
        )
    };
    let before = look();
    let outcome = containerd()
        .ctr([
            "-n",
            "k8s.io",
            "run",
            "--rm",
            "--runtime",
            "io.containerd.vmpod.v2",
        ])
        .arg(format!("--with-ns=network:{path}"))
        .args([
            "docker.io/library/busybox:latest",
            "joined",
            "ip",
            "addr",
            "show",
            "eth7",
        ])
        .run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.contains("inet 10.66.0.2/24"), "{outcome}");
    assert_eq!(look(), before);
    sh("ip netns del vmpod-test");
}
