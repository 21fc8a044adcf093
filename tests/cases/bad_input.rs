//! What is wrong is refused in words that name it, and nothing is left behind.

use vmpod_tests::{Footprint, Pod, vmpod};

/// Runs a manifest that must be refused with this status and these words, and checks that nothing stays.
fn refused(pod: &Pod, code: i32, words: &[&str]) {
    let before = Footprint::now();
    vmpod(["run"]).arg(pod.manifest()).fails(code, words);
    before.assert_restored();
}

fn with_container(fields: &str) -> Pod {
    Pod::new(&format!(
        "  restartPolicy: Never\n  containers:\n  - name: c\n    image: busybox\n{fields}"
    ))
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn unknown_field_is_named_with_its_line() {
    refused(
        &with_container("    comand: [x]"),
        2,
        &["pod.yaml:10", "spec.containers[0].comand", "unknown field"],
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn wrong_type_is_named_with_its_line() {
    refused(
        &with_container("    command: sleep"),
        2,
        &[
            "pod.yaml:10",
            "spec.containers[0].command",
            "expected a list",
        ],
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn broken_yaml_is_named_with_its_line() {
    refused(
        &Pod::of_text(
            "x",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x\nspec: [\n",
        ),
        2,
        &["pod.yaml:"],
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn missing_volume_duplicate_name_and_unsupported_field_are_named_at_once() {
    let pod = Pod::new(
        "
  hostNetwork: true
  containers:
  - {name: c, image: busybox, volumeMounts: [{name: nope, mountPath: /x}]}
  - {name: c, image: busybox, restartPolicyRules: [{action: Restart}], volumeDevices: [{name: x, devicePath: /dev/x}]}",
    );
    refused(
        &pod,
        2,
        &[
            "spec.hostNetwork: Forbidden",
            "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
            "spec.containers[1].name: Duplicate value: \"c\"",
            "spec.containers[1].restartPolicyRules: Forbidden",
            "spec.containers[1].volumeDevices[0].name: Not found: \"x\"",
        ],
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn image_that_is_not_there_is_named() {
    let pod = Pod::new(
        "  restartPolicy: Never\n  containers: [{name: c, image: 'localhost:1/no/such:image'}]",
    );
    refused(&pod, 125, &["localhost:1/no/such:image"]);
    let never = Pod::new("  containers: [{name: c, image: no-such-image, imagePullPolicy: Never}]");
    refused(&never, 125, &["no-such-image", "imagePullPolicy"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn host_path_of_the_wrong_type_is_named() {
    let volume = |path: &str, kind: &str| {
        Pod::new(&format!(
            "  volumes: [{{name: v, hostPath: {{path: {path}, type: {kind}}}}}]\n  containers: [{{name: c, image: busybox, command: ['true'], volumeMounts: [{{name: v, mountPath: /v}}]}}]"
        ))
    };
    refused(
        &volume("/etc/passwd", "Directory"),
        125,
        &["/etc/passwd", "irectory"],
    );
    refused(
        &volume("/no/such/place", "Directory"),
        125,
        &["/no/such/place"],
    );
    refused(&volume("/etc", "File"), 125, &["/etc", "ile"]);
    refused(&volume("/etc", "Socket"), 125, &["/etc", "ocket"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn name_that_runs_already_is_refused() {
    let pod = Pod::new(
        "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sleep, '1000']}]",
    );
    pod.start();
    let with = Footprint::now();
    vmpod(["run", "-d"])
        .arg(pod.manifest())
        .fails(125, &[&pod.name, "already"]);
    with.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_larger_than_the_host_is_refused_as_a_whole() {
    let pod = with_container("    resources: {requests: {memory: 4Ti}}");
    refused(&pod, 125, &["memory"]);
    let pod = with_container("    resources: {requests: {cpu: '9999'}}");
    refused(&pod, 125, &["cpu"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn host_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("0.0.0.0:18099").expect("bind");
    let pod =
        with_container("    command: ['true']\n    ports: [{containerPort: 80, hostPort: 18099}]");
    refused(&pod, 125, &["18099"]);
    drop(listener);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn scheduler_fields_are_accepted_and_said_to_have_no_effect() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  nodeSelector: {disk: ssd}
  containers: [{name: c, image: busybox, command: [echo, ran]}]",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome.err.contains("spec.nodeSelector") && outcome.err.contains("no effect"),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn manifest_that_is_not_there_is_named() {
    vmpod(["run", "/no/such/manifest.yaml"]).fails(125, &["/no/such/manifest.yaml"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn everything_that_is_wrong_is_said_at_once_with_its_line() {
    let text = "apiVersion: v1
kind: Pod
metadata:
  name: Wrong_Name
  labels: {tier: 'not a label'}
spec:
  restartPolicy: Sometimes
  terminationGracePeriodSeconds: soon
  containers:
  - name: c
    imagePullPolicy: Maybe
    comand: [x]
    ports:
    - {containerPort: 80, name: Web_Port}
    - {containerPort: 99999}
    resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}
    volumeMounts: [{name: gone, mountPath: /x}]
  - name: c
    image: i
    env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: k}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
date: {k: v}
";
    let before = Footprint::now();
    let pod = Pod::of_text("wrong", text);
    for verb in [&["run"][..], &["run", "--dry-run"]] {
        let outcome = vmpod(verb).arg(pod.manifest()).run();
        assert_eq!(outcome.code, 2, "{outcome}");
        let mut last = 0;
        for (line, words) in [
            (4, "metadata.name: Invalid value: \"Wrong_Name\""),
            (5, "metadata.labels: Invalid value: \"not a label\""),
            (
                7,
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (8, "spec.terminationGracePeriodSeconds: wrong type"),
            (10, "spec.containers[0].image: Required value"),
            (
                11,
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\"",
            ),
            (12, "spec.containers[0].comand: unknown field"),
            (
                14,
                "spec.containers[0].ports[0].name: Invalid value: \"Web_Port\"",
            ),
            (
                15,
                "spec.containers[0].ports[1].containerPort: Invalid value: 99999",
            ),
            (
                16,
                "spec.containers[0].resources.requests.memory: Invalid value: \"2Gi\"",
            ),
            (
                17,
                "spec.containers[0].volumeMounts[0].name: Not found: \"gone\"",
            ),
            (18, "spec.containers[1].name: Duplicate value: \"c\""),
            (20, "spec.containers[1].env[0].valueFrom.configMapKeyRef"),
            (25, "date: unknown field"),
        ] {
            let wanted = format!("pod.yaml:{line}: {words}");
            let at = outcome.err.find(&wanted);
            assert!(
                at.is_some_and(|at| at >= last),
                "{wanted:?} in order in {outcome}"
            );
            last = at.unwrap_or(last);
        }
    }
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn dry_run_prints_the_plan_and_starts_nothing() {
    let before = Footprint::now();
    let pod = with_container("    command: [echo, never]");
    let text = vmpod(["run", "--dry-run"]).arg(pod.manifest()).ok();
    let plan: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(plan["containers"][0]["command"][1], "never");
    assert_eq!(plan["restart_policy"], "Never");
    assert!(Footprint::now().since(&before).is_empty());
    vmpod(["inspect", &pod.name]).fails(125, &[&pod.name]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn namespaces_of_the_host_are_refused_with_the_reason_and_its_users_are_out_of_reach() {
    let pod = Pod::new(
        "
  hostPID: true
  hostIPC: true
  containers: [{name: c, image: busybox}]",
    );
    refused(
        &pod,
        2,
        &[
            "spec.hostPID: Forbidden: the virtual machine is the pod",
            "spec.hostIPC: Forbidden: the virtual machine is the pod",
        ],
    );
    let pod = Pod::new(
        "
  nodeName: somewhere
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: ['true']}]",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome.err.contains("spec.nodeName has no effect here"),
        "{outcome}"
    );
}
