//! Order of init containers, restarts, exit statuses, stopping.

use std::time::{Duration, Instant};

use vmpod_tests::{Pod, eventually, vmpod};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn init_containers_run_in_order_and_before_the_containers() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, image: busybox, command: [sh, -c, 'sleep 0.3; echo one >> /v/order'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: two, image: busybox, command: [sh, -c, 'echo two >> /v/order'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: busybox, command: [sh, -c, 'echo main >> /v/order; cat /v/order'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let seen: Vec<_> = outcome
        .out
        .lines()
        .filter_map(|l| l.split_whitespace().last())
        .filter(|w| ["one", "two", "main"].contains(w))
        .collect();
    assert_eq!(seen, ["one", "two", "main"], "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn failed_init_container_fails_the_pod_and_keeps_the_rest_from_starting() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  initContainers: [{name: bad, image: busybox, command: [sh, -c, 'echo no; exit 9']}]
  containers: [{name: main, image: busybox, command: [echo, never-printed]}]",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 9, "{outcome}");
    assert!(!outcome.out.contains("never-printed"), "{outcome}");
    let status = pod.container("bad");
    assert_eq!(status["state"]["terminated"]["exitCode"], 9);
    assert_eq!(
        pod.container("main")["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(pod.inspect()["status"]["phase"], "Failed");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exit_status_of_run_is_that_of_the_failed_container() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - {name: good, image: busybox, command: ['true']}
  - {name: bad, image: busybox, command: [sh, -c, 'exit 42']}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 42, "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn failing_container_is_restarted_on_a_fresh_root_and_backs_off() {
    let pod = Pod::new(
        "
  restartPolicy: OnFailure
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo x >> /v/count; [ -e /mark ] && echo stale-root; touch /mark; exit 3']
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: healthy, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    pod.start();
    let status = eventually("a second restart that waits", || {
        let status = pod.container("c");
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(status)
    });
    assert_eq!(status["restartCount"], 1, "{status:#}");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert!(
        status["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s")
    );
    assert_eq!(pod.sh("healthy", "wc -l < /v/count").trim(), "2");
    assert!(!pod.logs("c").contains("stale-root"));
    assert!(pod.container("healthy")["state"]["running"].is_object());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn command_that_does_not_exist_is_told_with_the_container() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [no-such-program]}]",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 128, "{outcome}");
    assert!(
        outcome.err.contains("no-such-program") && outcome.err.contains("not found"),
        "{outcome}"
    );
    let status = pod.container("c");
    assert_eq!(
        status["state"]["terminated"]["reason"], "StartError",
        "{status:#}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn stop_ends_in_order_and_kills_what_does_not_listen() {
    let pod = Pod::new(
        "
  containers:
  - {name: polite, image: busybox, command: [sh, -c, 'trap \"echo goodbye; exit 0\" TERM; echo up; while true; do sleep 0.1; done']}
  - {name: deaf, image: busybox, command: [sh, -c, 'trap \"\" TERM; echo up; while true; do sleep 0.1; done']}",
    );
    pod.start();
    // A signal before the trap is set would be lost on the first process of a container.
    for name in ["polite", "deaf"] {
        eventually(&format!("the trap of {name}"), || {
            pod.logs(name).contains("up").then_some(())
        });
    }
    let began = Instant::now();
    vmpod(["stop", "--time", "3", &pod.name]).ok();
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(pod.logs("polite").contains("goodbye"));
    assert_eq!(
        pod.container("polite")["state"]["terminated"]["exitCode"],
        0
    );
    assert_eq!(
        pod.container("deaf")["state"]["terminated"]["exitCode"],
        137
    );
    assert_eq!(pod.inspect()["status"]["phase"], "Failed");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn sidecar_serves_the_main_container_and_ends_after_it() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - name: sidecar
    image: busybox
    restartPolicy: Always
    command: [sh, -c, 'trap \"echo sidecar-ends; exit 0\" TERM; echo up > /v/up; while true; do sleep 0.1; done']
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - {name: main, image: busybox, command: [sh, -c, 'while [ ! -e /v/up ]; do sleep 0.1; done; echo main-ends'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let position = |text: &str| {
        outcome
            .out
            .find(text)
            .unwrap_or_else(|| panic!("no {text}: {outcome}"))
    };
    assert!(
        position("main-ends") < position("sidecar-ends"),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn memory_hog_is_reported_as_oom_killed() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - name: hog
    image: busybox
    command: [dd, if=/dev/zero, of=/dev/shm/hog, bs=1M, count=60]
    resources: {limits: {memory: 32Mi}}",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 137, "{outcome}");
    let status = pod.container("hog");
    assert_eq!(
        status["state"]["terminated"]["reason"], "OOMKilled",
        "{status:#}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn active_deadline_fails_the_pod() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  activeDeadlineSeconds: 2
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sleep, '1000']}]",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_ne!(outcome.code, 0, "{outcome}");
    assert_eq!(pod.inspect()["status"]["reason"], "DeadlineExceeded");
}
