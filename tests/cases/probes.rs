//! Startup, readiness and liveness probes: what they do to a container, and when.

use std::process::Command;

use vmpod_tests::{Pod, eventually, vmpod};

const SECOND: i64 = 1_000_000_000;

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn readiness_by_http_follows_what_the_server_says() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: web
    image: busybox
    command: [httpd, -f, -p, '8080', -h, /www]
    ports: [{name: http, containerPort: 8080}]
    volumeMounts: [{name: v, mountPath: /www}]
    readinessProbe:
      httpGet: {path: /ready, port: http, httpHeaders: [{name: X-Probe, value: vmpod}]}
      periodSeconds: 1
      timeoutSeconds: 20
      successThreshold: 2
      failureThreshold: 1",
    );
    pod.start();
    pod.await_event(
        "Unhealthy web: Readiness probe failed: HTTP probe failed with statuscode: 404",
    );
    let status = pod.container("web");
    assert_eq!(status["ready"], false, "{status:#}");
    assert_eq!(status["started"], true, "{status:#}");
    assert!(status["state"]["running"].is_object(), "{status:#}");
    let _ = pod.sh("web", "echo yes > /www/ready");
    eventually("readiness", || {
        (pod.container("web")["ready"] == true).then_some(())
    });
    let _ = pod.sh("web", "rm /www/ready");
    eventually("the end of readiness", || {
        (pod.container("web")["ready"] == false).then_some(())
    });
    pod.assert_order(&[
        "ContainerStarted web",
        "Unhealthy web",
        "ContainerReady web",
        "ContainerNotReady web",
    ]);
    assert_eq!(pod.container("web")["restartCount"], 0);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn liveness_that_fails_restarts_the_container_with_the_probes_grace() {
    let pod = Pod::new(
        "
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 600
  containers:
  - name: sick
    image: busybox
    command: [sh, -c, 'touch /alive; trap \"\" TERM; while true; do sleep 0.2; done']
    livenessProbe:
      exec: {command: [sh, -c, 'echo checking; test -e /alive']}
      initialDelaySeconds: 2
      periodSeconds: 1
      timeoutSeconds: 30
      failureThreshold: 2
      terminationGracePeriodSeconds: 3
  - {name: well, image: busybox, command: [sleep, '1000']}",
    );
    pod.start();
    pod.await_phase("Running");
    // Its first process may not have come to making it yet.
    let _ = pod.sh("sick", "until rm /alive 2>/dev/null; do sleep 0.1; done");
    let status = eventually("a restart", || {
        let status = pod.container("sick");
        (status["restartCount"] == 1 && status["state"]["running"].is_object()).then_some(status)
    });
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    let moments = pod.assert_order(&[
        "ContainerStarted sick",
        "Unhealthy sick: Liveness probe failed: checking",
        "Killing sick: Container sick failed liveness probe, will be restarted",
        "ContainerExited sick",
    ]);
    assert!(moments[1] - moments[0] >= 2 * SECOND, "initial delay");
    let failures = pod
        .events()
        .iter()
        .filter(|(at, words)| *at <= moments[2] && words.starts_with("Unhealthy sick"))
        .count();
    assert_eq!(failures, 2, "failures before the kill");
    assert!(moments[3] - moments[2] >= 3 * SECOND, "the probe's grace");
    assert_eq!(pod.container("well")["restartCount"], 0);
    // The new one has its file again.
    assert!(pod.container("sick")["ready"] == true);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn startup_probe_holds_the_others_back_and_kills_what_never_starts() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - name: slow
    image: busybox
    command: [sh, -c, 'sleep 4; nc -ll -p 7000 -e true']
    startupProbe: {tcpSocket: {port: 7000}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 60}
    readinessProbe: {exec: {command: ['true']}, timeoutSeconds: 30}
  - name: stuck
    image: busybox
    command: [sleep, '1000']
    startupProbe: {tcpSocket: {port: 7001}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 2, terminationGracePeriodSeconds: 1}",
    );
    pod.start();
    eventually("readiness of slow", || {
        (pod.container("slow")["ready"] == true).then_some(())
    });
    let moments = pod.assert_order(&[
        "ContainerStarted slow",
        "Unhealthy slow: Startup probe failed: dial tcp",
        "ContainerStartupPassed slow",
        "ContainerReady slow",
    ]);
    assert!(moments[2] - moments[0] >= 4 * SECOND, "{moments:?}");
    eventually("the end of stuck", || {
        pod.container("stuck")["state"]["terminated"]
            .is_object()
            .then_some(())
    });
    let status = pod.container("stuck");
    assert_eq!(
        (&status["ready"], &status["started"]),
        (&false.into(), &false.into())
    );
    assert_eq!(status["restartCount"], 0, "the policy is Never");
    let events = pod.events();
    let killing = "Killing stuck: Container stuck failed startup probe";
    assert!(
        events.iter().any(|(_, words)| words == killing),
        "{events:?}"
    );
    let refused = events
        .iter()
        .find(|(_, words)| words.starts_with("Unhealthy stuck"))
        .map(|(_, words)| words.clone())
        .unwrap_or_default();
    assert!(
        refused.ends_with(":7001: connect: connection refused"),
        "{refused}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn sidecar_with_a_startup_probe_is_awaited_before_the_next_container() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - name: db
    image: busybox
    restartPolicy: Always
    command: [sh, -c, 'trap \"exit 0\" TERM; sleep 3; echo ready > /v/db; while true; do sleep 0.1; done']
    volumeMounts: [{name: v, mountPath: /v}]
    startupProbe: {exec: {command: [test, -e, /v/db]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 60}
  containers:
  - {name: main, image: busybox, command: [cat, /v/db], volumeMounts: [{name: v, mountPath: /v}]}",
    );
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 0, "{outcome}");
    pod.assert_order(&[
        "ContainerStarted db",
        "ContainerStartupPassed db",
        "ContainerStarted main",
        "ContainerExited main",
        "Killing db: Stopping container db",
        "ContainerExited db",
    ]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn probes_by_https_and_grpc_reach_their_servers() {
    let keys = tempfile::tempdir().expect("make a directory for keys");
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=nobody -days 1"
                .split(' '),
        )
        .current_dir(keys.path())
        .output()
        .expect("run openssl, which cargo xtask test installs");
    assert!(made.status.success(), "{made:?}");
    let indented = |file: &str| -> String {
        std::fs::read_to_string(keys.path().join(file))
            .expect("a key")
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect()
    };
    let objects = format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: tls}}
data:
  default.conf: 'server {{ listen 8443 ssl; ssl_certificate /tls/cert; ssl_certificate_key /tls/key; location / {{ return 204; }} }}'
  cert: |
{}  key: |
{}",
        indented("cert"),
        indented("key")
    );
    std::fs::write(keys.path().join("objects.yaml"), objects).expect("write the objects");
    // The gRPC server says what one says whose service serves (HTTP/2: settings, headers, a message of two bytes).
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: tls, configMap: {name: tls}}]
  containers:
  - name: tls
    image: nginx
    volumeMounts: [{name: tls, mountPath: /tls}, {name: tls, mountPath: /etc/nginx/conf.d}]
    readinessProbe: {httpGet: {port: 8443, scheme: HTTPS, path: /}, periodSeconds: 1, timeoutSeconds: 20}
  - name: grpc
    image: busybox
    command:
    - sh
    - -c
    - |
      printf '\\000\\000\\000\\004\\000\\000\\000\\000\\000\\000\\000\\001\\001\\004\\000\\000\\000\\001\\210\\000\\000\\007\\000\\000\\000\\000\\000\\001\\000\\000\\000\\000\\002\\010\\001' > /answer
      exec nc -ll -p 9000 -e sh -c 'cat /answer; sleep 5'
    readinessProbe: {grpc: {port: 9000}, periodSeconds: 1, timeoutSeconds: 20}
  - name: not-grpc
    image: busybox
    command: [httpd, -f, -p, '9001']
    readinessProbe: {grpc: {port: 9001, service: app}, periodSeconds: 1, timeoutSeconds: 20}",
    );
    vmpod(["run", "-d", "--resource"])
        .arg(keys.path().join("objects.yaml"))
        .arg(pod.manifest())
        .ok();
    for name in ["tls", "grpc"] {
        eventually(&format!("readiness of {name}"), || {
            (pod.container(name)["ready"] == true).then_some(())
        });
    }
    pod.await_event("Unhealthy not-grpc: Readiness probe failed: error: health rpc probe failed");
    assert_eq!(pod.container("not-grpc")["ready"], false);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn wrong_probes_and_hooks_are_refused_with_all_their_mistakes() {
    let pod = Pod::new(
        "
  initContainers:
  - {name: i, image: busybox, livenessProbe: {exec: {command: ['true']}}}
  containers:
  - name: c
    image: busybox
    livenessProbe: {exec: {command: ['true']}, tcpSocket: {port: 1}}
    readinessProbe:
      httpGet: {port: web, scheme: FTP, host: example.org}
      terminationGracePeriodSeconds: 5
    startupProbe: {successThreshold: 2, periodSeconds: -1}
    lifecycle:
      postStart: {tcpSocket: {port: 1}}
      preStop: {sleep: {seconds: 31}}
      stopSignal: SIGNOTHING",
    );
    vmpod(["run"]).arg(pod.manifest()).fails(
        2,
        &[
            "pod.yaml:7: spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            "pod.yaml:11: spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            "pod.yaml:13: spec.containers[0].readinessProbe.httpGet.port: Not found: \"web\"",
            "spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value: \"FTP\"",
            "spec.containers[0].readinessProbe.httpGet.host: Invalid value: \"example.org\": must be an IP address",
            "pod.yaml:14: spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
            "pod.yaml:15: spec.containers[0].startupProbe: Required value: must specify a handler type",
            "spec.containers[0].startupProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.containers[0].startupProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "pod.yaml:17: spec.containers[0].lifecycle.postStart.tcpSocket: Forbidden",
            "pod.yaml:18: spec.containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 31",
            "pod.yaml:19: spec.containers[0].lifecycle.stopSignal: Invalid value: \"SIGNOTHING\"",
            "may not be set for containers with empty `spec.os.name`",
        ],
    );
}
