//! Users, capabilities, system calls, devices.

use std::fs;

use serde_json::json;

use crate::fixture::Fixture;

pub async fn process_runs_with_its_user_groups_and_capabilities(fixture: Fixture) {
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

pub async fn system_calls_that_the_filter_refuses_fail(fixture: Fixture) {
    for no_new_privileges in [true, false] {
        let mut spec = fixture.spec(
            "filtered",
            "mkdir /tmp/x; ln /etc/passwd /tmp/y && echo linked; grep Seccomp: /proc/self/status",
        );
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11}],
        });
        let (_, output) = fixture.complete("filtered", &spec).await;
        assert!(
            output.contains("can't create directory '/tmp/x': Resource temporarily unavailable"),
            "{output}"
        );
        assert!(output.contains("linked\nSeccomp:\t2"), "{output}");
        fs::remove_file(fixture.scratch.join("filtered/tmp/y")).unwrap();
    }
}

pub async fn devices_outside_the_rules_cannot_be_opened(fixture: Fixture) {
    let script = "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem > /dev/null || echo refused; \
                  head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; head -c 1 /dev/extra | wc -c; stat -c %a:%u /dev/extra";
    let mut spec = fixture.spec("devices", script);
    spec["linux"]["devices"] = json!([
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}
    ]);
    let (_, output) = fixture.complete("devices", &spec).await;
    assert!(output.contains("Operation not permitted"), "{output}");
    assert!(output.contains("refused\n4\n4\n1\n640:7\n"), "{output}");
}

pub async fn user_namespace_maps_root_to_somebody_else(fixture: Fixture) {
    let mut spec = fixture.spec(
        "mapped",
        "id -u; cat /proc/self/uid_map; touch /tmp/mine; echo x > /dev/null && echo null",
    );
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "user"}, {"type": "network"},
        {"type": "cgroup"}
    ]);
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let root = fixture.scratch.join("mapped");
    for path in ["", "tmp", "etc", "bin", "root"] {
        std::os::unix::fs::chown(root.join(path), Some(100_000), Some(100_000)).unwrap();
    }
    let (status, output) = fixture.complete("mapped", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    assert!(output.starts_with("0\n"), "{output}");
    assert!(
        output.contains("100000      65536") && output.contains("null"),
        "{output}"
    );
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(root.join("tmp/mine")).unwrap());
    assert_eq!(owner, 100_000);
}

/// The way in of CVE-2019-5736 and of CVE-2024-21626: what the container's first process was made from.
pub async fn agent_executable_cannot_be_written_by_a_container(fixture: Fixture) {
    let script = "readlink /proc/self/exe; for fd in 3 4 5 6 7 8 9 10; do ls -d /proc/self/fd/$fd/. 2>/dev/null; done; echo end";
    let (_, output) = fixture
        .complete("leaks", &fixture.spec("leaks", script))
        .await;
    assert_eq!(output, "/bin/busybox\nend\n");
    let mut spec = fixture.spec("escape", "true");
    spec["process"]["cwd"] = json!("/proc/self/fd/7");
    assert!(fixture.create("escape", &spec).await.is_err());
}
