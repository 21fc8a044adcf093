//! Environment variables from everywhere that a manifest can take them from.

use vmpod_tests::{Pod, vmpod};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn environment_comes_from_fields_resources_config_maps_and_secrets() {
    let name = format!("env-{}", std::process::id());
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{app: shop}}
  annotations: {{note: 'a \"b\"'}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, \"echo '$(GREETING) and $$(GREETING)'; env | sort\"]
    resources: {{limits: {{memory: 64Mi}}, requests: {{cpu: 250m, memory: 32Mi}}}}
    envFrom:
    - {{prefix: CM_, configMapRef: {{name: settings}}}}
    - {{secretRef: {{name: absent, optional: true}}}}
    env:
    - {{name: WHO, value: world}}
    - {{name: GREETING, value: hello $(WHO) of $(CM_colour)}}
    - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: APP, valueFrom: {{fieldRef: {{fieldPath: 'metadata.labels[''app'']'}}}}}}
    - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
    - {{name: LIMIT, valueFrom: {{resourceFieldRef: {{resource: limits.memory, divisor: 1Mi}}}}}}
    - {{name: REQUEST, valueFrom: {{resourceFieldRef: {{resource: requests.cpu, divisor: 1m}}}}}}
    - {{name: CPUS, valueFrom: {{resourceFieldRef: {{resource: limits.cpu}}}}}}
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: keys, key: password}}}}}}
    - {{name: NOTHING, valueFrom: {{secretKeyRef: {{name: keys, key: absent, optional: true}}}}}}
"
    );
    let pod = Pod::of_text(&name, &text);
    let resources = pod.directory.path().join("objects.yaml");
    std::fs::write(
        &resources,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: green, 'not a name=': x}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\ndata: {password: aHVzaA==}\n",
    )
    .expect("write the objects");
    let outcome = vmpod(["run", "--rm", "--resource"])
        .arg(&resources)
        .arg(pod.manifest())
        .run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let has = |line: &str| {
        outcome
            .out
            .lines()
            .any(|l| l.split_once("| ").is_some_and(|(_, text)| text == line))
    };
    for line in [
        "hello world of green and $(GREETING)",
        "GREETING=hello world of green",
        &format!("NAME={name}"),
        "APP=shop",
        "LIMIT=64",
        "REQUEST=250",
        "COLOUR=green",
        "CM_colour=green",
        "PASSWORD=hush",
    ] {
        assert!(has(line), "no {line:?} in {outcome}");
    }
    assert!(!outcome.out.contains("NOTHING="), "{outcome}");
    let value = |name: &str| {
        outcome
            .out
            .split_once(&format!("| {name}="))
            .and_then(|(_, rest)| rest.lines().next())
            .unwrap_or_default()
            .to_owned()
    };
    // Without a limit it is the machine's.
    assert!(
        value("CPUS").parse::<u32>().is_ok_and(|n| n >= 1),
        "{outcome}"
    );
    assert!(
        value("IP").parse::<std::net::Ipv4Addr>().is_ok(),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn references_to_what_is_not_there_are_all_named() {
    let pod = Pod::new(
        "
  volumes:
  - {name: p, projected: {sources: [{secret: {name: gone}}, {serviceAccountToken: {path: t}}]}}
  - {name: d, downwardAPI: {items: [{path: x, resourceFieldRef: {containerName: other, resource: limits.cpu}}, {path: y, fieldRef: {fieldPath: status.podIP}}]}}
  containers:
  - name: c
    image: busybox
    envFrom: [{configMapRef: {name: gone}}]
    env:
    - {name: A, valueFrom: {secretKeyRef: {name: gone, key: k}}}
    - {name: B, valueFrom: {fieldRef: {fieldPath: spec.hostname}}}",
    );
    vmpod(["run", "--dry-run"]).arg(pod.manifest()).fails(
        2,
        &[
            "pod.yaml:7: spec.volumes[0].projected.sources[0].secret.name: Not found: \"gone\"",
            "pod.yaml:7: spec.volumes[0].projected.sources[1].serviceAccountToken: Forbidden: there is no API server that issues",
            "pod.yaml:8: spec.volumes[1].downwardAPI.items[0].resourceFieldRef.containerName: Not found: \"other\"",
            "pod.yaml:8: spec.volumes[1].downwardAPI.items[1].fieldRef.fieldPath: Invalid value: \"status.podIP\"",
            "pod.yaml:12: spec.containers[0].envFrom[0].configMapRef.name: Not found: \"gone\"",
            "pod.yaml:14: spec.containers[0].env[0].valueFrom.secretKeyRef.name: Not found: \"gone\"",
            "pod.yaml:15: spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.hostname\"",
        ],
    );
}
