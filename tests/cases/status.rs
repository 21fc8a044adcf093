//! What `inspect` shows of a pod: conditions, states and reasons as kubectl has them.

use serde_json::Value;
use vmpod_tests::{Pod, eventually, vmpod};

/// The condition of that type, as `status reason message`.
fn condition(pod: &Value, kind: &str) -> String {
    let conditions = pod["status"]["conditions"].as_array().expect("conditions");
    let found = conditions
        .iter()
        .find(|c| c["type"] == kind)
        .unwrap_or_else(|| panic!("no condition {kind}: {pod:#}"));
    assert!(found["lastTransitionTime"].is_string(), "{found:#}");
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    format!("{} {} {}", text("status"), text("reason"), text("message"))
        .trim()
        .to_owned()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn conditions_follow_the_pods_life() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, hostPath: {path: DIR}}]
  initContainers:
  - {name: prepare, image: busybox, command: [sh, -c, 'while [ ! -e /v/go ]; do sleep 0.1; done'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - name: main
    image: busybox
    command: [sh, -c, 'while [ ! -e /v/end ]; do sleep 0.1; done']
    volumeMounts: [{name: v, mountPath: /v}]
    readinessProbe: {exec: {command: [test, -e, /v/ready]}, periodSeconds: 1, timeoutSeconds: 30}",
    );
    pod.start();
    pod.await_event("ContainerStarted prepare");
    let seen = eventually("the init container's state", || {
        let seen = pod.inspect();
        seen["status"]["initContainerStatuses"][0]["state"]["running"]
            .is_object()
            .then_some(seen)
    });
    assert_eq!(condition(&seen, "PodScheduled"), "True");
    assert_eq!(condition(&seen, "PodReadyToStartContainers"), "True");
    assert_eq!(
        condition(&seen, "Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [prepare]"
    );
    assert_eq!(seen["status"]["phase"], "Pending");
    assert_eq!(
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );

    let touch = |name: &str| {
        std::fs::write(pod.directory.path().join(name), "").expect("make a file");
    };
    touch("go");
    let seen = pod.await_phase("Running");
    assert_eq!(condition(&seen, "Initialized"), "True");
    assert_eq!(
        condition(&seen, "Ready"),
        "False ContainersNotReady containers with unready status: [main]"
    );
    touch("ready");
    eventually("condition Ready", || {
        (condition(&pod.inspect(), "Ready") == "True").then_some(())
    });
    assert_eq!(condition(&pod.inspect(), "ContainersReady"), "True");
    touch("end");
    let seen = pod.await_phase("Succeeded");
    assert_eq!(condition(&seen, "Ready"), "False PodCompleted");
    assert_eq!(condition(&seen, "Initialized"), "True PodCompleted");
    let state = &seen["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["reason"], &state["exitCode"]),
        (&"Completed".into(), &0.into())
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn readiness_waits_for_its_gates_which_update_opens() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  readinessGates: [{conditionType: example.com/in-service}]
  containers: [{name: c, image: busybox, command: [sleep, '1000']}]",
    );
    pod.start();
    pod.await_phase("Running");
    let seen = eventually("the container's readiness", || {
        let seen = pod.inspect();
        condition(&seen, "ContainersReady")
            .starts_with("True")
            .then_some(seen)
    });
    assert_eq!(
        condition(&seen, "Ready"),
        "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"example.com/in-service\" does not exist."
    );
    let set = |word: &str| vmpod(["update", &pod.name, "--condition", word]);
    set("example.com/in-service").ok();
    // The command ends when the condition is there.
    let seen = pod.inspect();
    assert_eq!(condition(&seen, "example.com/in-service"), "True");
    assert_eq!(condition(&seen, "Ready"), "True");
    set("example.com/in-service=False").ok();
    assert_eq!(
        condition(&pod.inspect(), "Ready"),
        "False ReadinessGatesNotReady the status of pod readiness gate \"example.com/in-service\" is not \"True\", but False"
    );
    set("Ready").fails(125, &["\"Ready\"", "vmpod makes this one itself"]);
    set("a b").fails(125, &["\"a b\"", "alphanumeric"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn inspect_as_yaml_is_the_pod_with_its_status() {
    let pod = Pod::new(
        "
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 1
  nodeSelector: {disk: fast}
  containers:
  - {name: bad, image: busybox, command: [sh, -c, 'exit 3'], env: [{name: A, value: b}]}
  - {name: idle, image: busybox, command: [sleep, '1000'], resources: {limits: {cpu: 100m, memory: 32Mi}}}",
    );
    pod.start();
    eventually("a back-off", || {
        (pod.container("bad")["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(())
    });
    let text = vmpod(["inspect", "-o", "yaml", &pod.name]).ok();
    for line in [
        "apiVersion: v1",
        "kind: Pod",
        "  nodeSelector:",
        "    disk: fast",
        "  restartPolicy: OnFailure",
        "  dnsPolicy: ClusterFirst",
        "  qosClass: Burstable",
        "  phase: Running",
        "        reason: CrashLoopBackOff",
        "        exitCode: 3",
    ] {
        assert!(
            text.lines()
                .any(|l| l.trim_start_matches("- ").trim() == line.trim()),
            "no {line:?} in\n{text}"
        );
    }
    let uid = pod.inspect()["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let words = format!(
        "back-off 10s restarting failed container=bad pod={}_default({uid})",
        pod.name
    );
    // Long texts are folded.
    let unfolded = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(unfolded.contains(&words), "no {words:?} in\n{text}");
    assert!(!text.contains("waiting: null"), "{text}");
    assert!(!text.contains("vmpod:\n"), "{text}");
    // It is a manifest as well: what it says of the pod can be run again.
    let again = vmpod(["run", "--dry-run", "--name", "again", "-f", "-"])
        .input(text)
        .ok();
    assert!(again.contains("\"again\""), "{again}");
}
