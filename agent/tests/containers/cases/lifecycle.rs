//! From creation to deletion: ends, execs, signals, hooks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use vmpod_agent::container::{ContainerError, Containers as _, CreateExec, ProcessName};
use vmpod_agent_protocol::messages::EventKind;

use crate::fixture::{Fixture, until};

pub async fn container_that_echoes_ends_with_its_output(fixture: Fixture) {
    let spec = fixture.spec("one", "echo hello; echo oops >&2");
    let (status, output) = fixture.complete("one", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    assert_eq!(status.reason, "Completed");
    assert!(output.contains("hello\n") && output.contains("oops\n"));
    assert!(status.started_at_ns > 0 && status.finished_at_ns >= status.started_at_ns);
}

pub async fn container_exit_code_and_signal_are_reported_as_they_were(fixture: Fixture) {
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

pub async fn container_sees_its_own_namespaces_mounts_and_devices(fixture: Fixture) {
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

pub async fn command_that_does_not_exist_is_named_as_with_other_runtimes(fixture: Fixture) {
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

pub async fn container_that_was_never_started_can_be_deleted(fixture: Fixture) {
    let spec = fixture.spec("idle", "echo never");
    let pid = fixture.create("idle", &spec).await.unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let name = ProcessName::container("idle");
    let status = fixture.engine.delete(&name).await.unwrap();
    assert_eq!(status.signal, 9);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!fixture.groups.join("idle").exists());
}

pub async fn container_with_a_taken_or_bad_id_is_refused(fixture: Fixture) {
    let spec = fixture.spec("taken", "sleep 100");
    fixture.create("taken", &spec).await.unwrap();
    assert!(matches!(
        fixture.create("taken", &spec).await,
        Err(ContainerError::AlreadyExists(_))
    ));
    for id in ["", "..", "a/b", "a b", &"x".repeat(300)] {
        assert!(
            matches!(
                fixture.create(id, &spec).await,
                Err(ContainerError::InvalidArgument(_))
            ),
            "{id:?}"
        );
    }
    let mut spec = fixture.spec("broken", "");
    spec["process"]["args"] = json!([]);
    let error = fixture.create("broken", &spec).await.unwrap_err();
    assert!(error.to_string().contains("process.args"), "{error}");
    assert!(!fixture.groups.join("broken").exists());
}

pub async fn exec_joins_the_container_and_takes_its_defaults(fixture: Fixture) {
    let mut spec = fixture.spec("base", "touch /tmp/there; sleep 1000");
    spec["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    spec["process"]["cwd"] = json!("/tmp");
    fixture.launch("base", &spec).await;
    let (status, output) = fixture
        .exec(
            "base",
            "look",
            json!({"args": ["sh", "-c", "pwd; echo $COLOUR; hostname; ls /proc/1/exe >/dev/null; \
                    cat /proc/self/cgroup | tail -n 1; id -u; exit 3"]}),
        )
        .await;
    assert_eq!(status.code, 3, "{output}");
    assert_eq!(output, "/tmp\nblue\ninside\n0::/\n0\n");
    let (_, output) = fixture
        .exec(
            "base",
            "other",
            json!({"args": ["sh", "-c", "id -u; pwd; echo $COLOUR"], "user": {"uid": 1000, "gid": 1000}, "cwd": "/",
                   "env": ["PATH=/bin"]}),
        )
        .await;
    assert_eq!(output, "1000\n/\n\n");
    let error = fixture
        .engine
        .create_exec(CreateExec {
            container: "base".into(),
            exec: "wrong".into(),
            process: br#"{"args":["nonsense"]}"#.to_vec(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("exec: \"nonsense\": executable file not found in $PATH"),
        "{error}"
    );
    let kinds: Vec<EventKind> = fixture
        .engine
        .events()
        .next(0, 0)
        .await
        .events
        .iter()
        .map(|event| event.kind.enum_value_or_default())
        .collect();
    assert_eq!(
        kinds,
        [
            EventKind::CONTAINER_CREATED,
            EventKind::CONTAINER_STARTED,
            EventKind::EXEC_STARTED,
            EventKind::EXEC_EXITED,
            EventKind::EXEC_STARTED,
            EventKind::EXEC_EXITED,
        ]
    );
}

pub async fn exec_in_an_ended_container_is_refused(fixture: Fixture) {
    let spec = fixture.spec("over", "true");
    let name = fixture.launch("over", &spec).await;
    fixture.engine.wait(&name).await.unwrap();
    let request = CreateExec {
        container: "over".into(),
        exec: "late".into(),
        process: br#"{"args":["true"]}"#.to_vec(),
        ..Default::default()
    };
    assert!(matches!(
        fixture.engine.create_exec(request.clone()).await,
        Err(ContainerError::FailedPrecondition(_))
    ));
    let request = CreateExec {
        container: "nowhere".into(),
        ..request
    };
    assert!(matches!(
        fixture.engine.create_exec(request).await,
        Err(ContainerError::NotFound(_))
    ));
}

pub async fn exec_that_is_too_slow_is_killed(fixture: Fixture) {
    fixture
        .launch("probed", &fixture.spec("probed", "sleep 1000"))
        .await;
    let fast = br#"{"args":["sh","-c","echo fine; echo bad >&2; exit 2"]}"#.to_vec();
    let outcome = fixture
        .engine
        .run("probed", fast, Duration::from_secs(20), 100)
        .await
        .unwrap();
    assert_eq!(outcome.exit.unwrap().code, 2);
    let output = String::from_utf8(outcome.output).unwrap();
    assert!(
        output.contains("fine\n") && output.contains("bad\n"),
        "{output}"
    );
    let slow = br#"{"args":["sh","-c","echo begun; sleep 1000"]}"#.to_vec();
    let outcome = fixture
        .engine
        .run("probed", slow, Duration::from_millis(700), 100)
        .await
        .unwrap();
    assert_eq!(outcome.exit, None);
    assert_eq!(outcome.output, b"begun\n");
    let many = br#"{"args":["seq","1000"]}"#.to_vec();
    let outcome = fixture
        .engine
        .run("probed", many, Duration::from_secs(20), 10)
        .await
        .unwrap();
    assert_eq!(outcome.output.len(), 10);
}

/// Hundreds of processes that end as orphans, in the container and beside it, while execs come and go: every exit
/// status must reach whoever waits for it, and nothing may be left.
pub async fn storm_of_orphans_and_execs_loses_no_exit(fixture: Fixture) {
    let script =
        "i=0; while [ $i -lt 300 ]; do (sleep 0.0$((i % 7)) & ) ; i=$((i+1)); done; sleep 1000";
    fixture
        .launch("storm", &fixture.spec("storm", script))
        .await;
    // Orphans of an exec belong to the container's first process; those of this process come to the reaper itself.
    for _ in 0..200 {
        // SAFETY: this process has one thread; the child only forks and exits.
        unsafe {
            if libc::fork() == 0 {
                if libc::fork() == 0 {
                    libc::usleep(2000);
                }
                libc::_exit(0);
            }
        }
    }
    for round in 0..6_u32 {
        let execs: Vec<_> = (0..8_u32)
            .map(|number| {
                let engine = fixture.engine.clone();
                tokio::task::spawn_local(async move {
                    let code = (round * 8 + number) % 120;
                    let process = format!(r#"{{"args":["sh","-c","(true &); exit {code}"]}}"#);
                    let outcome = engine
                        .run("storm", process.into_bytes(), Duration::from_secs(40), 0)
                        .await
                        .unwrap();
                    assert_eq!(outcome.exit.unwrap().code, code);
                })
            })
            .collect();
        for exec in execs {
            exec.await.unwrap();
        }
    }
    let own = std::process::id().to_string();
    let zombies = || {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| {
                let after = stat.rsplit(')').next().unwrap_or_default();
                let mut fields = after.split_whitespace();
                fields.next() == Some("Z") && fields.next() == Some(own.as_str())
            })
            .count()
    };
    until("every dead child is reaped", || zombies() == 0).await;
}

pub async fn signal_to_all_reaches_every_process(fixture: Fixture) {
    // Two shells that wait for a program each: the signal ends the programs, and each shell then runs its trap.
    let script = "trap 'echo first; wait; exit 5' USR1; (trap 'echo second; exit' USR1; sleep 1000) & sleep 1000";
    let spec = fixture.spec("all", script);
    let name = fixture.launch("all", &spec).await;
    let sleeping = || {
        let processes = fixture.engine.processes("all").unwrap().processes;
        let command = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm"));
        let names = processes
            .iter()
            .filter_map(|process| command(process.pid).ok());
        names.filter(|name| name.trim() == "sleep").count()
    };
    until("both shells wait for their program", || sleeping() == 2).await;
    fixture.engine.signal(&name, 10, true).unwrap();
    let (status, output) = fixture.finish(&name).await;
    assert_eq!(status.code, 5, "{output}");
    assert!(
        output.contains("first") && output.contains("second"),
        "{output}"
    );
    assert!(matches!(
        fixture.engine.signal(&name, 10, true),
        Err(ContainerError::NotFound(_))
    ));
}

pub async fn frozen_container_stands_still_until_it_is_thawed(fixture: Fixture) {
    let script = "while true; do echo x >> /tmp/ticks; sleep 0.01; done";
    let spec = fixture.spec("ice", script);
    let name = fixture.launch("ice", &spec).await;
    let ticks = || fs::metadata(fixture.scratch.join("ice/tmp/ticks")).map_or(0, |file| file.len());
    until("the container runs", || ticks() > 0).await;
    fixture.engine.freeze("ice", true).await.unwrap();
    let before = ticks();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ticks(), before);
    fixture.engine.freeze("ice", false).await.unwrap();
    until("the container runs again", || ticks() > before).await;
    fixture.engine.freeze("ice", true).await.unwrap();
    fixture.engine.signal(&name, 9, true).unwrap();
    assert_eq!(fixture.engine.wait(&name).await.unwrap().signal, 9);
    fixture.engine.delete(&name).await.unwrap();
}

fn hook_script(fixture: &Fixture, name: &str, script: &str) -> std::path::PathBuf {
    let path = fixture.scratch.join(name);
    fs::write(&path, format!("#!/bin/busybox sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub async fn hooks_run_in_their_order_with_the_state(fixture: Fixture) {
    let log = fixture.scratch.join("log");
    let hook = hook_script(
        &fixture,
        "hook",
        &format!("read -r state; echo \"$1 $state\" >> {}", log.display()),
    );
    let mut spec = fixture.spec("hooked", "cat /inner");
    fs::write(
        fixture.scratch.join("hooked/inner.sh"),
        "#!/bin/sh\ncat > /inner\n",
    )
    .unwrap();
    fs::set_permissions(
        fixture.scratch.join("hooked/inner.sh"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let of = |name: &str| json!([{"path": hook, "args": ["hook", name]}]);
    spec["annotations"] = json!({"colour": "blue"});
    spec["hooks"] = json!({
        "prestart": of("prestart"),
        "createRuntime": of("createRuntime"),
        "createContainer": of("createContainer"),
        "startContainer": [{"path": "/inner.sh", "env": ["PATH=/bin"]}],
        "poststart": of("poststart"),
        "poststop": of("poststop"),
    });
    let (status, output) = fixture.complete("hooked", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    assert!(
        output.contains("\"status\":\"created\"") && output.contains("\"id\":\"hooked\""),
        "{output}"
    );
    let log = fs::read_to_string(log).unwrap();
    let names: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        names,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop"
        ]
    );
    assert!(log.contains("\"colour\":\"blue\""), "{log}");
    assert!(log.contains("\"status\":\"stopped\""), "{log}");
}

pub async fn failing_hook_fails_the_creation_by_name(fixture: Fixture) {
    let hook = hook_script(&fixture, "failing", "exit 9");
    for moment in ["createRuntime", "createContainer"] {
        let mut spec = fixture.spec("unlucky", "true");
        spec["hooks"] = json!({moment: [{"path": hook}]});
        let error = fixture
            .create("unlucky", &spec)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("{moment} hook {}", hook.display())),
            "{error}"
        );
        assert!(error.contains("ended with exit code 9"), "{error}");
        assert!(!fixture.groups.join("unlucky").exists());
    }
    let slow = hook_script(&fixture, "slow", "exec sleep 100");
    let mut spec = fixture.spec("unlucky", "true");
    spec["hooks"] = json!({"createRuntime": [{"path": slow, "timeout": 1}]});
    let error = fixture
        .create("unlucky", &spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("still ran after 1 s"), "{error}");
}
