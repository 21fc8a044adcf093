//! containerd's own client, `ctr`: a container is a machine of its own.

use vmpod_tests::{Footprint, containerd};

const IMAGE: &str = "docker.io/library/busybox:latest";

fn run<'a>(name: &'a str, words: &[&'a str]) -> vmpod_tests::Vmpod {
    containerd()
        .ctr([
            "-n",
            "k8s.io",
            "run",
            "--rm",
            "--runtime",
            "io.containerd.vmpod.v2",
        ])
        .args([IMAGE, name])
        .args(words)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn container_of_ctr_prints_reads_and_ends_with_its_status() {
    containerd();
    let before = Footprint::now();
    let outcome = run(
        "one",
        &[
            "sh",
            "-c",
            "echo to stdout; echo to stderr >&2; uname -r; exit 3",
        ],
    )
    .run();
    assert_eq!(outcome.code, 3, "{outcome}");
    assert!(outcome.out.starts_with("to stdout\n"), "{outcome}");
    assert!(outcome.out.contains("-vmpod"), "{outcome}");
    assert_eq!(outcome.err, "to stderr\n", "{outcome}");
    let outcome = run("two", &["cat"]).input("typed\n").run();
    assert_eq!((outcome.code, &*outcome.out), (0, "typed\n"), "{outcome}");
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn command_that_does_not_exist_is_told_and_leaves_nothing() {
    containerd();
    let before = Footprint::now();
    let outcome = run("none", &["/no/such/program"]).run();
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(outcome.err.contains("/no/such/program"), "{outcome}");
    assert!(
        outcome.err.contains("no such file or directory"),
        "{outcome}"
    );
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn container_starts_over_what_a_host_that_went_down_left_of_it() {
    containerd();
    let before = Footprint::now();
    let pods = || -> Vec<std::path::PathBuf> {
        std::fs::read_dir("/var/lib/vmpod/pods")
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let others = pods();
    containerd()
        .ctr([
            "-n",
            "k8s.io",
            "run",
            "-d",
            "--runtime",
            "io.containerd.vmpod.v2",
        ])
        .args([IMAGE, "lost", "sleep", "1000"])
        .ok();
    let place = pods().into_iter().find(|place| !others.contains(place));
    let place = place.expect("a directory of the container's pod");
    for words in [
        ["task", "rm", "-f", "lost"].as_slice(),
        &["container", "rm", "lost"],
    ] {
        containerd()
            .ctr(["-n", "k8s.io"])
            .args(words.iter().copied())
            .ok();
    }
    assert!(!place.exists(), "{place:?}");
    // The same id, because the name is the same; what lies in /run is gone after a boot.
    std::fs::create_dir_all(place.join("writable")).unwrap();
    let outcome = run("lost", &["echo", "again"]).run();
    assert_eq!((outcome.code, &*outcome.out), (0, "again\n"), "{outcome}");
    before.assert_restored();
}
