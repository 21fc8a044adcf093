//! What containers are started with, and what they leave behind.

use std::io::Write;
use std::net::UdpSocket;
use std::time::Duration;

use vmpod_tests::{Pod, eventually, vmpod};

/// Output of container `name` without its name in front.
fn said(out: &str, name: &str) -> Vec<String> {
    out.lines()
        .filter_map(|line| line.split_once("| "))
        .filter(|(who, _)| who.trim() == name)
        .map(|(_, text)| text.trim_end().to_owned())
        .collect()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn container_starts_where_and_with_what_the_manifest_says() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: bytes, configMap: {name: bytes}}
  containers:
  - name: c
    image: busybox
    workingDir: /made/for/it
    tty: true
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: PLACE, value: $(POD)/logs}
    command: [sh, -c]
    args: ['pwd; test -t 0 && test -t 1 && echo terminal; touch /own/x; ls -d /all/*/logs/x; od -An -tx1 /bytes/b; echo $0 $1', $(PLACE), $$(POD)]
    volumeMounts:
    - {name: scratch, mountPath: /own, subPathExpr: $(PLACE)}
    - {name: scratch, mountPath: /all}
    - {name: bytes, mountPath: /bytes}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bytes}
binaryData: {b: AP/+}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let name = &pod.name;
    assert_eq!(
        said(&outcome.out, "c"),
        [
            "/made/for/it",
            "terminal",
            &format!("/all/{name}/logs/x"),
            " 00 ff fe",
            &format!("{name}/logs $(POD)"),
        ],
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn termination_messages_come_from_files_or_from_the_end_of_the_log() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - {name: file, image: busybox, command: [sh, -c, 'echo -n said by default > /dev/termination-log']}
  - {name: other, image: busybox, terminationMessagePath: /tmp/last, command: [sh, -c, 'echo -n said elsewhere > /tmp/last; exit 3']}
  - {name: log, image: busybox, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, 'echo said in the log; exit 4']}
  - {name: well, image: busybox, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, 'echo not a message']}
  - {name: none, image: busybox, command: [sh, -c, 'echo not a message; exit 5']}",
    );
    pod.start();
    pod.await_phase("Failed");
    let message = |name: &str| {
        let ended = pod.container(name)["state"]["terminated"].clone();
        ended["message"]
            .as_str()
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    };
    assert_eq!(message("file"), "said by default");
    assert_eq!(message("other"), "said elsewhere");
    assert_eq!(message("log"), "said in the log");
    assert_eq!(message("well"), "");
    assert_eq!(message("none"), "");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn standard_input_ends_with_its_first_client_when_it_is_for_one_alone() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: once, image: busybox, stdin: true, stdinOnce: true, command: [sh, -c, 'cat; echo the end']}
  - {name: more, image: busybox, stdin: true, command: [sh, -c, 'cat; echo the end']}",
    );
    pod.start();
    pod.await_phase("Running");
    let type_into = |name: &str, text: &str| {
        let mut child = vmpod(["attach", "-c", name, &pod.name]).spawn();
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("write");
        eventually("what was typed", || {
            pod.logs(name).contains(text).then_some(())
        });
        drop(input);
        child
    };
    // The client ends with the container: whose input has ended with the client's.
    let mut client = type_into("once", "one\n");
    eventually("the end of input", || {
        pod.container("once")["state"]["terminated"]
            .is_object()
            .then_some(())
    });
    assert_eq!(pod.logs("once"), "one\nthe end\n");
    let _ = client.wait();
    // Here one client after the other is served.
    for text in ["one\n", "two\n"] {
        let mut client = type_into("more", text);
        std::thread::sleep(Duration::from_secs(1));
        client.kill().expect("end the client");
        let _ = client.wait();
    }
    assert!(pod.container("more")["state"]["running"].is_object());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn out_of_memory_scores_follow_the_quality_of_service() {
    let score = |resources: &str| {
        let outcome = Pod::new(&format!(
            "
  restartPolicy: Never
  containers: [{{name: c, image: busybox, command: [cat, /proc/self/oom_score_adj], resources: {{{resources}}}}}]"
        ))
        .run();
        let score: i32 = said(&outcome.out, "c")[0].parse().expect("a number");
        score
    };
    // kubelet: qos/policy.go.
    assert_eq!(score(""), 1000);
    assert_eq!(score("limits: {cpu: 100m, memory: 64Mi}"), -997);
    let between = score("requests: {memory: 64Mi}");
    assert!((3..1000).contains(&between), "{between}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn datagrams_reach_a_pod_by_its_host_port() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: debian
    ports: [{containerPort: 7, hostPort: 18207, hostIP: 127.0.0.1, protocol: UDP}]
    command:
    - perl
    - -MIO::Socket::INET
    - -e
    - |
      my $s = IO::Socket::INET->new(LocalPort => 7, Proto => 'udp') or die $!;
      while (defined(my $from = $s->recv(my $text, 1000))) { $s->send(uc $text, 0, $from) }",
    );
    pod.start();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a limit");
    let mut answer = [0; 16];
    let length = eventually("an answer", || {
        // A datagram may come too early, and a refusal of an earlier one with the next call.
        let _ = socket.send_to(b"hello", "127.0.0.1:18207");
        socket.recv(&mut answer).ok()
    });
    assert_eq!(&answer[..length], b"HELLO");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn seccomp_profile_of_the_host_is_applied() {
    let directory = std::path::Path::new("/var/lib/kubelet/seccomp");
    std::fs::create_dir_all(directory).expect("make the directory of profiles");
    std::fs::write(
        directory.join("no-mkdir.json"),
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}"#,
    )
    .expect("write the profile");
    let pod = |profile: &str| {
        Pod::new(&format!(
            "
  restartPolicy: Never
  securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {profile}}}}}
  containers: [{{name: c, image: busybox, command: [sh, -c, 'touch /file && mkdir /directory 2>&1']}}]"
        ))
    };
    let outcome = pod("no-mkdir.json").run();
    assert_eq!(outcome.code, 1, "{outcome}");
    assert!(
        outcome.out.contains("'/directory': Disk quota exceeded"),
        "{outcome}"
    );
    vmpod(["run"])
        .arg(pod("absent.json").manifest())
        .fails(125, &["seccomp", "absent.json"]);
}
