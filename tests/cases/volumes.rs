//! Volumes: what containers and host see of each other's files.

use vmpod_tests::{Pod, eventually, vmpod};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn host_path_is_shared_both_ways_at_once() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, hostPath: {path: DIR/made, type: DirectoryOrCreate}}]
  containers:
  - {name: a, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: b, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /w}]}",
    );
    pod.start();
    pod.await_phase("Running");
    let host = pod.directory.path().join("made");
    let _ = pod.sh("a", "echo from-a > /v/file");
    assert_eq!(pod.sh("b", "cat /w/file"), "from-a\n");
    assert_eq!(
        std::fs::read_to_string(host.join("file")).expect("read"),
        "from-a\n"
    );
    // The guest has read the file: a changed content and a new size must be seen by the very next read.
    std::fs::write(host.join("file"), "changed on the host\n").expect("write");
    assert_eq!(pod.sh("a", "cat /v/file"), "changed on the host\n");
    std::fs::write(host.join("new"), "").expect("write");
    assert_eq!(pod.sh("b", "ls /w"), "file\nnew\n");
    std::fs::remove_file(host.join("file")).expect("remove");
    assert_eq!(pod.sh("b", "ls /w"), "new\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn host_path_types_are_made_or_checked() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes:
  - {name: f, hostPath: {path: DIR/file, type: FileOrCreate}}
  - {name: d, hostPath: {path: DIR/dir, type: DirectoryOrCreate}}
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo text > /f; echo text > /d/x']
    volumeMounts: [{name: f, mountPath: /f}, {name: d, mountPath: /d}]",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    for file in ["file", "dir/x"] {
        assert_eq!(
            std::fs::read_to_string(pod.directory.path().join(file)).expect(file),
            "text\n"
        );
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn read_only_mount_refuses_writes() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, hostPath: {path: DIR}}]
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'echo x > /v/new'], volumeMounts: [{name: v, mountPath: /v, readOnly: true}]}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 1, "{outcome}");
    assert!(
        outcome.out.contains("Read-only file system")
            || outcome.err.contains("Read-only file system"),
        "{outcome}"
    );
    assert!(!pod.directory.path().join("new").exists());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn memory_volume_is_a_tmpfs_of_its_size_shared_by_containers() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
  containers:
  - {name: a, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: b, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v, subPath: deep/er}]}",
    );
    pod.start();
    pod.await_phase("Running");
    assert!(pod.sh("a", "grep ' /v ' /proc/mounts").starts_with("tmpfs"));
    let _ = pod.sh("b", "echo here > /v/f");
    assert_eq!(pod.sh("a", "cat /v/deep/er/f"), "here\n");
    let full = pod.exec(
        "a",
        &["dd", "if=/dev/zero", "of=/v/big", "bs=1M", "count=16"],
    );
    assert_ne!(full.code, 0, "{full}");
    assert!(full.err.contains("No space left"), "{full}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn empty_dir_lives_as_long_as_the_pod() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'ls -A /v | wc -l; touch /v/x'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    for _ in 0..2 {
        let outcome = pod.run();
        assert_eq!(outcome.code, 0, "{outcome}");
        assert!(outcome.out.trim_end().ends_with('0'), "{outcome}");
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn config_map_and_secret_are_files_with_modes() {
    let text = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello, other: x}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: t0ken}
---
apiVersion: v1
kind: Pod
metadata: {name: with-objects}
spec:
  restartPolicy: Never
  volumes:
  - {name: m, configMap: {name: settings, items: [{key: greeting, path: a/b}]}}
  - {name: s, secret: {secretName: keys, defaultMode: 0o400}}
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'cat /m/a/b; echo; stat -L -c %a /s/token; cat /s/token; echo; echo $G; cat /one']
    env: [{name: G, valueFrom: {configMapKeyRef: {name: settings, key: other}}}]
    volumeMounts: [{name: m, mountPath: /m}, {name: s, mountPath: /s}, {name: s, mountPath: /one, subPath: token}]
";
    let outcome = Pod::of_text("with-objects", text).run();
    assert_eq!(outcome.code, 0, "{outcome}");
    for line in ["hello", "400", "t0ken", "x"] {
        assert!(
            outcome.out.lines().any(|l| l.ends_with(line)),
            "no {line}: {outcome}"
        );
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn sub_path_cannot_lead_out_of_its_volume() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, hostPath: {path: DIR/vol, type: DirectoryOrCreate}}]
  initContainers:
  - {name: i, image: busybox, command: [ln, -s, /, /v/evil], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: c, image: busybox, command: [ls, /x], volumeMounts: [{name: v, mountPath: /x, subPath: evil/etc}]}",
    );
    let outcome = pod.run();
    // Resolved with the volume as root, `evil` is the volume itself: what is listed is at most an empty directory.
    assert!(
        !outcome.out.contains("passwd") && !outcome.out.contains("hosts"),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn bidirectional_mount_is_seen_by_a_neighbour() {
    // One volume that is a directory of the host, one in the guest's memory: both are mounts in the guest, made in
    // different ways.
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}, {name: w, emptyDir: {medium: Memory}}]
  containers:
  - name: before
    image: busybox
    command: [sleep, '1000']
    volumeMounts:
    - {name: v, mountPath: /v, mountPropagation: HostToContainer}
    - {name: w, mountPath: /w, mountPropagation: HostToContainer}
  - name: apart
    image: busybox
    command: [sleep, '1000']
    volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w, mountPropagation: None}]
  - name: mounter
    image: busybox
    securityContext: {privileged: true}
    command: [sleep, '1000']
    volumeMounts:
    - {name: v, mountPath: /v, mountPropagation: Bidirectional}
    - {name: w, mountPath: /w, mountPropagation: Bidirectional}
  - name: after
    image: busybox
    command: [sleep, '1000']
    volumeMounts:
    - {name: v, mountPath: /v, mountPropagation: HostToContainer}
    - {name: w, mountPath: /w, mountPropagation: HostToContainer}",
    );
    pod.start();
    for container in ["before", "apart", "mounter", "after"] {
        eventually(&format!("container {container} running"), || {
            pod.container(container)["state"]["running"]
                .is_object()
                .then_some(())
        });
    }
    for volume in ["/v", "/w"] {
        let place = format!("{volume}/m");
        let mount = format!("mkdir {place} && mount -t tmpfs none {place} && touch {place}/seen");
        assert_eq!(pod.sh("mounter", &mount), "");
        for neighbour in ["before", "after"] {
            assert_eq!(pod.sh(neighbour, &format!("ls {place}")), "seen\n");
        }
        assert_eq!(pod.sh("apart", &format!("ls {place}")), "");
        // Its end is seen as well.
        assert_eq!(pod.sh("mounter", &format!("umount {place}")), "");
        for neighbour in ["before", "after"] {
            assert_eq!(pod.sh(neighbour, &format!("ls {place}")), "");
        }
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn bidirectional_bind_in_a_host_path_is_a_mount_of_the_host_until_the_pod_ends() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, hostPath: {path: DIR/shared, type: DirectoryOrCreate}}]
  containers:
  - name: mounter
    image: busybox
    securityContext: {privileged: true}
    command: [sleep, '1000']
    volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]",
    );
    pod.start();
    pod.await_phase("Running");
    let point = pod.directory.path().join("shared/point");
    let mounts = || {
        let text = std::fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        let place = format!(" {} ", point.display());
        text.lines().filter(|line| line.contains(&place)).count()
    };
    let mount =
        "mkdir -p /v/real /v/point && echo text > /v/real/file && mount --bind /v/real /v/point";
    assert_eq!(pod.sh("mounter", mount), "");
    assert_eq!(mounts(), 1);
    assert_eq!(
        std::fs::read_to_string(point.join("file")).expect("read through the mount"),
        "text\n"
    );
    assert_eq!(pod.sh("mounter", "umount /v/point"), "");
    eventually("the end of the mount on the host", || {
        (mounts() == 0).then_some(())
    });
    // What a pod leaves mounted goes with it.
    assert_eq!(pod.sh("mounter", mount), "");
    assert_eq!(mounts(), 1);
    vmpod(["stop", &pod.name]).ok();
    assert_eq!(mounts(), 0);
    assert!(point.is_dir() && !point.join("file").exists());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn config_map_comes_from_a_file_of_its_own() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: m, configMap: {name: apart}}]
  containers: [{name: c, image: busybox, command: [cat, /m/key], volumeMounts: [{name: m, mountPath: /m}]}]",
    );
    vmpod(["run"])
        .arg(pod.manifest())
        .fails(2, &["spec.volumes[0]", "apart"]);
    let file = pod.directory.path().join("objects.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: apart}\ndata: {key: from-a-file}\n",
    )
    .unwrap();
    let outcome = vmpod(["run", "--rm", "--configmap"])
        .arg(&file)
        .arg(pod.manifest())
        .run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.contains("from-a-file"), "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_over_the_size_limit_of_its_empty_dir_is_evicted_with_the_volume_named() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]
  containers: [{name: c, image: busybox, command: [sh, -c, 'dd if=/dev/zero of=/s/x bs=1M count=3; sleep 1000'], volumeMounts: [{name: scratch, mountPath: /s}]}]",
    );
    pod.start();
    let status = pod.await_phase("Failed")["status"].clone();
    assert_eq!(status["reason"], "Evicted", "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("scratch") && message.contains("1048576 bytes"),
        "{message}"
    );
}

/// Prints the events of the paths that it is given, as `WATCH MASK NAME`: watches count from 1, the mask is hexadecimal.
/// It watches for what changes files, and not for reading.
pub const WATCHER: &str = r#"
    command:
    - perl
    - -e
    - |
      $| = 1;
      my $fd = syscall(294, 0);
      for my $path (@ARGV) { syscall(254, $fd, $path, 0xfce) > 0 or die "watch $path: $!" }
      open(my $queue, "<&=", $fd) or die $!;
      print "ready\n";
      while (sysread($queue, my $bytes, 65536)) {
        while (length $bytes) {
          my ($watch, $mask, $cookie, $len) = unpack("iIII", $bytes);
          printf "%d %x %s\n", $watch, $mask, unpack("Z*", substr($bytes, 16, $len));
          $bytes = substr($bytes, 16 + $len);
        }
      }
"#;

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn inotify_in_the_guest_tells_what_the_host_changes() {
    let pod = Pod::new(&format!(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{{name: v, hostPath: {{path: DIR/made, type: DirectoryOrCreate}}}}]
  containers:
  - name: c
    image: debian
    volumeMounts: [{{name: v, mountPath: /v}}]{WATCHER}    - /v
    - /v/key"
    ));
    // As a kubelet lays out a configMap.
    let host = pod.directory.path().join("made");
    let path = |name: &str| host.join(name);
    let revision = |name: &str, text: &str| {
        std::fs::create_dir_all(path(name)).expect("make a directory");
        std::fs::write(path(name).join("key"), text).expect("write");
        std::os::unix::fs::symlink(name, path("..data_tmp")).expect("link");
        std::fs::rename(path("..data_tmp"), path("..data")).expect("rename");
    };
    revision("..one", "one");
    std::os::unix::fs::symlink("..data/key", path("key")).expect("link");
    pod.start();
    let told = |event: &str| {
        eventually(&format!("the event {event:?}"), || {
            let log = pod.logs("c");
            log.lines()
                .any(|line| line.trim_end() == event)
                .then_some(log)
        })
    };
    told("ready");
    std::fs::write(path("new"), "text").expect("write");
    for event in ["1 100 new", "1 2 new", "1 8 new"] {
        told(event);
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path("new"), mode).expect("chmod");
    told("1 4 new");
    std::fs::rename(path("new"), path("renamed")).expect("rename");
    told("1 40 new");
    told("1 80 renamed");
    std::fs::remove_file(path("renamed")).expect("remove");
    told("1 200 renamed");

    revision("..two", "two");
    told("1 80 ..data");
    assert_eq!(pod.sh("c", "cat /v/key"), "two");
    std::fs::remove_dir_all(path("..one")).expect("remove");
    for event in ["1 40000200 ..one", "2 4", "2 400", "2 8000"] {
        told(event);
    }

    // What the guest does itself is told once, by its own kernel.
    let _ = pod.sh("c", "echo text > /v/own; mv /v/own /v/mine");
    std::fs::write(path("mark"), "").expect("write");
    let log = told("1 100 mark");
    for event in ["1 100 own", "1 2 own", "1 8 own", "1 40 own", "1 80 mine"] {
        let times = log.lines().filter(|line| *line == event).count();
        assert_eq!(times, 1, "{event:?} in\n{log}");
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn files_of_the_host_are_read_ahead_in_large_requests() {
    let pod = Pod::idle();
    // One for all shares and what is mounted in them; block devices of the guest have another name.
    let found = pod.sh("c", "cat /sys/class/bdi/0:*/read_ahead_kb");
    assert!(found.lines().any(|line| line == "512"), "{found}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn volume_devices_are_disks_of_the_machine() {
    let pod = Pod::new(
        "  containers:
  - name: c
    image: busybox
    command: [sh, -c, \"sleep 1000\"]
    securityContext: {privileged: true}
    volumeDevices: [{name: disk, devicePath: /dev/disk}, {name: other, devicePath: /dev/other}]
  - name: d
    image: busybox
    command: [sh, -c, \"sleep 1000\"]
    volumeDevices: [{name: disk, devicePath: /dev/same}]
  volumes:
  - {name: disk, hostPath: {path: DIR/disk, type: File}}
  - {name: other, hostPath: {path: DIR/other}}
",
    );
    let disk = pod.directory.path().join("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    std::fs::write(pod.directory.path().join("other"), [b'o'; 512]).unwrap();
    pod.start();
    pod.await_phase("Running");
    assert_eq!(
        pod.sh(
            "c",
            "wc -c < /dev/disk; wc -c < /dev/other; head -c 1 /dev/other"
        ),
        "4194304\n512\no"
    );
    // A file system of its own, made, mounted and written to by the container.
    let line = "mke2fs /dev/disk >/dev/null 2>&1 && mkdir /m && mount -t ext4 /dev/disk /m && echo kept > /m/file && umount /m";
    assert_eq!(pod.sh("c", line), "");
    // The other container has the same disk under another name, and the host the bytes.
    let same = "dd if=/dev/same bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1";
    assert_eq!(pod.sh("d", same).trim(), "53 ef");
    let bytes = std::fs::read(&disk).unwrap();
    assert_eq!(bytes[1080..1082], [0x53, 0xef]);
    assert!(bytes.windows(5).any(|part| part == b"kept\n"));
    let missing = Pod::new(
        "  containers:
  - {name: c, image: busybox, volumeDevices: [{name: disk, devicePath: /dev/disk}]}
  volumes: [{name: disk, hostPath: {path: /proc, type: Directory}}]
",
    );
    let outcome = missing.run();
    assert_ne!(outcome.code, 0);
    assert!(
        outcome
            .err
            .contains("/proc is neither a block device nor a file"),
        "{outcome}"
    );
}
