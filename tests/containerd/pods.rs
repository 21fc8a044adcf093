//! Pods as a kubelet makes them.

use k8s_cri::v1;
use vmpod_tests::{Footprint, Sandbox, containerd, on_both};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_runs_containers_that_share_its_network_and_leaves_nothing() {
    containerd();
    on_both(|handler| {
        let before = Footprint::now();
        {
            let pod = Sandbox::run(handler);
            assert_eq!(pod.status().state(), v1::PodSandboxState::SandboxReady);
            let server = pod.shell("echo page > /tmp/index.html; httpd -f -p 8080 -h /tmp");
            let client = pod.shell("sleep 1000");
            assert_eq!(
                server.status().state(),
                v1::ContainerState::ContainerRunning
            );
            let page = client.sh("for i in $(seq 50); do wget -q -O - http://localhost:8080/ && exit; sleep 0.2; done; exit 1");
            assert_eq!(page, "page\n");
            let url = format!("http://{}:8080/", pod.address());
            assert_eq!(vmpod_tests::get(&url).as_deref(), Some("page\n"));
            let failing = pod.shell("echo words; echo more >&2; exit 7");
            let status = failing.await_end();
            assert_eq!((status.exit_code, &*status.reason), (7, "Error"));
            let log = failing.log();
            assert!(
                log.contains("stdout F words\n") && log.contains("stderr F more\n"),
                "{log}"
            );
        }
        before.assert_restored();
    });
}
