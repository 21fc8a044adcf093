//! The cases, by what they are about.

use std::fs;
use std::time::Duration;

use serde_json::json;
use vmpod_agent::container::{ContainerError, Containers as _, ProcessName};

use crate::fixture::{CaseFuture, Fixture};

pub type Case = fn(Fixture) -> CaseFuture;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), |fixture| Box::pin($name(fixture)))),*];
    };
}

cases![
    container_that_echoes_ends_with_its_output,
    container_exit_code_and_signal_are_reported_as_they_were,
    container_sees_its_own_namespaces_mounts_and_devices,
    command_that_does_not_exist_is_named_as_with_other_runtimes,
    process_runs_with_its_user_groups_and_capabilities,
];

async fn container_that_echoes_ends_with_its_output(fixture: Fixture) {
    let spec = fixture.spec("one", "echo hello; echo oops >&2");
    let (status, output) = fixture.complete("one", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    assert_eq!(status.reason, "Completed");
    assert!(output.contains("hello\n") && output.contains("oops\n"));
    assert!(status.started_at_ns > 0 && status.finished_at_ns >= status.started_at_ns);
}

async fn container_exit_code_and_signal_are_reported_as_they_were(fixture: Fixture) {
    let (status, _) = fixture
        .complete("code", &fixture.spec("code", "exit 42"))
        .await;
    assert_eq!((status.code, status.signal), (42, 0));
    assert_eq!(status.reason, "Error");
    let spec = fixture.spec("signal", "sleep 1000");
    let name = fixture.launch("signal", &spec).await;
    assert!(matches!(
        fixture.engine.delete(&name).await,
        Err(ContainerError::FailedPrecondition(_))
    ));
    fixture.engine.signal(&name, 9, false).unwrap();
    let status = fixture.engine.wait(&name).await.unwrap();
    assert_eq!((status.code, status.signal), (137, 9));
    assert!(matches!(
        fixture.engine.signal(&name, 9, false),
        Err(ContainerError::NotFound(_))
    ));
    fixture.engine.delete(&name).await.unwrap();
    assert!(matches!(
        fixture.engine.wait(&name).await,
        Err(ContainerError::NotFound(_))
    ));
}

async fn container_sees_its_own_namespaces_mounts_and_devices(fixture: Fixture) {
    let spec = fixture.spec(
        "view",
        "echo pid=$$; hostname; pwd; ls /dev | sort | tr '\\n' ' '; echo; \
         cat /proc/version | wc -c; ls -A /sys/firmware | wc -l; \
         echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo readonly; \
         cat /proc/self/cgroup; grep -c . /proc/mounts; echo x > /dev/null && echo null; \
         readlink /dev/stdout; readlink /dev/ptmx; ls /; echo HOME=$HOME",
    );
    let (status, output) = fixture.complete("view", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "pid=1", "{output}");
    assert_eq!(lines[1], "inside");
    assert_eq!(lines[2], "/");
    assert_eq!(
        lines[3].trim().trim_start_matches("core "),
        "fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero",
        "{output}"
    );
    assert_eq!(lines[4], "0", "masked file is empty: {output}");
    assert_eq!(lines[5], "0", "masked directory is empty: {output}");
    assert_eq!(lines[6], "readonly");
    assert!(output.contains("\n0::/\n"), "cgroup namespace: {output}");
    assert!(
        output.contains("null\n/proc/self/fd/1\npts/ptmx\n"),
        "{output}"
    );
    assert!(output.contains("HOME=/root"), "{output}");
    assert!(!output.contains("attach"), "{output}");
}

async fn command_that_does_not_exist_is_named_as_with_other_runtimes(fixture: Fixture) {
    for (command, expected) in [
        (
            "nonsense",
            "exec: \"nonsense\": executable file not found in $PATH",
        ),
        (
            "/nonsense",
            "exec: \"/nonsense\": stat /nonsense: no such file or directory",
        ),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ] {
        let mut spec = fixture.spec("wrong", "");
        spec["process"]["args"] = json!([command]);
        let error = fixture.create("wrong", &spec).await.unwrap_err();
        assert!(matches!(error, ContainerError::Start(_)), "{error:?}");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
    let root = fixture.scratch.join("wrong");
    fs::write(root.join("bin/text"), "no program").unwrap();
    fs::set_permissions(
        root.join("bin/text"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut spec = fixture.spec("wrong", "");
    spec["process"]["args"] = json!(["text"]);
    fixture.create("wrong", &spec).await.unwrap();
    let name = ProcessName::container("wrong");
    let error = fixture.engine.start(&name).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("exec /bin/text: exec format error"),
        "{error}"
    );
    let status = fixture.engine.wait(&name).await.unwrap();
    assert_eq!((status.code, status.reason.as_str()), (128, "StartError"));
    fixture.engine.delete(&name).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn process_runs_with_its_user_groups_and_capabilities(fixture: Fixture) {
    let mut spec = fixture.spec(
        "user",
        "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; umask; ulimit -n; echo $HOME; \
         cat /proc/self/oom_score_adj; echo out > /dev/stdout",
    );
    spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 8], "umask": 0o027});
    spec["process"]["capabilities"]["ambient"] = json!(["CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_BIND_SERVICE"]);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    spec["process"]["oomScoreAdj"] = json!(500);
    let (status, output) = fixture.complete("user", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(&lines[..3], ["1000", "1000", "1000 7 8"], "{output}");
    assert!(output.contains("CapEff:\t0000000000000400"), "{output}");
    assert!(output.contains("CapAmb:\t0000000000000400"), "{output}");
    assert!(output.contains("CapBnd:\t00000000a80425fb"), "{output}");
    assert!(output.contains("NoNewPrivs:\t1"), "{output}");
    assert!(
        output.contains("\n0027\n77\n/home/user\n500\nout\n"),
        "{output}"
    );
}
