//! The manifests in examples/ that show patterns of pods, with the programs that they name.

use std::time::Duration;

use vmpod_tests::{Footprint, Pod, eventually, get, vmpod};

fn example(name: &str) -> Pod {
    let path = format!("{}/../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let pod = Pod::of_text(name, &text);
    // As it stands: it knows nothing of a directory of the test, whose name REDIRECT would have in it.
    std::fs::write(pod.manifest(), text).expect("write the manifest");
    pod
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

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn log_collector_ships_a_file_of_its_neighbour_to_a_store_in_another_pod() {
    let store = example("log-store");
    store.start();
    eventually("a ready store", || {
        (store.container("store")["ready"] == true).then_some(())
    });
    let pod = example("log-collector");
    pod.start();
    eventually("a ready web server", || {
        (pod.container("web")["ready"] == true).then_some(())
    });
    let ip = address(&pod);
    assert!(get(&format!("http://{ip}/?question=1")).is_some());
    let kept = || store.sh("store", "cat /store/*.log 2>/dev/null || true");
    eventually("the first request in the store", || {
        kept().contains("GET /?question=1 HTTP").then_some(())
    });
    // What comes later is shipped as it comes.
    assert!(get(&format!("http://{ip}/?question=2")).is_some());
    eventually("the second request in the store", || {
        kept().contains("GET /?question=2 HTTP").then_some(())
    });
    let line = kept();
    let line = line.lines().next().unwrap_or_default();
    assert!(line.contains(" log-collector nginx: "), "{line}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn transparent_proxy_has_every_connection_of_an_app_that_knows_nothing_of_it() {
    let backend = example("ambassador-backend");
    backend.start();
    let ip = address(&backend);
    eventually("the backend", || get(&format!("http://{ip}/")));
    let pod = example("transparent-proxy");
    pod.start();
    let ip = address(&pod);
    let page = eventually("the app's page", || get(&format!("http://{ip}/")));
    assert_eq!(page, "the backend's answer\n");
    pod.assert_order(&[
        "ContainerStarted redirect",
        "ContainerExited redirect",
        "ContainerStarted proxy",
        "ContainerStartupPassed proxy",
        "ContainerStarted app",
    ]);
    let log = eventually("both ways in the proxy's log", || {
        let log = pod.logs("proxy");
        (log.contains("inbound") && log.contains("outbound")).then_some(log)
    });
    assert!(
        log.contains(":8090 200") && log.contains("inbound GET / HTTP/1.1 -> 127.0.0.1:8080 200"),
        "{log}"
    );
    // The app itself has the proxy in its way and cannot take it away.
    let rules = pod.exec("app", &["sh", "-c", "cat /proc/self/status"]);
    let capabilities = rules.out.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|c| u64::from_str_radix(c.trim(), 16).ok());
    // Bit 12 is CAP_NET_ADMIN (capabilities(7)).
    assert_eq!(capabilities.map(|c| c >> 12 & 1), Some(0), "{rules}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn gang_fits_as_a_whole_or_none_of_it_runs() {
    let pod = example("gang");
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    for name in ["first", "second", "third"] {
        let met = |l: &str| l.starts_with(name) && l.ends_with("| all three are here");
        assert!(outcome.out.lines().any(met), "{name}: {outcome}");
    }
    // Two of the three would fit, all of them do not: what each asks for is half of the host's memory.
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let total: u64 = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .expect("MemTotal");
    let text = std::fs::read_to_string(pod.manifest()).expect("read the manifest");
    let large = text.replace("64Mi", &format!("{}Ki", total * 2 / 5));
    assert_ne!(large, text);
    let large = Pod::of_text("gang", &large);
    let before = Footprint::now();
    vmpod(["run"])
        .arg(large.manifest())
        .fails(125, &["of memory", "this host can give"]);
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn rsyslog_and_its_helpers_work_together_and_fail_apart() {
    let pod = example("rsyslog");
    pod.start();
    let kept = |file: &str| pod.exec("rsyslogd", &["cat", &format!("/kept/{file}")]).out;
    eventually("the app's word in the file of messages", || {
        kept("messages.log")
            .contains("the application has begun")
            .then_some(())
    });
    eventually("the kernel's words in theirs", || {
        kept("kern.log").contains("Linux version").then_some(())
    });
    pod.assert_order(&[
        "ContainerStarted rsyslogd",
        "ContainerStartupPassed rsyslogd",
        "ContainerStarted imuxsock",
        "ContainerStartupPassed imuxsock",
        "ContainerStarted imklog",
        "ContainerStarted app",
    ]);
    // A helper that fails is restarted by itself, and what it does goes on.
    vmpod(["kill", "--signal", "KILL", "-c", "imuxsock", &pod.name]).ok();
    eventually("a restart of the helper", || {
        let helper = pod.container("imuxsock");
        (helper["restartCount"] == 1 && helper["ready"] == true).then_some(())
    });
    eventually("a word after that", || {
        let said = pod.exec(
            "app",
            &["logger", "-u", "/run/log/log", "-t", "app", "still here"],
        );
        (said.code == 0 && kept("messages.log").contains("still here")).then_some(())
    });
    for name in ["rsyslogd", "imklog", "app"] {
        assert_eq!(pod.container(name)["restartCount"], 0, "{name}");
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ci_job_builds_an_image_with_an_engine_of_its_own_and_runs_it() {
    let pod = example("ci-job");
    let outcome = vmpod(["run", "--rm"])
        .arg(pod.manifest())
        .within(Duration::from_secs(300))
        .run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let said = |text: &str| outcome.out.lines().any(|l| l.ends_with(text));
    assert!(said("built in Linux"), "{outcome}");
    assert!(
        said("hello, everybody, from a container in a pod"),
        "{outcome}"
    );
}
