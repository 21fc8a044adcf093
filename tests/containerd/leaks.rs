//! Nothing stays behind after many pods.

use vmpod_tests::{Footprint, Sandbox, containerd};

/// Descriptors, mounts and threads of the host that pods could make more and more of.
fn counted() -> (usize, usize) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let links = std::fs::read_dir("/sys/class/net").unwrap().count();
    (mounts.lines().count(), links)
}

/// How many; an emulated host takes three seconds for each. `VMPOD_ROUNDS=200` for more.
fn rounds() -> u32 {
    let told = std::env::var("VMPOD_ROUNDS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(48)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn many_rounds_leave_nothing() {
    containerd();
    // Makes the template, the bridge and the image's snapshot, which stay.
    drop(Sandbox::run("vmpod").shell("true").await_end());
    let (before, numbers) = (Footprint::now(), counted());
    // Pods with a network and a container; machines of `ctr` make up the rest, which are quicker to make.
    for round in 0..rounds() / 4 {
        let pod = Sandbox::run("vmpod");
        let container = pod.shell(&format!("echo round {round}"));
        assert_eq!(container.await_end().exit_code, 0, "round {round}");
    }
    for round in 0..rounds() / 4 * 3 {
        let outcome = containerd()
            .ctr([
                "-n",
                "k8s.io",
                "run",
                "--rm",
                "--runtime",
                "io.containerd.vmpod.v2",
            ])
            .args(["docker.io/library/busybox:latest", "round", "true"])
            .run();
        assert_eq!(outcome.code, 0, "round {round}: {outcome}");
    }
    before.assert_restored();
    assert_eq!(counted(), numbers);
}
