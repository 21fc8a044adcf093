//! One address a pod: localhost, host, other pods, names, host ports; and no more than that one.

use std::process::Command;

use vmpod_tests::{Pod, eventually, get};

fn server() -> Pod {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: busybox, command: [sh, -c, 'mkdir /w; echo page > /w/index.html; httpd -f -p 8080 -h /w'], ports: [{containerPort: 8080, hostPort: 18200}]}
  - {name: other, image: busybox, command: [sleep, '1000']}",
    );
    pod.start();
    pod.await_phase("Running");
    pod
}

fn ip(pod: &Pod) -> String {
    eventually("an address", || {
        pod.inspect()["status"]["podIP"].as_str().map(str::to_owned)
    })
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_is_reached_on_localhost_by_address_by_host_port_and_from_another_pod() {
    let web = server();
    let address = ip(&web);
    assert_eq!(
        eventually("localhost", || Some(web.exec(
            "other",
            &["wget", "-q", "-O", "-", "http://localhost:8080/"]
        ))
        .filter(|o| o.code == 0))
        .out,
        "page\n"
    );
    assert_eq!(
        get(&format!("http://{address}:8080/")).as_deref(),
        Some("page\n"),
        "by its address"
    );
    assert_eq!(
        get("http://127.0.0.1:18200/").as_deref(),
        Some("page\n"),
        "by host port on loopback"
    );
    let host = web.inspect()["status"]["hostIP"]
        .as_str()
        .map(str::to_owned)
        .expect("hostIP");
    assert_eq!(
        get(&format!("http://{host}:18200/")).as_deref(),
        Some("page\n"),
        "by host port on {host}"
    );
    let client = Pod::new(
        "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sleep, '1000']}]",
    );
    client.start();
    client.await_phase("Running");
    assert_ne!(ip(&client), address);
    assert_eq!(
        client.sh("c", &format!("wget -q -O - http://{address}:8080/")),
        "page\n"
    );
}

/// The way out of the pod, which is the same for all pods of the host.
fn gateway(pod: &Pod) -> String {
    let route = "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'";
    pod.sh("c", route).trim().to_owned()
}

/// A file that holds nonsense until this goes.
struct Broken {
    path: &'static str,
    text: Vec<u8>,
}

impl Broken {
    fn new(path: &'static str) -> Self {
        let text = std::fs::read(path).expect("read the file");
        std::fs::write(path, "nonsense").expect("break the file");
        Self { path, text }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, &self.text);
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_whose_way_beyond_the_host_cannot_be_made_fails_and_says_why() {
    // Holds bridge and rules, which are left alone while the settings cannot be read.
    let keeper = Pod::idle();
    let pod = Pod::idle();
    let settings = "/run/vmpod/network/settings.json";
    let broken = Broken::new(settings);
    // It may end with its pod.
    let _ = pod.exec("c", &["ping", "-c", "1", "-W", "1", "192.0.2.77"]);
    let found = pod.await_phase("Failed");
    drop(broken);
    let status = &found["status"];
    assert_eq!(status["reason"], "NetworkFailed", "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("cannot send beyond the pods' network") && message.contains(settings),
        "{message}"
    );
    assert_eq!(keeper.sh("c", "echo well"), "well\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_reaches_the_network_beyond_the_host_through_nat() {
    // A second network beyond the host: a namespace that knows no way back to pods.
    let run = |line: &str| {
        let status = Command::new("sh")
            .args(["-c", line])
            .status()
            .expect("run sh");
        assert!(status.success(), "{line}");
    };
    run(
        "ip netns add beyond && ip link add beyond0 type veth peer name b0 netns beyond && ip addr add 192.0.2.1/24 dev beyond0 && ip link set beyond0 up && ip -n beyond addr add 192.0.2.2/24 dev b0 && ip -n beyond link set b0 up && ip -n beyond link set lo up",
    );
    let mut listener = Command::new("ip")
        .args([
            "netns",
            "exec",
            "beyond",
            "busybox",
            "nc",
            "-l",
            "-p",
            "9000",
            "-e",
            "/bin/echo",
            "from beyond",
        ])
        .spawn()
        .expect("listen");
    let pod = Pod::new(
        "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sleep, '1000']}]",
    );
    let translates = || {
        let listed = Command::new("nft")
            .args(["list", "table", "ip", "vmpod"])
            .output()
            .expect("run nft");
        String::from_utf8_lossy(&listed.stdout).contains("masquerade")
    };
    pod.start();
    pod.await_phase("Running");
    // The host tracks no connections for pods that talk to nobody else, or to each other and the host alone.
    let gateway = gateway(&pod);
    let answer = pod.sh("c", &format!("ping -c 1 {gateway}"));
    assert!(answer.contains("1 packets received"), "{answer}");
    let before = translates();
    let outcome = pod.exec("c", &["sh", "-c", "nc 192.0.2.2 9000 < /dev/null"]);
    let after = translates();
    let _ = listener.kill();
    let _ = listener.wait();
    run("ip netns del beyond");
    assert!(outcome.out.contains("from beyond"), "{outcome}");
    assert_eq!((before, after), (false, true));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn names_are_set_as_kubernetes_sets_them() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  hostname: box
  hostAliases: [{ip: 192.0.2.7, hostnames: [seven, sieben]}]
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [example.org], options: [{name: ndots, value: '3'}]}
  containers:
  - {name: a, image: busybox, command: [sh, -c, 'hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf']}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    for text in [
        "# Kubernetes-managed hosts file",
        "127.0.0.1\tlocalhost",
        "192.0.2.7\tseven\tsieben",
        "\tbox",
        "nameserver 192.0.2.53",
        "search example.org",
        "options ndots:3",
    ] {
        assert!(outcome.out.contains(text), "no {text:?}: {outcome}");
    }
    assert!(
        outcome
            .out
            .lines()
            .next()
            .is_some_and(|l| l.ends_with("box")),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn large_transfers_arrive_whole_in_both_directions() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sh, -c, 'mkdir /w; dd if=/dev/urandom of=/w/part bs=1M count=4 2>/dev/null; mv /w/part /w/big; httpd -f -p 8080 -h /w']}]",
    );
    pod.start();
    pod.await_phase("Running");
    let address = ip(&pod);
    let there = eventually("the file", || {
        Some(pod.exec("c", &["md5sum", "/w/big"])).filter(|o| o.code == 0 && o.out.len() > 32)
    })
    .out;
    let here = eventually("the transfer", || {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("curl -s -f --max-time 60 http://{address}:8080/big | md5sum"),
            ])
            .output()
            .expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.starts_with(there.split_whitespace().next()?)
            .then_some(text)
    });
    assert!(here.starts_with(there.split_whitespace().next().unwrap_or("-")));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_cannot_send_as_another_and_nobody_hears_it_say_so() {
    let victim = server();
    let address = ip(&victim);
    // Everything that a container can be given: the address is not the guest's to choose.
    let thief = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sleep, '1000'], securityContext: {privileged: true}}]",
    );
    thief.start();
    thief.await_phase("Running");
    let own = ip(&thief);
    let gateway = gateway(&thief);
    // Both are known to the host.
    assert_eq!(
        thief
            .exec("c", &["ping", "-c", "1", "-W", "10", &gateway])
            .code,
        0
    );
    assert!(get(&format!("http://{address}:8080/")).is_some());
    let neighbour = |address: &str| {
        let output = Command::new("ip")
            .args(["neigh", "show", address, "dev", "vmpod0"])
            .output()
            .expect("run ip");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .skip_while(|word| *word != "lladdr")
            .nth(1)
            .map(str::to_owned)
    };
    let macs = (neighbour(&address), neighbour(&own));
    assert!(macs.0.is_some() && macs.0 != macs.1, "{macs:?}");

    // The other's address beside the own one: announced, used, asked with.
    let said = thief.sh(
        "c",
        &format!(
            "ip addr add {address}/32 dev eth0; for how in -A -U; do arping $how -c 3 -I eth0 -s {address} {gateway}; done; true"
        ),
    );
    assert!(said.contains("Sent 3 probe"), "{said}");
    assert_ne!(
        thief
            .exec(
                "c",
                &["ping", "-c", "2", "-W", "2", "-I", &address, &gateway]
            )
            .code,
        0,
        "an answer to another's question"
    );
    assert_eq!(neighbour(&address), macs.0, "the host believes the thief");
    assert_eq!(
        get(&format!("http://{address}:8080/")).as_deref(),
        Some("page\n")
    );
    let _ = thief.sh("c", &format!("ip addr del {address}/32 dev eth0"));

    // The other's MAC address: the bridge would send the other's frames to the thief.
    let mac = macs.0.expect("checked above");
    let line = format!(
        "ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up && ip addr; ping -c 2 -W 2 {gateway}"
    );
    assert_ne!(thief.exec("c", &["sh", "-c", &line]).code, 0);
    assert_eq!(
        get(&format!("http://{address}:8080/")).as_deref(),
        Some("page\n")
    );
    // With its own back it is a member like any other: the route went with the link.
    let line = format!(
        "ip link set eth0 down && ip link set eth0 address {} && ip link set eth0 up && ip addr && ping -c 1 -W 10 {gateway}",
        macs.1.expect("known since the first ping")
    );
    let outcome = thief.exec("c", &["sh", "-c", &line]);
    assert_eq!(outcome.code, 0, "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_says_nothing_of_ipv6_to_its_neighbours() {
    let spec = "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sleep, '1000']}]";
    let [one, two] = [Pod::new(spec), Pod::new(spec)];
    for pod in [&one, &two] {
        pod.start();
        pod.await_phase("Running");
    }
    // The kernel gives each its link-local address by itself.
    let line = "ip -6 addr show dev eth0 scope link | sed -n '/tentative/!s/.*inet6 \\(fe80[^/]*\\).*/\\1/p'";
    let address = eventually("a link-local address", || {
        Some(one.sh("c", line).trim().to_owned()).filter(|address| !address.is_empty())
    });
    let ping = |pod: &Pod, address: &str| {
        pod.exec(
            "c",
            &["ping", "-6", "-c", "2", "-W", "3", "-I", "eth0", address],
        )
        .code
    };
    assert_eq!(ping(&one, &address), 0, "within the pod");
    assert_ne!(ping(&two, &address), 0, "from another");
}
