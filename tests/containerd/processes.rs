//! Commands in containers, their streams, their ends.

use k8s_cri::v1;
use vmpod_tests::{Sandbox, containerd, eventually, on_both};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exec_gives_output_and_status_and_ends_at_its_limit() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.shell("sleep 1000");
        let ran = container
            .exec(&["sh", "-c", "echo out; echo err >&2; exit 5"], 60)
            .unwrap();
        assert_eq!((ran.code, &*ran.out, &*ran.err), (5, "out\n", "err\n"));
        let missing = container.exec(&["/no/such/program"], 60).unwrap_err();
        assert!(missing.message().contains("no such file"), "{missing:?}");
        let late = container.exec(&["sleep", "1000"], 2).unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late:?}");
        // Nothing of it is left, and the container lives on.
        eventually("the end of the late command", || {
            (container.sh("ps | grep -c '[s]leep 1000'").trim() == "1").then_some(())
        });
        let megabytes = container.sh("dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' x");
        assert_eq!(megabytes.len(), 3 << 20);
        let ended = pod.shell("true");
        ended.await_end();
        let error = ended.exec(&["true"], 60).unwrap_err();
        assert!(
            error.message().contains("not running") || error.message().contains("EXITED"),
            "{error:?}"
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn exec_with_streams_is_interactive_with_and_without_terminal() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.shell("sleep 1000");
        let mut plain = container.exec_streaming(
            &["sh", "-c", "read a; echo got $a; echo e >&2; exit 4"],
            false,
        );
        plain.input("word\n");
        assert_eq!(plain.finish(), Some(4), "{plain:?}");
        assert_eq!((&*plain.out, &*plain.err), ("got word\n", "e\n"));
        let mut terminal = container.exec_streaming(&["sh"], true);
        terminal.resize(91, 37);
        terminal.input("test -t 0 && echo is a $((40 + 2)) terminal\n");
        terminal.await_output("is a 42 terminal");
        eventually("the terminal's size", || {
            terminal.out.clear();
            terminal.input("stty size; echo d''one\n");
            terminal.await_output("done");
            terminal.out.contains("37 91").then_some(())
        });
        terminal.input("exit 6\n");
        assert_eq!(terminal.finish(), Some(6), "{terminal:?}");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn attach_reads_and_writes_the_containers_own_streams() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = [
                "sh",
                "-c",
                "while read a; do echo got $a; done; echo end; sleep 1; exit 9",
            ]
            .map(str::to_owned)
            .to_vec();
            config.stdin = true;
            config.stdin_once = true;
        });
        let mut attached = container.attach(false);
        attached.input("one\n");
        attached.await_output("got one\n");
        drop(attached);
        // With the first client the input ends.
        let status = container.await_end();
        assert_eq!(status.exit_code, 9);
        container.await_log("stdout F end\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn stop_asks_first_and_kills_after_the_grace() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let polite =
            pod.shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
        polite.await_log("ready");
        polite.stop(60);
        let status = polite.status();
        assert_eq!(status.exit_code, 3);
        assert!(polite.log().contains("stdout F bye"), "{}", polite.log());
        let deaf = pod.shell("trap '' TERM; echo ready; while :; do sleep 0.1; done");
        deaf.await_log("ready");
        deaf.stop(1);
        assert_eq!(deaf.status().exit_code, 137);
        // Twice is no error, and neither is the removal of what was stopped.
        deaf.stop(1);
        deaf.remove();
    });
}

/// The kernel has killed it, and the client is told why.
pub(crate) fn assert_ended_for_want_of_memory(handler: &str, status: &v1::ContainerStatus) {
    assert_eq!(status.exit_code, 137, "{handler}");
    // The watcher of runc's shim may come too late: the file that tells goes with the control group.
    let told = status.reason == "OOMKilled" || (handler == "runc" && status.reason == "Error");
    assert!(told, "{handler}: {status:?}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn kill_for_want_of_memory_is_told_as_such() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let greedy = pod.start(|config| {
            config.command = ["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=200"]
                .map(str::to_owned)
                .to_vec();
            let linux = config.linux.as_mut().unwrap();
            linux.resources = Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 20 << 20,
                ..Default::default()
            });
        });
        let status = greedy.await_end();
        assert_ended_for_want_of_memory(handler, &status);
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn log_is_reopened_when_it_was_moved_away() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.shell("n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done");
        container.await_log("line 2");
        let moved = container.reopen_log();
        container.await_log("line");
        assert!(!container.log().contains("line 1\n"), "{}", container.log());
        assert!(std::fs::read_to_string(moved).unwrap().contains("line 1\n"));
    });
}
