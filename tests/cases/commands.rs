//! The verbs of the command line, on one running pod each.

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use vmpod_tests::{Pod, eventually, get, vmpod};

const SLEEPER: &str = "
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'echo started; echo problem >&2; while true; do sleep 0.2; done']}
  terminationGracePeriodSeconds: 1";

fn running() -> Pod {
    let pod = Pod::new(SLEEPER);
    pod.start();
    eventually("its first line", || {
        pod.logs("c").contains("started").then_some(())
    });
    pod
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn run_from_standard_input_streams_and_ends() {
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: from-stdin}\nspec: {restartPolicy: Never, containers: [{name: c, image: busybox, command: [echo, hi]}]}\n";
    let outcome = vmpod(["run", "--rm", "-f", "-"]).input(manifest).run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome
            .out
            .lines()
            .any(|l| l.contains('c') && l.ends_with("hi")),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn ps_lists_the_pod_as_text_and_json() {
    let pod = running();
    assert!(vmpod(["ps"]).ok().contains(&pod.name));
    let list: serde_json::Value =
        serde_json::from_str(&vmpod(["ps", "--output", "json"]).ok()).expect("JSON");
    assert!(list.to_string().contains(&pod.name), "{list:#}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn logs_show_both_streams_follow_and_tail() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [sh, -c, 'for i in 1 2 3 4 5; do echo line$i; sleep 0.3; done; echo oops >&2']}]",
    );
    pod.start();
    let followed = vmpod(["logs", "-f", "-c", "c", &pod.name]).run();
    assert_eq!(followed.code, 0, "{followed}");
    assert!(
        followed.out.contains("line1\nline2\nline3\nline4\nline5\n"),
        "{followed}"
    );
    assert!(
        followed.err.contains("oops") || followed.out.contains("oops"),
        "{followed}"
    );
    let tail = vmpod(["logs", "--tail", "2", "-c", "c", &pod.name]).run();
    assert_eq!(
        format!("{}{}", tail.out, tail.err).lines().count(),
        2,
        "{tail}"
    );
    let stamped = vmpod(["logs", "--timestamps", "-c", "c", &pod.name]).ok();
    assert!(
        stamped
            .lines()
            .all(|l| l.starts_with("20") && l.contains('T')),
        "{stamped}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exec_gives_output_input_and_exit_status() {
    let pod = running();
    assert_eq!(pod.sh("c", "echo $((6*7))"), "42\n");
    let outcome = pod.exec("c", &["sh", "-c", "echo bad >&2; exit 7"]);
    assert_eq!((outcome.code, outcome.err.trim()), (7, "bad"), "{outcome}");
    let big: Vec<u8> = (0..300_000_u32)
        .flat_map(|i| format!("{i}\n").into_bytes())
        .collect();
    let outcome = vmpod(["exec", "-i", "-c", "c", &pod.name, "--", "md5sum"])
        .input(big.clone())
        .run();
    let there = outcome
        .out
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut here = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("run md5sum");
    here.stdin
        .take()
        .expect("a pipe")
        .write_all(&big)
        .expect("write");
    let here = String::from_utf8(here.wait_with_output().expect("output").stdout).expect("text");
    assert_eq!(
        there,
        here.split_whitespace().next().unwrap_or_default(),
        "{}",
        outcome.code
    );
    let missing = pod.exec("c", &["no-such-program"]);
    assert!([126, 127].contains(&missing.code), "{missing}");
    assert!(missing.err.contains("no-such-program"), "{missing}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exec_output_of_megabytes_arrives_whole() {
    let pod = running();
    let outcome = pod.exec(
        "c",
        &[
            "sh",
            "-c",
            "dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' x",
        ],
    );
    assert_eq!((outcome.code, outcome.out.len()), (0, 4 << 20));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exec_with_a_terminal_has_one() {
    let pod = running();
    // `script` gives the command a terminal of its own, as a person's shell would.
    let bin = std::env::var("VMPOD_BIN").expect("VMPOD_BIN");
    let line = format!("{bin} exec -it -c c {} -- sh -c 'tty; stty size'", pod.name);
    let output = std::process::Command::new("script")
        .args([
            "-qec",
            &format!("stty rows 33 cols 77; {line}"),
            "/dev/null",
        ])
        .output()
        .expect("run script");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("/dev/pts/") || text.contains("/dev/console"),
        "{text}"
    );
    assert!(text.contains("33 77"), "{text}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn attach_gives_standard_input_to_the_container() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers: [{name: c, image: busybox, stdin: true, command: [sh, -c, 'read line; echo got:$line']}]",
    );
    pod.start();
    pod.await_phase("Running");
    let mut child = vmpod(["attach", "-c", "c", &pod.name]).spawn();
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"hello\n").expect("write");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("read");
    drop(input);
    let _ = child.wait();
    assert_eq!(line, "got:hello\n");
    pod.await_phase("Succeeded");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn wait_returns_the_pods_result() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [sh, -c, 'sleep 1; exit 5']}]",
    );
    pod.start();
    let outcome = vmpod(["wait", &pod.name]).run();
    assert!(outcome.out.trim() == "5" || outcome.code == 5, "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn kill_sends_the_signal() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [sh, -c, 'trap \"exit 11\" USR1; while true; do sleep 0.1; done']}]",
    );
    pod.start();
    pod.await_phase("Running");
    std::thread::sleep(Duration::from_secs(1));
    vmpod(["kill", "--signal", "USR1", &pod.name]).ok();
    pod.await_phase("Failed");
    assert_eq!(pod.container("c")["state"]["terminated"]["exitCode"], 11);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn cp_copies_both_ways_and_stays_inside() {
    let pod = running();
    let tree = pod.directory.path().join("tree/sub");
    std::fs::create_dir_all(&tree).expect("make a tree");
    std::fs::write(tree.join("file"), "content").expect("write");
    let tree = pod.directory.path().join("tree");
    vmpod(["cp", &tree.to_string_lossy(), &format!("{}:/tmp", pod.name)]).ok();
    assert_eq!(pod.sh("c", "cat /tmp/tree/sub/file"), "content");
    let back = pod.directory.path().join("back");
    std::fs::create_dir_all(&back).expect("make a directory");
    vmpod([
        "cp",
        &format!("{}:/tmp/tree", pod.name),
        &back.to_string_lossy(),
    ])
    .ok();
    assert_eq!(
        std::fs::read_to_string(back.join("tree/sub/file")).expect("read"),
        "content"
    );
    // An absolute link in the container leads to the container's own file, never to the host's.
    let _ = pod.sh(
        "c",
        "echo inside > /etc/secret-here; ln -s /etc/secret-here /tmp/link",
    );
    vmpod([
        "cp",
        &format!("{}:/tmp/link", pod.name),
        &back.join("copied").to_string_lossy(),
    ])
    .run();
    assert!(!std::path::Path::new("/etc/secret-here").exists());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn port_forward_reaches_the_pods_localhost() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sh, -c, 'mkdir /w; echo page > /w/index.html; httpd -f -p 127.0.0.1:8080 -h /w']}]",
    );
    pod.start();
    pod.await_phase("Running");
    let mut child = vmpod(["port-forward", &pod.name, "18080:8080"]).spawn();
    let page = eventually("the forwarded page", || get("http://127.0.0.1:18080/"));
    assert_eq!(page, "page\n");
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn stats_count_what_the_containers_use() {
    let pod = running();
    let text = vmpod(["stats", "--output", "json", &pod.name]).ok();
    let stats: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let container = &stats[0]["containers"][0];
    assert_eq!(container["container"], "c", "{text}");
    for figure in [
        &container["cpuUsageMicroseconds"],
        &container["memoryBytes"],
        &container["pids"],
        &stats[0]["guest"]["memoryTotalBytes"],
        &stats[0]["host"]["vmm"]["anonymousBytes"],
    ] {
        assert!(figure.as_u64().is_some_and(|n| n > 0), "{text}");
    }
    let table = vmpod(["stats", &pod.name]).ok();
    let row = table.lines().nth(1).unwrap_or_default();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[..2], [pod.name.as_str(), "c"], "{table}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn events_tell_the_pods_life_in_order() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  initContainers: [{name: i, image: busybox, command: ['true']}]
  containers: [{name: c, image: busybox, command: ['true']}]",
    );
    assert_eq!(vmpod(["run"]).arg(pod.manifest()).run().code, 0);
    let text = vmpod(["events", &pod.name]).ok();
    let position = |needle: &[&str]| {
        text.lines()
            .position(|l| needle.iter().all(|n| l.contains(n)))
            .unwrap_or_else(|| panic!("no {needle:?} in {text}"))
    };
    assert!(
        position(&["i", "tarted"]) < position(&["c", "tarted"]),
        "{text}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            vmpod(["completions", shell]).ok().contains("vmpod"),
            "{shell}"
        );
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn rm_of_a_running_pod_wants_force_and_unknown_pods_are_named() {
    let pod = running();
    vmpod(["rm", &pod.name]).fails(125, &[&pod.name, "running"]);
    vmpod(["rm", "-f", &pod.name]).ok();
    vmpod(["inspect", &pod.name]).fails(125, &[&pod.name]);
    vmpod(["logs", "no-such-pod"]).fails(125, &["no-such-pod"]);
}
