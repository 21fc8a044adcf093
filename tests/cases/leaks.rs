//! Nothing stays behind: after many pods, and after any process was killed.

use vmpod_tests::{Footprint, Pod, eventually, processes_with, vmpod};

const SLEEPER: &str = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /tmp}}]
  containers:
  - {name: c, image: busybox, command: [sleep, '1000'], ports: [{containerPort: 80, hostPort: 18300}], volumeMounts: [{name: v, mountPath: /v}, {name: h, mountPath: /h}]}";

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ten_pods_in_a_row_leave_nothing() {
    let before = Footprint::now();
    for round in 0..10 {
        let pod = Pod::new(&format!(
            "  restartPolicy: Never\n  containers: [{{name: c, image: busybox, command: [echo, round{round}]}}]"
        ));
        let outcome = pod.run();
        assert_eq!(outcome.code, 0, "{outcome}");
        assert!(outcome.out.contains(&format!("round{round}")), "{outcome}");
    }
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn two_pods_at_once_have_their_own_everything() {
    let before = Footprint::now();
    let spec = "  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: busybox, command: [sh, -c, 'hostname; sleep 1000']}]";
    let (one, two) = (Pod::new(spec), Pod::new(spec));
    one.start();
    two.start();
    one.await_phase("Running");
    two.await_phase("Running");
    assert_ne!(
        one.inspect()["status"]["podIP"],
        two.inspect()["status"]["podIP"]
    );
    eventually("both names", || {
        (one.logs("c").trim() == one.name && two.logs("c").trim() == two.name).then_some(())
    });
    drop(one);
    assert_eq!(two.sh("c", "echo still here"), "still here\n");
    drop(two);
    before.assert_restored();
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .expect("run kill");
    assert!(status.success());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn killed_vmm_becomes_a_failed_pod_that_says_so() {
    let before = Footprint::now();
    let pod = Pod::new(SLEEPER);
    pod.start();
    pod.await_phase("Running");
    let vmm = Footprint::now()
        .since(&before)
        .into_iter()
        .find(|l| l.starts_with("process ") && l.contains("vmpod-vmm"))
        .expect("a VMM");
    let pid = vmm
        .split([' ', ':'])
        .nth(1)
        .and_then(|p| p.parse().ok())
        .expect("a pid");
    let began = std::time::Instant::now();
    kill(pid);
    let status = pod.await_phase("Failed");
    assert!(
        began.elapsed() < std::time::Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(
        status["status"]["message"]
            .as_str()
            .is_some_and(|m| !m.is_empty()),
        "{status:#}"
    );
    vmpod(["rm", &pod.name]).ok();
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn killed_supervisor_takes_the_machine_with_it_and_gc_cleans_up() {
    let before = Footprint::now();
    let pod = Pod::new(SLEEPER);
    pod.start();
    pod.await_phase("Running");
    let (pid, _) = processes_with("supervise")
        .into_iter()
        .find(|(pid, _)| {
            Footprint::now()
                .since(&before)
                .iter()
                .any(|l| l.starts_with(&format!("process {pid}:")))
        })
        .expect("a supervisor");
    kill(pid);
    eventually("the end of the machine", || {
        let left = Footprint::now().since(&before);
        (!left.iter().any(|l| l.contains("vmpod-vmm"))).then_some(())
    });
    vmpod(["gc"]).ok();
    let _ = vmpod(["rm", "-f", &pod.name]).run();
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn killed_foreground_command_leaves_the_pod_to_its_supervisor() {
    let before = Footprint::now();
    let pod = Pod::new(SLEEPER);
    let mut child = vmpod(["run"]).arg(pod.manifest()).spawn();
    eventually("a running pod", || {
        let outcome = vmpod(["inspect", &pod.name]).run();
        outcome.out.contains("\"Running\"").then_some(())
    });
    child.kill().expect("kill");
    let _ = child.wait();
    assert_eq!(pod.sh("c", "echo alive"), "alive\n");
    vmpod(["rm", "-f", &pod.name]).ok();
    before.assert_restored();
}
