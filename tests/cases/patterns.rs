//! The manifests in examples/ that show patterns of pods, with the programs that they name.

use vmpod_tests::{Pod, eventually, get, vmpod};

fn example(name: &str) -> Pod {
    let path = format!("{}/../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    Pod::of_text(name, &text)
}

fn address(pod: &Pod) -> String {
    eventually("an address", || {
        pod.inspect()["status"]["podIP"].as_str().map(str::to_owned)
    })
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn probed_web_becomes_ready_is_restarted_when_it_hangs_and_says_goodbye() {
    let pod = example("probed-web");
    pod.start();
    eventually("readiness", || {
        (pod.container("web")["ready"] == true).then_some(())
    });
    let page = get(&format!("http://{}/", address(&pod)));
    assert_eq!(page.as_deref(), Some("open for business\n"));
    let _ = pod.sh("web", "touch /hang");
    eventually("a restart", || {
        let status = pod.container("web");
        (status["restartCount"] == 1 && status["ready"] == true).then_some(())
    });
    pod.assert_order(&[
        "ContainerStarted web",
        "PostStartHookDone web",
        "ContainerStartupPassed web",
        "ContainerReady web",
        "Unhealthy web: Liveness probe failed",
        "Killing web: Container web failed liveness probe, will be restarted",
        "ContainerExited web",
    ]);
    vmpod(["stop", &pod.name]).ok();
    assert!(pod.logs("web").contains("closing"), "{}", pod.logs("web"));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ambassador_lets_the_app_know_localhost_alone() {
    let backend = example("ambassador-backend");
    backend.start();
    let ip = address(&backend);
    eventually("the backend", || get(&format!("http://{ip}/")));
    let pod = example("ambassador");
    let outcome = vmpod(["run"]).arg(pod.manifest()).run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome
            .out
            .lines()
            .any(|l| l.starts_with("app") && l.ends_with("the backend's answer")),
        "{outcome}"
    );
    pod.assert_order(&[
        "ContainerStarted ambassador",
        "ContainerStartupPassed ambassador",
        "ContainerStarted app",
        "ContainerExited app",
        "ContainerExited ambassador",
    ]);
    assert!(backend.logs("web").contains("GET / HTTP"));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn adapter_serves_the_apps_figures_in_prometheus_form() {
    let pod = example("adapter");
    pod.start();
    let ip = address(&pod);
    eventually("the adapter's readiness", || {
        (pod.container("adapter")["ready"] == true).then_some(())
    });
    let count = || {
        let text = get(&format!("http://{ip}:9113/metrics"))?;
        assert!(
            text.contains("# TYPE nginx_http_requests_total counter"),
            "{text}"
        );
        text.lines()
            .find_map(|l| l.strip_prefix("nginx_http_requests_total "))
            .and_then(|n| n.parse::<u64>().ok())
    };
    let before = eventually("a figure", count);
    for _ in 0..20 {
        assert_eq!(get(&format!("http://{ip}/")).as_deref(), Some("hello\n"));
    }
    eventually("the requests in the figures", || {
        count().filter(|n| *n >= before + 20)
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn crash_loop_does_not_trouble_its_neighbour() {
    let pod = example("crash-loop");
    pod.start();
    eventually("a second restart", || {
        (pod.container("crashing")["restartCount"] == 2).then_some(())
    });
    let healthy = pod.container("healthy");
    assert_eq!(
        (&healthy["restartCount"], &healthy["ready"]),
        (&0.into(), &true.into())
    );
    let crashing = pod.container("crashing");
    assert_eq!(crashing["lastState"]["terminated"]["exitCode"], 3);
    let moments = pod.assert_order(&[
        "ContainerExited crashing",
        "ContainerBackOff crashing: back-off 10s",
    ]);
    let starts: Vec<i64> = pod
        .events()
        .into_iter()
        .filter(|(_, words)| words.starts_with("ContainerStarted crashing"))
        .map(|(at, _)| at)
        .collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(
        starts[2] - moments[1] >= 9_900_000_000,
        "{starts:?} {moments:?}"
    );
    let page = get(&format!("http://{}/", address(&pod)));
    assert!(page.is_some());
}
