//! Users, capabilities, filters, namespaces: what a container is and may do.

use vmpod_tests::Pod;

/// Runs a shell line in a container with these fields and returns its output without the name in front.
fn shell(fields: &str, line: &str) -> String {
    let pod = Pod::new(&format!(
        "  restartPolicy: Never\n  containers:\n  - name: c\n    image: busybox\n    command: [sh, -c, '{line}']\n{fields}"
    ));
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    outcome.out
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn user_and_groups_are_those_asked_for() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  securityContext: {runAsUser: 1234, runAsGroup: 2345, supplementalGroups: [77], fsGroup: 88}
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'id; touch /v/f; stat -c %u:%g /v/f'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome.out.contains("uid=1234 gid=2345 groups=")
            && outcome.out.contains("77")
            && outcome.out.contains("1234:88"),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn capabilities_are_the_default_set_or_what_is_asked_for() {
    let caps = |fields: &str| {
        let out = shell(fields, "grep CapEff /proc/self/status");
        u64::from_str_radix(out.split_whitespace().last().unwrap_or_default(), 16)
            .expect("hexadecimal")
    };
    assert_eq!(
        caps(""),
        0xa804_25fb,
        "the default set of containerd and Docker"
    );
    assert_eq!(
        caps("    securityContext: {capabilities: {drop: [ALL]}}"),
        0
    );
    assert_eq!(
        caps("    securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}}"),
        1 << 12
    );
    assert_eq!(
        caps("    securityContext: {privileged: true}"),
        (1 << 41) - 1
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn root_file_system_read_only_and_no_new_privileges_hold() {
    let out = shell(
        "    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}",
        "touch /x 2>&1; grep NoNewPrivs /proc/self/status; echo ok > /dev/shm/x; echo end",
    );
    assert!(
        out.contains("Read-only file system")
            && out.contains("NoNewPrivs:\t1")
            && out.contains("end"),
        "{out}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn runtime_default_filter_refuses_what_containers_do_not_need() {
    let fields = "    securityContext: {seccompProfile: {type: RuntimeDefault}}";
    let out = shell(
        fields,
        "grep ^Seccomp: /proc/self/status; unshare -m true 2>&1; echo end",
    );
    assert!(
        out.contains("Seccomp:\t2") && out.contains("not permitted") && out.contains("end"),
        "{out}"
    );
    assert!(shell("", "grep ^Seccomp: /proc/self/status").contains("Seccomp:\t0"));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn proc_is_masked_unless_privileged() {
    let out = shell("", "(echo 5 > /proc/sys/kernel/panic) 2>&1; echo end");
    assert!(out.contains("Read-only") || out.contains("denied"), "{out}");
    assert!(out.contains("end"), "{out}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn namespaces_are_shared_as_the_pod_says() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: busybox, command: [sleep, '1000']}
  - {name: b, image: busybox, command: [sleep, '1001']}",
    );
    pod.start();
    pod.await_phase("Running");
    let of =
        |container: &str, kind: &str| pod.sh(container, &format!("readlink /proc/self/ns/{kind}"));
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(of("a", kind), of("b", kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(of("a", kind), of("b", kind), "{kind}");
    }
    assert!(!pod.sh("a", "ps").contains("1001"));
    assert_eq!(pod.sh("a", "cat /proc/1/comm"), "sleep\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn shared_process_namespace_shows_neighbours_below_a_pause_process() {
    let pod = Pod::new(
        "
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: busybox, command: [sleep, '1000']}
  - {name: b, image: busybox, command: [sleep, '1001']}",
    );
    pod.start();
    pod.await_phase("Running");
    let list = pod.sh("a", "ps");
    assert!(
        list.contains("sleep 1000") && list.contains("sleep 1001"),
        "{list}"
    );
    assert_ne!(pod.sh("a", "cat /proc/1/comm"), "sleep\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn sysctls_of_the_pod_are_set() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  securityContext: {sysctls: [{name: net.core.somaxconn, value: '777'}]}
  containers: [{name: c, image: busybox, command: [cat, /proc/sys/net/core/somaxconn]}]",
    );
    assert!(pod.run().out.trim_end().ends_with("777"));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn kernel_of_the_pod_is_not_the_hosts() {
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    let pod = shell("", "cat /proc/sys/kernel/random/boot_id");
    assert!(!pod.contains(host.trim()), "{pod}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn process_of_a_machine_is_nobody_and_sees_nothing_of_the_host() {
    let spec = "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sleep, '1000']}]";
    let pods = [Pod::new(spec), Pod::new(spec)];
    let mut users = Vec::new();
    let mut inodes = Vec::new();
    for pod in &pods {
        pod.start();
        pod.await_phase("Running");
        let vmm = pod.inspect()["vmpod"]["vmmPid"].clone();
        let process = std::path::PathBuf::from(format!("/proc/{vmm}"));
        let file = |name: &str| std::fs::read_to_string(process.join(name)).expect(name);
        let status = file("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let user = field("Uid:")[0].clone();
        assert_eq!(field("Uid:"), vec![user.clone(); 4]);
        assert_eq!(field("Gid:"), vec![user.clone(); 4]);
        assert!(
            user.parse::<u32>().expect("a number") >= 0x7000_0000,
            "{user}"
        );
        assert!(field("Groups:").is_empty());
        for (name, value) in [
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
            ("CapEff:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapInh:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
            ("CapBnd:", "00000000880000df"),
        ] {
            assert_eq!(field(name), [value], "{name}");
        }
        // The second number is the one that it knows itself by: the first process of its namespace.
        assert_eq!(field("NSpid:")[1..], ["1"]);
        for kind in ["mnt", "net", "ipc", "uts", "pid"] {
            let of = |process: &std::path::Path| {
                std::fs::read_link(process.join("ns").join(kind)).expect(kind)
            };
            assert_ne!(
                of(&process),
                of(std::path::Path::new("/proc/self")),
                "{kind}"
            );
            inodes.push(of(&process));
        }
        assert_eq!(
            std::fs::read(process.join("environ")).expect("environ"),
            b""
        );
        let seen: Vec<String> = std::fs::read_dir(process.join("root"))
            .expect("its root")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        assert!(
            seen.iter()
                .all(|name| ["console", "proc", "share", "vsock"].contains(&name.as_str())),
            "{seen:?}"
        );
        assert!(
            file("net/dev")
                .lines()
                .all(|line| !line.contains("eth") && !line.contains("vmpod"))
        );
        let core = file("limits")
            .lines()
            .any(|line| line.starts_with("Max core file size        0 "));
        assert!(core, "{}", file("limits"));
        users.push(user);
    }
    // Nor do two machines share a user or a namespace.
    assert_ne!(users[0], users[1]);
    let count = inodes.len();
    inodes.sort();
    inodes.dedup();
    assert_eq!(inodes.len(), count);
    // The guest's root is root in files all the same, and others are others.
    assert_eq!(
        pods[0].sh(
            "c",
            "touch /f; chown 7:8 /f; stat -c %u:%g /f; touch /g; stat -c %u:%g /g"
        ),
        "7:8\n0:0\n"
    );
}
