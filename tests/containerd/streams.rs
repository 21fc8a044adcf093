//! Containers whose streams containerd opens to the shim instead of fifos (`io_type = "streaming"`, from containerd 2.1 on):
//! what they print and read is the same.

use std::fs;

use vmpod_tests::{
    Container, Footprint, STREAMING, Sandbox, containerd, cri, eventually, processes_with,
};

/// Whether this containerd can; says so if not.
fn can_stream() -> bool {
    let (major, minor) = containerd().version();
    let can = (major, minor) >= (2, 1);
    if !can {
        eprintln!("containerd {major}.{minor} has no streams but fifos: nothing to see");
    }
    can
}

/// Lines of `stream` in a log.
fn lines(container: &Container<'_>, stream: &str) -> usize {
    let start = format!("{stream} F ");
    container
        .log()
        .lines()
        .filter(|line| line.starts_with(&start))
        .count()
}

/// Sockets that the shim of the only streaming pod has open.
fn sockets_of_shim(pod: &Sandbox) -> usize {
    let shims = processes_with("containerd-shim-vmpod-v2");
    let own = shims.iter().find(|(_, command)| command.contains(&pod.id));
    let (pid, _) = own.unwrap_or_else(|| panic!("no shim of {}: {shims:?}", pod.id));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn streams_of_containers_reach_the_log_to_their_last_line() {
    if !can_stream() {
        return;
    }
    let before = Footprint::now();
    {
        let pod = Sandbox::run(STREAMING);
        // Some megabytes on both, and the end comes at once.
        let line = "0123456789".repeat(10);
        let container = pod.shell(&format!(
            "yes {line} | head -n 30000 >&2 & yes {line} | head -n 30000; wait; echo last >&2; echo last; exit 7"
        ));
        let status = container.await_end();
        assert_eq!((status.exit_code, &*status.reason), (7, "Error"));
        for stream in ["stdout", "stderr"] {
            eventually("all lines in the log", || {
                (lines(&container, stream) == 30001).then_some(())
            });
        }
        // A reader that is slow holds nobody else up, and one after the other ends.
        for word in ["one", "two", "three"] {
            let short = pod.shell(&format!("echo {word}; echo {word} >&2"));
            short.await_end();
            let log = short.await_log(&format!("stdout F {word}\n"));
            assert!(log.contains(&format!("stderr F {word}\n")), "{log}");
        }
        // Never started: its streams wait for nothing.
        drop(pod.create(|config| config.stdin = true).unwrap());
    }
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn streams_of_execs_have_output_status_input_and_terminal() {
    if !can_stream() {
        return;
    }
    let pod = Sandbox::run(STREAMING);
    let container = pod.shell("sleep 1000");
    let ran = container
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 5"], 60)
        .unwrap();
    assert_eq!((ran.code, &*ran.out, &*ran.err), (5, "out\n", "err\n"));
    let megabytes = container.sh("dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' x");
    assert_eq!(megabytes.len(), 3 << 20);
    let missing = container.exec(&["/no/such/program"], 60).unwrap_err();
    assert!(missing.message().contains("no such file"), "{missing:?}");
    let late = container.exec(&["sleep", "1000"], 2).unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late:?}");

    let mut plain = container.exec_streaming(
        &[
            "sh",
            "-c",
            "read a; echo got $a; head -c 1000000 | wc -c; echo e >&2; exit 4",
        ],
        false,
    );
    plain.input("word\n");
    // More than any window, to a process that is late.
    for _ in 0..100 {
        plain.input(&"x".repeat(10_000));
    }
    assert_eq!(plain.finish(), Some(4), "{plain:?}");
    assert_eq!((&*plain.out, &*plain.err), ("got word\n1000000\n", "e\n"));

    // With its client goes the command, as under any runtime, and what it was sent is there.
    let mut cat = container.exec_streaming(&["sh", "-c", "cat > /tmp/in"], false);
    cat.input("all of it\n");
    eventually("what was sent", || {
        let ran = container.exec(&["cat", "/tmp/in"], 60).unwrap();
        (ran.out == "all of it\n").then_some(())
    });
    drop(cat);
    eventually("the end of a command", || {
        (container
            .sh("ps | grep -c '[c]at > /tmp/in' || true")
            .trim()
            == "0")
            .then_some(())
    });

    let mut terminal = container.exec_streaming(&["sh"], true);
    terminal.input("test -t 0 && echo is a $((40 + 2)) terminal\n");
    terminal.await_output("is a 42 terminal");
    terminal.input("exit 6\n");
    assert_eq!(terminal.finish(), Some(6), "{terminal:?}");

    // Each exec has connections of its own, which go with it.
    let before = sockets_of_shim(&pod);
    for number in 0..20 {
        assert_eq!(
            container.sh(&format!("echo {number}")),
            format!("{number}\n")
        );
    }
    eventually("the end of connections", || {
        (sockets_of_shim(&pod) <= before).then_some(())
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn streams_of_containers_are_attached_to_and_end_by_themselves() {
    if !can_stream() {
        return;
    }
    let pod = Sandbox::run(STREAMING);
    let start = |line: &str, once: bool, terminal: bool| {
        pod.start(|config| {
            config.command = ["sh", "-c", line].map(str::to_owned).to_vec();
            config.stdin = true;
            config.stdin_once = once;
            config.tty = terminal;
        })
    };
    let once = start(
        "while read a; do echo got $a; done; echo end; exit 9",
        true,
        false,
    );
    let mut attached = once.attach(false);
    attached.input("one\n");
    attached.await_output("got one\n");
    drop(attached);
    // With the first client the input ends.
    assert_eq!(once.await_end().exit_code, 9);
    once.await_log("stdout F end\n");

    let shell = start("sh", false, true);
    for _ in 0..2 {
        let mut attached = shell.attach(true);
        attached.input("test -t 0 && echo is a $((40 + 2)) terminal\n");
        attached.await_output("is a 42 terminal");
    }
    let mut attached = shell.attach(true);
    attached.input("exit 8\n");
    attached.finish();
    assert_eq!(shell.await_end().exit_code, 8);
    shell.await_log("is a 42 terminal");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn streams_are_found_again_by_a_containerd_that_was_away() {
    if !can_stream() {
        return;
    }
    let before = Footprint::now();
    {
        let pod = Sandbox::run(STREAMING);
        let prints = pod.shell("n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done");
        let reads = pod.start(|config| {
            let line = "while read a; do echo got $a; done; exit 9";
            config.command = ["sh", "-c", line].map(str::to_owned).to_vec();
            config.stdin = true;
            config.stdin_once = true;
        });
        prints.await_log("line 2\n");
        containerd().restart();
        cri().await_service();
        let seen = lines(&prints, "stdout");
        eventually("more lines after the restart", || {
            (lines(&prints, "stdout") > seen + 3).then_some(())
        });
        let mut attached = reads.attach(false);
        attached.input("one\n");
        attached.await_output("got one\n");
        drop(attached);
        assert_eq!(reads.await_end().exit_code, 9);
        assert_eq!(prints.sh("echo still here"), "still here\n");
    }
    before.assert_restored();
}
