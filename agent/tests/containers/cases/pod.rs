//! What the containers of a pod share.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use serde_json::json;
use vmpod_agent::container::{ContainerError, Containers as _};
use vmpod_agent::sandbox::Sandbox;
use vmpod_agent_protocol::messages::{
    MemoryVolume, Neighbour, NetworkInterface, Route, SandboxConfig, UserNamespace,
};

use crate::fixture::{DEFAULT_CAPABILITIES, Fixture, skip, until};

/// File systems of the case's own where the sandbox mounts and writes.
fn private_places() {
    for place in ["/run", "/dev/shm"] {
        mount(
            Some("case"),
            place,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
    }
}

pub async fn containers_share_processes_when_the_pod_says_so(fixture: Fixture) {
    private_places();
    let sandbox = Sandbox::new(fixture.engine.clone());
    let request = SandboxConfig {
        hostname: "the-pod".into(),
        share_process_namespace: true,
        memory_volumes: vec![MemoryVolume {
            guest_path: "/run/vmpod/memory/cache".into(),
            size_bytes: 1 << 20,
            mode: 0o1777,
            gid: 5,
            ..Default::default()
        }],
        shm_size_bytes: 8 << 20,
        ..Default::default()
    };
    sandbox.configure(&request).unwrap();
    assert!(matches!(
        sandbox.configure(&request),
        Err(ContainerError::FailedPrecondition(_))
    ));
    fixture
        .launch("one", &fixture.spec("one", "exec sleep 12345"))
        .await;
    let mut spec = fixture.spec(
        "two",
        "cat /proc/1/comm; ls /proc/1/root 2>&1 | wc -l; grep -E '^(Uid|CapEff)' /proc/1/status | tr '\\n' ' '; echo; ps | grep -c '[s]leep 12345'; hostname; (sleep 0.1 &) ; grep -c 'size=1024k' /proc/mounts; \
         stat -c %a:%g /cache; echo shared > /dev/shm/word; echo $$",
    );
    // Pod's UTS and IPC namespaces: none of their own.
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] =
            json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    }
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "cgroup");
    mounts.push(
        json!({"destination": "/cache", "type": "bind", "source": "/run/vmpod/memory/cache",
                       "options": ["rbind", "rprivate"]}),
    );
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]}));
    let (status, output) = fixture.complete("two", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    assert!(
        output.starts_with(
            "pause\n0\nUid:\t65535\t65535\t65535\t65535 CapEff:\t0000000000000000 \n1\nthe-pod\n1\n1777:5\n"
        ),
        "{output}"
    );
    assert!(
        !output.ends_with("\n1\n"),
        "not the first of its namespace: {output}"
    );
    assert_eq!(fs::read_to_string("/dev/shm/word").unwrap(), "shared\n");
    sandbox.unmount();
    assert!(
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains("/run/vmpod/memory/cache")
    );
}

/// Root of the pod has power over the pod's namespaces and none over the agent's.
pub async fn pod_with_a_user_namespace_has_namespaces_of_its_own(fixture: Fixture) {
    private_places();
    let link = |arguments: &[&str]| ip(&[&["link"], arguments].concat());
    let card = [
        "add",
        "card",
        "address",
        "02:00:00:00:00:01",
        "type",
        "veth",
    ];
    if link(&card).is_none() {
        skip("needs the ip command and veth interfaces");
    }
    let sandbox = Sandbox::new(fixture.engine.clone());
    let before = fs::read_link("/proc/self/ns/net").unwrap();
    let request = SandboxConfig {
        hostname: "the-pod".into(),
        share_process_namespace: true,
        interfaces: vec![NetworkInterface {
            mac: "02:00:00:00:00:01".into(),
            name: "eth0".into(),
            addresses: vec!["10.88.0.2/16".into()],
            ..Default::default()
        }],
        memory_volumes: vec![MemoryVolume {
            guest_path: "/run/vmpod/memory/cache".into(),
            mode: 0o2770,
            gid: 5,
            ..Default::default()
        }],
        users: Some(UserNamespace {
            first_uid: 100_000,
            uids: 65_536,
            first_gid: 200_000,
            gids: 65_536,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    sandbox.configure(&request).unwrap();
    assert_ne!(fs::read_link("/proc/self/ns/net").unwrap(), before);
    assert!(ip(&["addr"]).unwrap().contains("10.88.0.2/16"));

    let root = fixture.rootfs("mapped");
    let all = Command::new("chown")
        .args(["-R", "100000:200000"])
        .arg(&root)
        .status();
    assert!(all.unwrap().success());
    let mut spec = fixture.spec(
        "mapped",
        "cat /proc/self/uid_map /proc/self/gid_map; id; cat /proc/1/comm; hostname; hostname other && hostname; \
         nc -l -p 80 > /tmp/got & until echo word | nc 127.0.0.1 80 2> /dev/null; do :; done; wait; cat /tmp/got; stat -c %u:%g:%a /cache /dev/shm /; \
         ls /sys/class/net; echo 1 > /proc/sys/net/ipv4/ip_forward && echo forwards; \
         echo out > /dev/stdout; mknod /tmp/n c 1 3 2>&1; touch /cache/f; exec sleep 1000",
    );
    let capabilities = [DEFAULT_CAPABILITIES, &["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]].concat();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(capabilities);
    }
    spec["process"]["oomScoreAdj"] = json!(7);
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}]);
    spec["linux"]["readonlyPaths"] = json!([]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/cache", "type": "bind", "source": "/run/vmpod/memory/cache",
                       "options": ["rbind", "rprivate"]}),
    );
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]}));
    let name = fixture.launch("mapped", &spec).await;
    let process = json!({"args": ["/bin/sh", "-c", "id -u; cat /proc/self/uid_map; echo 7 > /dev/stdout; touch /tmp/by-exec"],
        "user": {"uid": 7, "gid": 8}, "cwd": "/", "env": ["PATH=/bin"]});
    let (status, output) = fixture.exec("mapped", "user", process).await;
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(
        (status.code, words.as_slice()),
        (
            1,
            [
                "7",
                "0",
                "100000",
                "65536",
                "7",
                "touch:",
                "/tmp/by-exec:",
                "Permission",
                "denied"
            ]
            .as_slice()
        ),
        "{output}"
    );
    until("the script is through", || {
        Path::new("/run/vmpod/memory/cache/f").exists()
    })
    .await;
    fixture
        .engine
        .signal(&name, libc::SIGKILL.unsigned_abs(), true)
        .unwrap();
    let (_, output) = fixture.finish(&name).await;
    let lines: Vec<String> = output
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines,
        [
            "0 100000 65536",
            "0 200000 65536",
            "uid=0(root) gid=0",
            "pause",
            "the-pod",
            "other",
            "word",
            "0:5:2770",
            "0:0:1777",
            "0:0:755",
            "eth0",
            "lo",
            "forwards",
            "out",
            "mknod: /tmp/n: Operation not permitted",
        ],
        "{output}"
    );
    // A container with a user namespace of its own would have no power over the pod's.
    let mut own = fixture.spec("own", "true");
    own["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]);
    for map in ["uidMappings", "gidMappings"] {
        own["linux"][map] = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    }
    let error = fixture.create("own", &own).await.unwrap_err().to_string();
    assert!(
        error.contains("the pod has one that its containers share"),
        "{error}"
    );
}

fn ip(arguments: &[&str]) -> Option<String> {
    let output = Command::new("ip").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

pub async fn network_is_configured_as_asked(fixture: Fixture) {
    // Two links whose names must be exchanged. `ip` is waited for without a pause in which the reaper could run.
    let made = mount(
        Some("sys"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .is_ok()
        && ip(&[
            "link",
            "add",
            "eth1",
            "address",
            "02:00:00:00:00:01",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "address",
            "02:00:00:00:00:02",
        ])
        .is_some();
    if !made {
        skip("needs the ip command and veth interfaces");
    }
    private_places();
    let interface = |mac: &str, name: &str, mtu, addresses: &[&str]| NetworkInterface {
        mac: mac.into(),
        name: name.into(),
        mtu,
        addresses: addresses.iter().map(|&text| text.into()).collect(),
        ..Default::default()
    };
    let route = |destination: &str, gateway: &str, device: &str| Route {
        destination: destination.into(),
        gateway: gateway.into(),
        device: device.into(),
        ..Default::default()
    };
    let mut onlink = route("", "169.254.1.1", "eth0");
    onlink.onlink = true;
    onlink.source = "10.88.0.2".into();
    let mut metric = route("10.99.0.0/16", "10.88.0.1", "eth0");
    metric.metric = 77;
    let request = SandboxConfig {
        interfaces: vec![
            interface(
                "02:00:00:00:00:01",
                "eth0",
                1400,
                &["10.88.0.2/16", "fd00::2/64"],
            ),
            interface("02:00:00:00:00:02", "eth1", 0, &[]),
        ],
        routes: vec![
            onlink,
            metric,
            route("192.168.7.9/24", "", "eth1"),
            route("", "fd00::1", "eth0"),
        ],
        neighbours: vec![Neighbour {
            address: "169.254.1.1".into(),
            mac: "ee:ee:ee:ee:ee:ee".into(),
            device: "eth0".into(),
            ..Default::default()
        }],
        sysctls: [("net.ipv4.conf.eth0.forwarding".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    Sandbox::new(fixture.engine.clone())
        .configure(&request)
        .unwrap();
    let link = fs::read_to_string("/sys/class/net/eth0/address").unwrap();
    assert_eq!(link.trim(), "02:00:00:00:00:01");
    assert_eq!(
        fs::read_to_string("/sys/class/net/eth0/mtu")
            .unwrap()
            .trim(),
        "1400"
    );
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/forwarding")
            .unwrap()
            .trim(),
        "1"
    );
    let show = |arguments: &[&str]| ip(arguments).unwrap();
    let addresses = show(&["addr", "show", "dev", "eth0"]);
    assert!(
        addresses.contains("inet 10.88.0.2/16 brd 10.88.255.255"),
        "{addresses}"
    );
    assert!(addresses.contains("inet6 fd00::2/64"), "{addresses}");
    let routes = show(&["route"]);
    assert!(
        routes.contains("default via 169.254.1.1 dev eth0 src 10.88.0.2 onlink"),
        "{routes}"
    );
    assert!(
        routes.contains("10.99.0.0/16 via 10.88.0.1 dev eth0 metric 77"),
        "{routes}"
    );
    assert!(
        routes.contains("192.168.7.0/24 dev eth1 scope link"),
        "{routes}"
    );
    assert!(show(&["-6", "route"]).contains("default via fd00::1 dev eth0"));
    let neighbours = show(&["neigh"]);
    assert!(
        neighbours.contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"),
        "{neighbours}"
    );
    let bad = SandboxConfig {
        interfaces: vec![interface("02:00:00:00:00:01", "eth0", 0, &[])],
        routes: vec![route("10.1.0.0/16", "172.16.0.1", "eth0")],
        ..Default::default()
    };
    let error = Sandbox::new(fixture.engine.clone())
        .configure(&bad)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("add route to 10.1.0.0/16 by 172.16.0.1: Network is unreachable"),
        "{error}"
    );
}
