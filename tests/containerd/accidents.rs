//! Life without luck: killed processes, a containerd that is away.

use k8s_cri::v1;
use vmpod_tests::{Footprint, Sandbox, containerd, cri, eventually, processes_with};

pub(crate) fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Processes of `program`.
pub(crate) fn pids_of(program: &str) -> Vec<u32> {
    processes_with(program)
        .into_iter()
        .filter(|(_, command)| {
            let path = command.split(' ').next().unwrap_or_default();
            path.rsplit('/').next() == Some(program)
        })
        .map(|(pid, _)| pid)
        .collect()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn killed_machine_and_killed_shim_end_the_pod_and_leave_nothing() {
    containerd();
    for program in ["vmpod-vmm", "containerd-shim-vmpod-v2"] {
        let before = Footprint::now();
        let others = pids_of(program);
        {
            let pod = Sandbox::run("vmpod");
            let container = pod.shell("sleep 1000");
            let pids = pids_of(program);
            let own = pids.iter().find(|pid| !others.contains(pid));
            kill(*own.unwrap_or_else(|| panic!("no {program} of the pod")));
            let killed = std::time::Instant::now();
            let status = container.await_end();
            assert!(
                killed.elapsed().as_secs() < 10,
                "{program}: {:?}",
                killed.elapsed()
            );
            assert_ne!(status.exit_code, 0);
            eventually("a sandbox that is not ready", || {
                (pod.status().state() == v1::PodSandboxState::SandboxNotready).then_some(())
            });
        }
        before.assert_restored();
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn containerd_that_was_away_finds_its_pods_again() {
    containerd();
    let before = Footprint::now();
    {
        let pod = Sandbox::run("vmpod");
        let lives = pod.shell("n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done");
        let ends = pod.shell("echo go; sleep 3; exit 4");
        ends.await_log("go");
        containerd().kill();
        std::thread::sleep(std::time::Duration::from_secs(5));
        containerd().revive();
        cri().await_service();
        assert_eq!(lives.status().state(), v1::ContainerState::ContainerRunning);
        assert_eq!(ends.await_end().exit_code, 4);
        assert_eq!(lives.sh("echo still here"), "still here\n");
        assert_eq!(pod.status().state(), v1::PodSandboxState::SandboxReady);
        let seen = lives.log().len();
        eventually("more lines after the restart", || {
            (lives.log().len() > seen).then_some(())
        });
    }
    before.assert_restored();
}
