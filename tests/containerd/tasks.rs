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
