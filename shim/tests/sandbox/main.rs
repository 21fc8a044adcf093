//! The host's side of a pod from `vmpod run` to its end, with a machine that boots nothing (examples/fake_machine.rs).
//! Needs root, /dev/net/tun and the program nft; each test has a network namespace and roots of its own.

mod host;
mod rules;

use std::time::{Duration, Instant};

use host::Host;

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: c, image: greeter, command: [x], imagePullPolicy: Never, volumeMounts: [{name: v, mountPath: /v}], ports: [{containerPort: 80, hostPort: 18080}]}
";

#[test]
fn pod_in_the_foreground_shows_its_output_and_leaves_nothing() {
    let host = Host::new();
    let outcome = host.vmpod("run", &["run", "--rm", "-f", "-"], POD);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(
        outcome.out, "c | c.0 says hello fresh=true\n",
        "{outcome:?}"
    );
    host.assert_clean(true);
}

#[test]
fn pod_whose_container_restarts_gets_a_fresh_root_and_a_log_of_its_own() {
    let host = Host::new();
    let outcome = host.vmpod("restart", &["run", "-f", "-"], POD);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.out.contains("c.0 says hello fresh=true\n"),
        "{outcome:?}"
    );
    assert!(
        outcome.out.contains("c.1 says hello fresh=true\n"),
        "{outcome:?}"
    );
    let previous = host.vmpod("", &["logs", "-p", "-c", "c", "p"], "");
    assert_eq!(previous.out, "c.0 says hello fresh=true\n", "{previous:?}");
    let latest = host.vmpod("", &["logs", "p"], "");
    assert_eq!(latest.out, "c.1 says hello fresh=true\n", "{latest:?}");
    assert_eq!(host.vmpod("", &["rm", "p"], "").code, 0);
    host.assert_clean(true);
}

#[test]
fn machine_that_refuses_its_configuration_is_told_and_leaves_nothing() {
    let host = Host::new();
    for detach in [&["run", "-f", "-"][..], &["run", "-d", "-f", "-"]] {
        let outcome = host.vmpod("refuse", detach, POD);
        assert_eq!(outcome.code, 125, "{outcome:?}");
        assert!(
            outcome.err.contains("cannot open the kernel"),
            "{outcome:?}"
        );
        host.assert_clean(true);
    }
}

#[test]
fn machine_that_dies_before_it_is_ready_is_told_with_its_console() {
    let host = Host::new();
    let outcome = host.vmpod("die", &["run", "-f", "-"], POD);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(
        outcome.err.contains("triple fault") && outcome.err.contains("Linux version fake"),
        "{outcome:?}"
    );
    host.assert_clean(true);
}

#[test]
fn machine_that_panics_makes_a_failed_pod_that_says_so() {
    let host = Host::new();
    let outcome = host.vmpod("crash", &["run", "-f", "-"], POD);
    assert_eq!(outcome.code, 137, "{outcome:?}");
    assert!(outcome.err.contains("Kernel panic"), "{outcome:?}");
    let status = host.inspect("p");
    assert_eq!(status["status"]["phase"], "Failed");
    assert_eq!(status["status"]["reason"], "MachineFailed");
    host.vmpod("", &["rm", "p"], "");
    host.assert_clean(true);
}

#[test]
fn pod_that_runs_is_listed_refuses_its_name_and_stops() {
    let host = Host::new();
    let started = host.vmpod("linger", &["run", "-d", "-f", "-"], POD);
    assert_eq!(started.code, 0, "{started:?}");
    host::eventually("a running container", || {
        host.vmpod("", &["ps"], "").out.contains("1/1")
    });
    let second = host.vmpod("linger", &["run", "-d", "-f", "-"], POD);
    assert_eq!(second.code, 125);
    assert!(second.err.contains("already running"), "{second:?}");
    let third = host.vmpod("linger", &["run", "-d", "--name", "q", "-f", "-"], POD);
    assert!(
        third
            .err
            .contains("host port 18080/tcp is taken by pod \"p\""),
        "{third:?}"
    );
    assert!(
        host.rules().contains("tcp . 18080 : 10."),
        "{}",
        host.rules()
    );
    let began = Instant::now();
    assert_eq!(host.vmpod("", &["stop", "p"], "").code, 0);
    assert!(began.elapsed() < Duration::from_secs(5));
    let waited = host.vmpod("", &["wait", "p"], "");
    assert_eq!((waited.code, waited.out.trim()), (143, "143"));
    assert!(!host.rules().contains("18080"), "{}", host.rules());
    host.vmpod("", &["rm", "p"], "");
    host.assert_clean(true);
}

#[test]
fn machine_that_is_killed_makes_a_failed_pod_within_five_seconds() {
    let host = Host::new();
    host.vmpod("linger", &["run", "-d", "-f", "-"], POD);
    let vmm = host.inspect("p")["vmpod"]["vmmPid"].as_i64().unwrap();
    let began = Instant::now();
    host::kill(vmm);
    let waited = host.vmpod("", &["wait", "p"], "");
    assert_eq!(waited.code, 137, "{waited:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    let message = host.inspect("p")["status"]["message"].to_string();
    assert!(message.contains("killed by signal 9"), "{message}");
    host.vmpod("", &["rm", "p"], "");
    host.assert_clean(true);
}

#[test]
fn supervisor_that_is_killed_takes_its_machine_along_and_gc_leaves_nothing() {
    let host = Host::new();
    host.vmpod("linger", &["run", "-d", "-f", "-"], POD);
    let status = host.inspect("p");
    host::kill(status["vmpod"]["supervisorPid"].as_i64().unwrap());
    let vmm = status["vmpod"]["vmmPid"].as_i64().unwrap();
    host::eventually("the machine's end", || !host::runs(vmm));
    let listed = host.vmpod("", &["ps", "-a"], "");
    assert!(listed.out.contains("SupervisorLost"), "{listed:?}");
    assert_eq!(host.vmpod("", &["gc"], "").code, 0);
    host.assert_clean(true);
}

#[test]
fn start_killed_at_any_instant_leaves_nothing_after_gc() {
    let host = Host::new();
    // Each round kills the whole start a little later; the last ones find a running pod.
    for round in 0..12_u64 {
        let mut child = host.spawn("linger", &["run", "-d", "-f", "-"], POD);
        std::thread::sleep(Duration::from_millis(round * round * 6));
        let _ = child.kill();
        let _ = child.wait();
        host.kill_supervisors();
        // One that was being started is seen by its name only now; and the kernel takes a moment to end a killed process.
        std::thread::sleep(Duration::from_millis(300));
        host.kill_supervisors();
        std::thread::sleep(Duration::from_millis(300));
        let collected = host.vmpod("", &["gc"], "");
        assert_eq!(collected.code, 0, "{collected:?}");
        host.assert_clean(true);
    }
}
