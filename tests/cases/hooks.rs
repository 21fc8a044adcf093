//! postStart and preStop hooks, stop signals, and the order in which a pod's containers end.

use std::time::{Duration, Instant};

use vmpod_tests::{Pod, eventually, vmpod};

const SECOND: i64 = 1_000_000_000;

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn post_start_hook_holds_up_the_container_and_those_after_it() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: first
    image: busybox
    command: [sh, -c, 'while [ ! -e /v/hook ]; do sleep 0.1; done; echo saw the hook; exec sleep 1000']
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle: {postStart: {exec: {command: [sh, -c, 'sleep 3; touch /v/hook']}}}
  - {name: second, image: busybox, command: [sh, -c, 'ls /v; exec sleep 1000'], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    pod.start();
    pod.await_event("ContainerStarted first");
    let status = pod.container("first");
    if status["started"] == false {
        assert_eq!(
            status["state"]["waiting"]["reason"], "ContainerCreating",
            "{status:#}"
        );
    }
    pod.await_phase("Running");
    pod.await_event("ContainerStarted second");
    let moments = pod.assert_order(&[
        "ContainerStarted first",
        "PostStartHookDone first",
        "ContainerStarted second",
    ]);
    assert!(moments[1] - moments[0] >= 3 * SECOND, "{moments:?}");
    eventually("the hook's file", || {
        (pod.logs("second").trim() == "hook").then_some(())
    });
    eventually("the container's word", || {
        pod.logs("first").contains("saw the hook").then_some(())
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn post_start_hook_that_fails_ends_the_container() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'trap \"exit 7\" TERM; while true; do sleep 0.1; done']
    lifecycle: {postStart: {exec: {command: [sh, -c, 'echo no such thing; exit 3']}}}",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 7, "{outcome}");
    pod.assert_order(&[
        "ContainerStarted c",
        "FailedPostStartHook c: PostStartHook failed: command \"sh -c echo no such thing; exit 3\" failed: no such thing",
        "Killing c: FailedPostStartHook",
        "ContainerExited c",
        "PodFinished",
    ]);
    assert_eq!(pod.container("c")["state"]["terminated"]["exitCode"], 7);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn stop_runs_hooks_then_sends_the_stop_signal_and_ends_sidecars_last_in_reverse() {
    let trap = |name: &str, signal: &str| {
        format!(
            "'trap \"echo {name} has {signal} >> /v/log; exit 0\" {signal}; touch /v/{name}; while true; do sleep 0.1; done'"
        )
    };
    let pod = Pod::new(&format!(
        "
  os: {{name: linux}}
  terminationGracePeriodSeconds: 60
  volumes: [{{name: v, hostPath: {{path: DIR, type: Directory}}}}]
  initContainers:
  - {{name: s1, image: busybox, restartPolicy: Always, command: [sh, -c, {}], volumeMounts: [{{name: v, mountPath: /v}}]}}
  - name: s2
    image: busybox
    restartPolicy: Always
    command: [sh, -c, {}]
    volumeMounts: [{{name: v, mountPath: /v}}]
    lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo s2 hook >> /v/log']}}}}}}
  containers:
  - name: main
    image: busybox
    command: [sh, -c, {}]
    volumeMounts: [{{name: v, mountPath: /v}}]
    lifecycle:
      stopSignal: SIGUSR1
      preStop: {{exec: {{command: [sh, -c, 'sleep 2; echo main hook >> /v/log']}}}}
  - {{name: other, image: busybox, command: [sh, -c, {}], volumeMounts: [{{name: v, mountPath: /v}}], lifecycle: {{preStop: {{sleep: {{seconds: 4}}}}}}}}",
        trap("s1", "TERM"),
        trap("s2", "TERM"),
        trap("main", "USR1"),
        trap("other", "TERM"),
    ));
    pod.start();
    let directory = pod.directory.path().to_owned();
    for name in ["s1", "s2", "main", "other"] {
        eventually(&format!("the trap of {name}"), || {
            directory.join(name).exists().then_some(())
        });
    }
    vmpod(["stop", &pod.name]).ok();
    let log = std::fs::read_to_string(directory.join("log")).expect("the log");
    assert_eq!(
        log.lines().collect::<Vec<_>>(),
        [
            "s2 hook",
            "main hook",
            "main has USR1",
            "other has TERM",
            "s2 has TERM",
            "s1 has TERM"
        ]
    );
    assert_eq!(pod.inspect()["status"]["phase"], "Succeeded");
    pod.assert_order(&[
        "Killing main: Stopping container main",
        "ContainerExited main",
        "ContainerExited other",
        "ContainerExited s2",
        "ContainerExited s1",
    ]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn hook_that_takes_all_of_the_grace_leaves_two_seconds() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 3
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'trap \"echo ended in order; exit 0\" TERM; touch /up; sleep 1000 & wait']
    lifecycle: {preStop: {exec: {command: [sleep, '1000']}}}",
    );
    pod.start();
    pod.await_phase("Running");
    eventually("the trap", || {
        (pod.exec("c", &["test", "-e", "/up"]).code == 0).then_some(())
    });
    let began = Instant::now();
    vmpod(["stop", &pod.name]).ok();
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert!(
        pod.logs("c").contains("ended in order"),
        "{}",
        pod.logs("c")
    );
    assert_eq!(pod.container("c")["state"]["terminated"]["exitCode"], 0);
}
