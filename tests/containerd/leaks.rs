//! Nothing stays behind after many pods.

use vmpod_tests::{Footprint, OneOff, Sandbox, containerd};

/// Descriptors, mounts and threads of the host that pods could make more and more of.
fn counted() -> (usize, usize) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let links = std::fs::read_dir("/sys/class/net").unwrap().count();
    (mounts.lines().count(), links)
}

/// Pods with a network and a container of the CRI, machines of `ctr`, and machines that are asked for as `ctr` asks for them.
/// Together two hundred; the last are the quickest to make.
const ROUNDS: [u32; 3] = [8, 2, 190];

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn many_rounds_leave_nothing() {
    containerd();
    // Makes the template, the bridge and the image's snapshot, which stay.
    let one_off = {
        let pod = Sandbox::run("vmpod");
        let container = pod.shell("true");
        container.await_end();
        OneOff::like(&container)
    };
    let (before, numbers) = (Footprint::now(), counted());
    let [pods, by_ctr, by_api] = ROUNDS;
    for round in 0..pods {
        let pod = Sandbox::run("vmpod");
        let container = pod.shell(&format!("echo round {round}"));
        assert_eq!(container.await_end().exit_code, 0, "round {round}");
    }
    for round in 0..by_ctr {
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
    for round in 0..by_api {
        let code = one_off.run(&format!("round-{round}"), &["sh", "-c", "exit 3"]);
        assert_eq!(code, 3, "round {round}");
    }
    before.assert_restored();
    assert_eq!(counted(), numbers);
}
