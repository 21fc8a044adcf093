//! What is wrong gets containerd's own kind of error, with a sentence that says what and where.

use std::fs;

use vmpod_tests::{Footprint, Outcome, Vmpod, containerd};

const IMAGE: &str = "docker.io/library/busybox:latest";

fn ctr<'a>(words: impl IntoIterator<Item = &'a str>) -> Vmpod {
    containerd().ctr(["-n", "k8s.io"]).args(words)
}

/// `ctr run` with further `options`.
fn run(options: &[&str], name: &str, words: &[&str]) -> Outcome {
    ctr(["run", "--rm", "--runtime", "io.containerd.vmpod.v2"])
        .args(options)
        .args([IMAGE, name])
        .args(words)
        .run()
}

/// containerd's kinds of errors, which `ctr` prints up to 1.7.
const KINDS: [&str; 4] = [
    "already exists",
    "failed precondition",
    "not found",
    "not implemented",
];

fn fails(outcome: &Outcome, texts: &[&str]) {
    assert_ne!(outcome.code, 0, "{outcome}");
    let told = |text: &&&str| containerd().version() < (2, 0) || !KINDS.contains(*text);
    for text in texts.iter().filter(told) {
        assert!(outcome.err.contains(text), "no {text:?} in {outcome}");
    }
}

/// Removes container `name` after a start that failed: `ctr run --rm` does so only after one that did not.
fn forget(name: &str) {
    let _ = ctr(["container", "rm", name]).run();
    let _ = ctr(["snapshot", "rm", name]).run();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn wishes_for_what_is_the_hosts_are_refused_by_name() {
    containerd();
    let before = Footprint::now();
    let refused = run(&["--net-host"], "net", &["true"]);
    fails(&refused, &["hostNetwork", "failed precondition"]);
    forget("net");
    let refused = run(&["--device", "/dev/kvm"], "device", &["true"]);
    fails(&refused, &["/dev/kvm", "failed precondition"]);
    forget("device");
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn mount_of_what_is_not_there_names_the_path() {
    containerd();
    let before = Footprint::now();
    let options = [
        "--mount",
        "type=bind,src=/no/such/source,dst=/x,options=rbind:ro",
    ];
    let refused = run(&options, "source", &["true"]);
    fails(&refused, &["/no/such/source", "not found"]);
    forget("source");
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn settings_size_the_machine_and_mistakes_in_them_are_told_with_their_line() {
    containerd();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmpod.toml");
    let with = |text: &str| {
        fs::write(&path, text).unwrap();
        let options = ["--runtime-config-path", path.to_str().unwrap()];
        run(
            &options,
            "settings",
            &["sh", "-c", "nproc; cat /proc/cmdline"],
        )
    };
    let outcome =
        with("[machine]\ncpus = 1\nmemory = '100Mi'\nkernel_parameters = 'told.by=settings'\n");
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.starts_with("1\n"), "{outcome}");
    assert!(outcome.out.contains("told.by=settings"), "{outcome}");
    let refused = with("[machine]\ncpu = 1\n");
    fails(&refused, &["vmpod.toml", "line 2", "unknown field `cpu`"]);
    forget("settings");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn operations_out_of_order_get_the_right_kinds_of_errors() {
    containerd();
    let before = Footprint::now();
    ctr([
        "container",
        "create",
        "--runtime",
        "io.containerd.vmpod.v2",
        IMAGE,
        "order",
        "true",
    ])
    .ok();
    ctr(["task", "start", "-d", "order"]).ok();
    let again = ctr(["task", "start", "-d", "order"]).run();
    fails(&again, &["already exists"]);
    vmpod_tests::eventually("the end of the task", || {
        ctr(["task", "ls"]).ok().contains("STOPPED").then_some(())
    });
    let dead = ctr(["task", "exec", "--exec-id", "x", "order", "true"]).run();
    fails(&dead, &["failed precondition", "stopped"]);
    let gone = ctr(["task", "kill", "order"]).run();
    fails(&gone, &["process already finished", "not found"]);
    let frozen = ctr(["task", "pause", "order"]).run();
    fails(&frozen, &["failed precondition"]);
    ctr(["task", "rm", "order"]).ok();
    ctr(["container", "rm", "order"]).ok();
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn task_is_paused_and_goes_on() {
    containerd();
    let line = "n=0; while :; do n=$((n+1)); echo $n > /n; done";
    ctr([
        "run",
        "-d",
        "--runtime",
        "io.containerd.vmpod.v2",
        IMAGE,
        "frozen",
        "sh",
        "-c",
        line,
    ])
    .ok();
    let number = || ctr(["task", "exec", "--exec-id", "look", "frozen", "cat", "/n"]).ok();
    number();
    ctr(["task", "pause", "frozen"]).ok();
    assert!(ctr(["task", "ls"]).ok().contains("PAUSED"));
    ctr(["task", "resume", "frozen"]).ok();
    assert!(ctr(["task", "ls"]).ok().contains("RUNNING"));
    let saved = ctr(["task", "checkpoint", "frozen"]).run();
    fails(&saved, &["not implemented"]);
    let processes = ctr(["task", "ps", "frozen"]).ok();
    assert!(processes.contains("41943"), "{processes}");
    let metrics = ctr(["task", "metrics", "frozen"]).ok();
    assert!(metrics.contains("memory"), "{metrics}");
    ctr(["task", "kill", "-s", "KILL", "frozen"]).ok();
    ctr(["task", "rm", "frozen"]).run();
    ctr(["container", "rm", "frozen"]).ok();
}
