//! Pods with a user namespace of their own (`hostUsers: false`): whose files are whose, and what root of the pod may do.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use vmpod_tests::{Pod, eventually, vmpod};

/// A line of uid_map or gid_map with its blanks made one.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ids_of_files_are_the_pods_on_both_sides() {
    let pod = Pod::new(
        "
  hostUsers: false
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 88}
  volumes:
  - {name: host, hostPath: {path: DIR/data}}
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: api, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: image, image: {reference: busybox}}
  containers:
  - name: root
    image: busybox
    command: [sleep, '1000']
    volumeMounts:
    - {name: host, mountPath: /host}
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: api, mountPath: /api}
    - {name: image, mountPath: /image}
  - name: user
    image: busybox
    command: [sh, -c, 'id -u > /dev/stdout; exec sleep 1000']
    securityContext: {runAsUser: 1000, runAsGroup: 1001}
    volumeMounts: [{name: host, mountPath: /host}, {name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]",
    );
    let data = pod.directory.path().join("data");
    fs::create_dir(&data).expect("make the volume");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("open the volume");
    for (name, id) in [("of-root", 0), ("of-user", 1000), ("of-none", 70_000)] {
        fs::write(data.join(name), name).expect("write");
        chown(data.join(name), Some(id), Some(id)).expect("chown");
    }
    pod.start();
    pod.await_phase("Running");
    for map in ["uid_map", "gid_map"] {
        let text = pod.sh("root", &format!("cat /proc/self/{map}"));
        assert_eq!(words(&text), "0 65536 65536", "{map}");
    }
    assert_eq!(
        pod.sh("root", "cd /host; stat -c %u:%g of-root of-user of-none"),
        "0:0\n1000:1000\n65534:65534\n"
    );
    let places = "/ /bin/busybox /etc/hosts /host /disk /memory /dev/shm /api/name /image/bin/busybox /dev/termination-log";
    let owners = pod.sh("root", &format!("stat -L -c '%n %u:%g' {places}"));
    assert_eq!(
        owners,
        "/ 0:0\n/bin/busybox 0:0\n/etc/hosts 0:0\n/host 0:0\n/disk 0:88\n/memory 0:88\n/dev/shm 0:0\n/api/name 0:88\n/image/bin/busybox 0:0\n/dev/termination-log 0:0\n"
    );
    let _ = pod.sh(
        "root",
        "echo x > /host/by-root; mkdir /host/dir; touch /host/given; chown 7:8 /host/given; echo 1.2.3.4 h >> /etc/hosts; \
         echo y > /new; chown 5:6 /new; rm /bin/true; cp /bin/busybox /bin/bb; touch /memory/f /disk/f; cat /host/of-root",
    );
    assert_eq!(
        pod.sh("root", "stat -c %u:%g /new /memory/f /disk/f"),
        "5:6\n0:88\n0:88\n"
    );
    let _ = pod.sh(
        "user",
        "touch /host/by-user /disk/u /memory/u; cat /host/of-user; ! touch /x 2> /dev/null",
    );
    for (name, uid, gid) in [
        ("by-root", 0, 0),
        ("dir", 0, 0),
        ("given", 7, 8),
        ("by-user", 1000, 1001),
    ] {
        let found = fs::metadata(data.join(name)).expect(name);
        assert_eq!((found.uid(), found.gid()), (uid, gid), "{name}");
    }
    assert_eq!(
        pod.sh("root", "stat -c %u:%g /disk/u /memory/u"),
        "1000:88\n1000:88\n"
    );
    eventually("the user's output", || {
        pod.logs("user").contains("1000").then_some(())
    });
    // Somebody whom the pod does not have owns it: not even root of the pod may.
    let outcome = pod.exec("root", &["sh", "-c", "echo z >> /host/of-none"]);
    assert_ne!(outcome.code, 0, "{outcome}");

    let file = pod.directory.path().join("copied");
    fs::write(&file, "copied").expect("write");
    let there = format!("{}:/root/copied", pod.name);
    vmpod(["cp", "-c", "root", &file.to_string_lossy(), &there]).ok();
    assert_eq!(
        pod.sh("root", "cat /root/copied; stat -c %u:%g /root/copied"),
        "copied0:0\n"
    );
    let back = pod.directory.path().join("back");
    let from = format!("{}:/new", pod.name);
    vmpod(["cp", "-c", "root", &from, &back.to_string_lossy()]).ok();
    assert_eq!(fs::read_to_string(back).expect("copied back"), "y\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn root_has_power_over_the_pods_namespaces_alone() {
    let pod = Pod::new(
        "
  hostUsers: false
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  securityContext: {sysctls: [{name: net.core.somaxconn, value: '777'}, {name: kernel.shmmni, value: '123'}]}
  initContainers:
  - {name: first, image: busybox, command: [sh, -c, 'echo done > /dev/stdout']}
  containers:
  - name: web
    image: busybox
    command: [sh, -c, 'echo hello > /index.html; exec httpd -f -p 80 -h /']
    ports: [{containerPort: 80, hostPort: 18087}]
    readinessProbe: {httpGet: {port: 80, path: /index.html}, periodSeconds: 1}
    livenessProbe: {exec: {command: [sh, -c, 'test $(id -u) = 0']}, periodSeconds: 1}
    securityContext: {capabilities: {add: [NET_ADMIN, SYS_ADMIN]}}
  - name: powerful
    image: busybox
    command: [sleep, '1000']
    securityContext: {privileged: true}",
    );
    pod.start();
    pod.await_phase("Running");
    eventually("a ready pod", || {
        (pod.container("web")["ready"] == true).then_some(())
    });
    let of_agent = pod.sh("web", "readlink /proc/self/ns/user");
    assert_eq!(pod.sh("powerful", "readlink /proc/self/ns/user"), of_agent);
    let list = pod.sh("web", "ps");
    assert!(
        list.contains("sleep 1000") && list.contains("httpd"),
        "{list}"
    );
    assert_ne!(pod.sh("powerful", "cat /proc/1/comm"), "sleep\n");
    assert_eq!(
        pod.sh(
            "web",
            "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni; ls /sys/class/net"
        ),
        "777\n123\neth0\nlo\n"
    );
    // The pod's network and mounts are root's to change.
    let _ = pod.sh(
        "powerful",
        "set -e; ip addr add 10.99.0.1/32 dev lo; ip route add 10.98.0.0/16 dev lo; \
         mkdir -p /mnt; mount -t tmpfs none /mnt; hostname other; echo 1 > /proc/sys/net/ipv4/ip_forward",
    );
    assert!(pod.sh("web", "ip addr").contains("10.99.0.1/32"));
    // What is the machine's is not.
    for line in [
        "echo 5 > /proc/sys/kernel/panic",
        "echo x > /dev/kmsg",
        "mknod /tmp/null c 1 3",
        "date -s 2000-01-01; test $(date +%Y) = 2000",
        "mount -t ext4 /dev/loop0 /mnt",
        "cat /proc/1/root/etc/passwd > /dev/null && ls /proc/1/root/",
    ] {
        let outcome = pod.exec("powerful", &["sh", "-c", line]);
        assert_ne!(outcome.code, 0, "{line}: {outcome}");
    }
    let address = pod.inspect()["status"]["podIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for place in [format!("{address}:80"), "127.0.0.1:18087".to_owned()] {
        let text = eventually(&format!("an answer of {place}"), || {
            let found = std::process::Command::new("curl")
                .args(["-s", "-m", "5"])
                .arg(format!("http://{place}/index.html"))
                .output()
                .ok()?;
            found
                .status
                .success()
                .then(|| String::from_utf8_lossy(&found.stdout).into_owned())
        });
        assert_eq!(text, "hello\n");
    }
    assert_eq!(pod.container("web")["restartCount"], 0);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn terminal_and_restart_work_with_mapped_users() {
    let pod = Pod::new(
        "
  hostUsers: false
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo x >> /v/starts; test $(wc -l < /v/starts) -ge 2 || exit 3; tty; stat -c %u:%g /v/starts; exec sleep 1000']
    tty: true
    volumeMounts: [{name: v, mountPath: /v}]",
    );
    pod.start();
    eventually("a second attempt", || {
        (pod.container("c")["restartCount"] == 1
            && pod.container("c")["state"]["running"].is_object())
        .then_some(())
    });
    eventually("the terminal", || {
        let log = pod.logs("c");
        (log.contains("/dev/pts/0") && log.contains("0:0")).then_some(())
    });
    assert_eq!(pod.sh("c", "cat /proc/self/oom_score_adj"), "1000\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ids_that_the_pod_does_not_have_and_disks_are_refused() {
    let pod = Pod::new(
        "
  hostUsers: false
  securityContext: {runAsUser: 65536, fsGroup: 65535}
  volumes: [{name: d, hostPath: {path: DIR/pod.yaml}}]
  containers:
  - {name: c, image: busybox, volumeDevices: [{name: d, devicePath: /dev/xvda}]}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 2, "{outcome}");
    for words in [
        "spec.securityContext.runAsUser: Invalid value: 65536: must be between 0 and 65535",
        "spec.containers[0].volumeDevices: Forbidden: disks belong to root of the pod's machine",
    ] {
        assert!(outcome.err.contains(words), "{outcome}");
    }
    assert!(!outcome.err.contains("fsGroup"), "{outcome}");
}
