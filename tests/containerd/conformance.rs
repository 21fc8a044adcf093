//! What the public validation suite of the CRI (critest) looks at and no other case here does, in few pods.

use std::fs;

use k8s_cri::v1;
use vmpod_tests::{Sandbox, containerd, cri, on_both};

use crate::processes::assert_ended_for_want_of_memory;
use crate::security::{security, sleeping};

fn with_sys_admin(config: &mut v1::ContainerConfig) {
    sleeping(config);
    security(config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_has_its_resolver_its_queues_and_no_memory_of_the_host() {
    containerd();
    let segment = std::process::Command::new("ipcmk")
        .args(["-M", "1048576"])
        .output()
        .unwrap();
    let segment = String::from_utf8(segment.stdout).unwrap();
    let segment = segment.trim().rsplit(' ').next().unwrap().to_owned();
    on_both(|handler| {
        let pod = Sandbox::run_with(handler, |config| {
            config.dns_config = Some(v1::DnsConfig {
                servers: vec!["10.10.10.10".into()],
                searches: vec!["google.com".into()],
                options: vec!["ndots:8".into()],
            });
            let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
            sysctls.insert("fs.mqueue.msg_max".into(), "100".into());
        });
        let container = pod.shell("sleep 1000");
        let resolver = container.sh("cat /etc/resolv.conf");
        for line in [
            "nameserver 10.10.10.10",
            "search google.com",
            "options ndots:8",
        ] {
            assert!(resolver.contains(line), "{handler}: {resolver}");
        }
        assert_eq!(container.sh("cat /proc/sys/fs/mqueue/msg_max"), "100\n");
        let shared = container.sh("cat /proc/sysvipc/shm");
        let seen = shared
            .lines()
            .any(|line| line.split_whitespace().nth(1) == Some(&segment));
        assert!(!seen, "{handler}: {shared}");
        assert!(container.sh("cat /etc/hosts").contains("localhost"));
    });
    let removed = std::process::Command::new("ipcrm")
        .args(["-m", &segment])
        .status();
    assert!(removed.unwrap().success());
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn paths_are_masked_and_write_protected_whatever_they_are() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            sleeping(config);
            let security = security(config);
            security.masked_paths = vec!["/etc/passwd".into(), "/proc/scsi".into()];
            security.readonly_paths = vec!["/tmp".into()];
        });
        let ran = container.exec(&["sh", "-c", "/etc/passwd"], 60).unwrap();
        assert!(
            ran.code == 126 && ran.err.contains("Permission denied"),
            "{handler}: {ran:?}"
        );
        let ran = container.exec(&["touch", "/tmp/test"], 60).unwrap();
        assert_eq!(
            (ran.code, &*ran.err),
            (1, "touch: /tmp/test: Read-only file system\n"),
            "{handler}"
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_that_asks_for_nothing_has_what_others_have() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run_with(handler, |config| {
            config.linux.as_mut().unwrap().security_context = None;
            config.dns_config = Some(v1::DnsConfig::default());
            config.hostname.clear();
        });
        let plain = pod.start(|config| {
            config.command = ["sleep", "1111"].map(str::to_owned).to_vec();
            config.linux = None;
        });
        let first = plain.sh("cat /proc/1/cmdline");
        assert!(!first.contains("1111"), "{handler}: {first}");
        assert_eq!(plain.sh("grep Seccomp: /proc/self/status"), "Seccomp:\t0\n");
        // The host's own resolver.
        let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(plain.sh("cat /etc/resolv.conf"), resolver, "{handler}");
        // What is late is gone as soon as its caller knows.
        let late = plain.exec(&["sleep", "4321"], 1).unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late:?}");
        assert_eq!(plain.sh("pgrep -f 'sleep 432[1]' || true"), "", "{handler}");
        let ran = plain.exec(&["mkdir", "/sys/fs/cgroup/own"], 60).unwrap();
        assert!(
            ran.code != 0 && ran.err.contains("Read-only"),
            "{handler}: {ran:?}"
        );
        let with = |add: &[&str], drop: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            pod.start(|config| {
                sleeping(config);
                security(config).capabilities = Some(v1::Capability {
                    add_capabilities: words(add),
                    drop_capabilities: words(drop),
                    ..Default::default()
                });
            })
        };
        let quiet = with(&[], &["NET_RAW"]);
        let ran = quiet.exec(&["ping", "-c", "1", "127.0.0.1"], 60).unwrap();
        assert!(
            ran.code != 0 && ran.err.contains("permission denied"),
            "{handler}: {ran:?}"
        );
        let all = with(&["ALL"], &[]).sh("grep CapBnd /proc/self/status");
        assert_eq!(all, "CapBnd:\t000001ffffffffff\n", "{handler}");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn programs_of_an_image_change_the_user_unless_privileges_are_fixed() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        for (fixed, expected) in [(false, "0\n"), (true, "1\n")] {
            let container = pod.start(|config| {
                sleeping(config);
                security(config).no_new_privs = fixed;
            });
            let line = "cp /bin/busybox /su; chmod 4755 /su; echo u:x:1000:1000::/:/bin/sh >> /etc/passwd; \
                        su u -c '/su -c true < /dev/null' 2>&1 | grep -c 'must be suid' || true";
            assert_eq!(container.sh(line), expected, "{handler}: {fixed}");
        }
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn profile_of_the_node_filters_system_calls_unless_the_container_is_privileged() {
    containerd();
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("block.json");
    fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
  {"names": ["sethostname", "chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#,
    )
    .unwrap();
    on_both(|handler| {
        let pod = Sandbox::run_with(handler, |config| {
            let linux = config.linux.as_mut().unwrap();
            linux.security_context.as_mut().unwrap().privileged = true;
        });
        let block = |config: &mut v1::ContainerConfig| {
            security(config).seccomp = Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Localhost.into(),
                localhost_ref: profile.to_string_lossy().into_owned(),
            });
        };
        let blocked = pod.start(|config| {
            with_sys_admin(config);
            block(config);
        });
        for line in ["chmod 400 /", "hostname other"] {
            let ran = blocked.exec(&["sh", "-c", line], 60).unwrap();
            assert!(
                ran.code != 0 && ran.err.contains("not permitted"),
                "{handler}: {ran:?}"
            );
        }
        let free = pod.start(with_sys_admin);
        assert_eq!(free.sh("hostname one && hostname"), "one\n", "{handler}");
        let privileged = pod.start(|config| {
            sleeping(config);
            block(config);
            security(config).privileged = true;
        });
        assert_eq!(
            privileged.sh("hostname two && hostname"),
            "two\n",
            "{handler}"
        );
        assert_eq!(
            privileged.sh("brctl addbr foobar && grep -c foobar /proc/net/dev"),
            "1\n"
        );
        let plain = pod.shell("sleep 1000");
        assert_ne!(
            plain.exec(&["brctl", "addbr", "other"], 60).unwrap().code,
            0
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn container_with_little_memory_starts_and_is_killed_when_it_wants_more() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=20M"]
                .map(str::to_owned)
                .to_vec();
            let linux = config.linux.as_mut().unwrap();
            linux.resources = Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 15 << 20,
                memory_swap_limit_in_bytes: 15 << 20,
                ..Default::default()
            });
        });
        let status = container.await_end();
        assert_ended_for_want_of_memory(handler, &status);
    });
}

/// Whether containerd says that mounts of `handler` can be read-only with all that is mounted below them.
fn has_recursive_read_only(handler: &str) -> bool {
    let status = cri()
        .call(|mut client| async move { client.status(v1::StatusRequest::default()).await })
        .unwrap();
    status
        .runtime_handlers
        .iter()
        .find(|told| told.name == handler)
        .and_then(|told| told.features.as_ref())
        .is_some_and(|features| features.recursive_read_only_mounts)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn read_only_mounts_leave_what_is_mounted_below_them_unless_they_are_recursive() {
    containerd();
    if containerd().version() >= (2, 0) {
        let asked = [
            "plugins",
            "inspect-runtime",
            "--runtime",
            "io.containerd.vmpod.v2",
        ];
        let told = containerd().ctr(asked).ok();
        assert!(told.contains("\"rro\""), "{told}");
    }
    on_both(|handler| {
        // Up to 2.1 the CRI asks runc alone what it can do, and refuses the others what it does not know of.
        let recursive = has_recursive_read_only(handler);
        let host = tempfile::tempdir().unwrap();
        let below = host.path().join("tmpfs");
        fs::create_dir(&below).unwrap();
        let sh = |line: &str| {
            let done = std::process::Command::new("sh").args(["-c", line]).status();
            assert!(done.unwrap().success(), "{line}");
        };
        sh(&format!("mount -t tmpfs none {}", below.display()));
        let pod = Sandbox::run(handler);
        let with = |all: bool| {
            pod.start(|config| {
                sleeping(config);
                config.mounts = vec![v1::Mount {
                    container_path: "/mnt".into(),
                    host_path: host.path().to_string_lossy().into_owned(),
                    readonly: true,
                    recursive_read_only: all,
                    ..Default::default()
                }];
            })
        };
        let refused = |container: &vmpod_tests::Container<'_>, path: &str| {
            let ran = container.exec(&["touch", path], 60).unwrap();
            assert!(
                ran.code != 0 && ran.err.contains("Read-only"),
                "{handler}: {ran:?}"
            );
        };
        let one = with(false);
        refused(&one, "/mnt/file");
        assert_eq!(
            one.sh("touch /mnt/tmpfs/file && ls /mnt/tmpfs"),
            "file\n",
            "{handler}"
        );
        assert!(below.join("file").is_file());
        if recursive {
            let all = with(true);
            refused(&all, "/mnt/file");
            refused(&all, "/mnt/tmpfs/other");
        }
        drop(pod);
        sh(&format!("umount {}", below.display()));
    });
}
