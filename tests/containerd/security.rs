//! What a container may do, and as whom.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use k8s_cri::v1;
use vmpod_tests::{Footprint, Sandbox, containerd, on_both};

/// The security context that a container of a test has.
pub(crate) fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

/// Its container does nothing for a while.
pub(crate) fn sleeping(config: &mut v1::ContainerConfig) {
    config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn user_groups_and_privileges_are_as_asked() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            sleeping(config);
            let security = security(config);
            security.run_as_user = Some(v1::Int64Value { value: 1000 });
            security.run_as_group = Some(v1::Int64Value { value: 2000 });
            security.supplemental_groups = vec![3000];
            security.no_new_privs = true;
            security.readonly_rootfs = true;
            security.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into()];
            security.readonly_paths = vec!["/proc/sys".into()];
        });
        assert_eq!(
            container.sh("id -u; id -g; id -G"),
            "1000\n2000\n2000 3000\n"
        );
        assert_eq!(
            container.sh("grep NoNewPrivs /proc/self/status"),
            "NoNewPrivs:\t1\n"
        );
        let ran = container.exec(&["touch", "/x"], 60).unwrap();
        assert!(ran.code != 0 && ran.err.contains("Read-only"), "{ran:?}");
        assert_eq!(container.sh("wc -c < /proc/keys"), "0\n");
        assert_eq!(
            container.sh("grep CapEff /proc/self/status"),
            "CapEff:\t0000000000000000\n"
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn capabilities_are_added_and_dropped() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let effective = |change: &dyn Fn(&mut v1::Capability)| {
            let container = pod.start(|config| {
                sleeping(config);
                let mut capabilities = v1::Capability::default();
                change(&mut capabilities);
                security(config).capabilities = Some(capabilities);
            });
            container.sh("sed -n 's/CapEff:.//p' /proc/self/status")
        };
        assert_eq!(effective(&|_| {}), "00000000a80425fb\n");
        assert_eq!(
            effective(&|c| c.add_capabilities = vec!["NET_ADMIN".into()]),
            "00000000a80435fb\n"
        );
        assert_eq!(
            effective(&|c| c.drop_capabilities = vec!["ALL".into()]),
            "0000000000000000\n"
        );
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn system_calls_are_filtered_by_the_default_profile_and_not_without() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let unshare = |kind: v1::security_profile::ProfileType| {
            let container = pod.start(|config| {
                sleeping(config);
                security(config).seccomp = Some(v1::SecurityProfile {
                    profile_type: kind.into(),
                    ..Default::default()
                });
            });
            container.sh("grep '^Seccomp:' /proc/self/status")
        };
        use v1::security_profile::ProfileType::{RuntimeDefault, Unconfined};
        assert_eq!(unshare(RuntimeDefault), "Seccomp:\t2\n");
        assert_eq!(unshare(Unconfined), "Seccomp:\t0\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn privileged_container_is_so_in_its_machine_alone() {
    containerd();
    let pod = Sandbox::run_with("vmpod", |config| {
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().privileged = true;
    });
    let container = pod.start(|config| {
        sleeping(config);
        security(config).privileged = true;
    });
    assert_eq!(
        container.sh("mount -t tmpfs none /tmp && echo mounted"),
        "mounted\n"
    );
    assert_eq!(container.sh("hostname other && hostname"), "other\n");
    // Disks of the host are not there.
    assert_eq!(
        container.sh("ls /sys/block | grep -c '^[sv]d' || true"),
        "0\n"
    );
    assert_eq!(container.sh("ls /dev | grep -c '^[sv]d' || true"), "0\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn namespaces_of_the_host_are_refused_by_the_pods_field() {
    containerd();
    let refused = |change: &dyn Fn(&mut v1::NamespaceOption)| {
        let tried = Sandbox::try_run("vmpod", |config| {
            let linux = config.linux.as_mut().unwrap();
            let security = linux.security_context.as_mut().unwrap();
            change(security.namespace_options.as_mut().unwrap());
        });
        tried
            .expect_err("a sandbox in the host's namespace")
            .message()
            .to_owned()
    };
    let node = v1::NamespaceMode::Node.into();
    let before = Footprint::now();
    // A containerd that leaves the sandbox to the shim may end with a panic before it asks (its issue 12983).
    if containerd().version() < (2, 0) {
        let text = refused(&|options| options.network = node);
        assert!(text.contains("hostNetwork"), "{text}");
    }
    let text = refused(&|options| options.pid = node);
    assert!(text.contains("hostPID"), "{text}");
    let text = refused(&|options| options.ipc = node);
    assert!(text.contains("hostIPC"), "{text}");
    before.assert_restored();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn sysctls_of_the_pod_are_set() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run_with(handler, |config| {
            let linux = config.linux.as_mut().unwrap();
            linux
                .sysctls
                .insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
            linux
                .sysctls
                .insert("kernel.shm_rmid_forced".into(), "1".into());
        });
        let container = pod.shell("sleep 1000");
        let told = container.sh(
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
        );
        assert_eq!(told, "80\n1\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn processes_are_shared_as_the_pod_says() {
    containerd();
    on_both(|handler| {
        let mode = |config: &mut v1::ContainerConfig, mode: v1::NamespaceMode, target: &str| {
            sleeping(config);
            let options = security(config).namespace_options.as_mut().unwrap();
            options.pid = mode.into();
            options.target_id = target.to_owned();
        };
        let pod = Sandbox::run_with(handler, |config| {
            let linux = config.linux.as_mut().unwrap();
            let security = linux.security_context.as_mut().unwrap();
            security.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
        });
        let one = pod.start(|config| {
            mode(config, v1::NamespaceMode::Pod, "");
            config.command = ["sleep", "1111"].map(str::to_owned).to_vec();
        });
        let two = pod.start(|config| mode(config, v1::NamespaceMode::Pod, ""));
        assert_eq!(two.sh("ps | grep -c '[s]leep 1111'"), "1\n");
        assert_ne!(two.sh("cat /proc/1/comm"), "sleep\n");
        drop(one);
        let pod = Sandbox::run(handler);
        let alone = pod.start(|config| {
            mode(config, v1::NamespaceMode::Container, "");
            config.command = ["sleep", "2222"].map(str::to_owned).to_vec();
        });
        let other = pod.start(|config| mode(config, v1::NamespaceMode::Container, ""));
        assert_eq!(other.sh("ps | grep -c '[s]leep 2222' || true"), "0\n");
        assert_eq!(other.sh("cat /proc/1/comm"), "sleep\n");
        // As `kubectl debug --target` does.
        let guest = pod.start(|config| mode(config, v1::NamespaceMode::Target, &alone.id));
        assert_eq!(guest.sh("ps | grep -c '[s]leep 2222'"), "1\n");
    });
}

/// The ids of a pod, as a kubelet gives them out.
fn own_users(first: u32) -> v1::UserNamespace {
    let ids = vec![v1::IdMapping {
        host_id: first,
        container_id: 0,
        length: 65_536,
    }];
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids,
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_with_a_user_namespace_has_its_ids_and_power_over_itself_alone() {
    if containerd().version() < (2, 0) {
        eprintln!("containerd 1.x has no user namespaces that runtimes can offer");
        return;
    }
    let dir = tempfile::tempdir_in("/var/lib/vmpod").expect("make a directory for the volume");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["of-root", "of-user"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    chown(dir.path().join("of-user"), Some(1000), Some(1001)).unwrap();
    let users = own_users(1 << 17);
    let mut not_from_root = users.clone();
    not_from_root.uids[0].container_id = 1;
    let mut two_ranges = users.clone();
    two_ranges.gids.extend(users.gids.clone());
    let mode = |mode: v1::NamespaceMode| v1::UserNamespace {
        mode: mode.into(),
        ..Default::default()
    };
    for (wrong, words) in [
        (not_from_root, "user namespace"),
        // containerd's own words.
        (two_ranges, "only one gid mapping"),
        (mode(v1::NamespaceMode::Container), "user namespace"),
        (mode(v1::NamespaceMode::Target), "user namespace"),
    ] {
        let tried = Sandbox::try_run("vmpod", |config| {
            let linux = config.linux.as_mut().unwrap();
            let security = linux.security_context.as_mut().unwrap();
            let options = security.namespace_options.as_mut().unwrap();
            options.userns_options = Some(wrong.clone());
        });
        let text = tried.expect_err("a pod with such users").to_string();
        assert!(text.contains(words), "{text}");
    }
    // Not under runc as well: it has id-mapped mounts from 1.2 on, which is rarely there.
    let pod = Sandbox::run_with("vmpod", |config| {
        let linux = config.linux.as_mut().unwrap();
        let security = linux.security_context.as_mut().unwrap();
        let options = security.namespace_options.as_mut().unwrap();
        options.userns_options = Some(users.clone());
    });
    let mount = |config: &mut v1::ContainerConfig| {
        sleeping(config);
        let options = security(config).namespace_options.as_mut().unwrap();
        options.userns_options = Some(users.clone());
        config.mounts = vec![v1::Mount {
            container_path: "/data".into(),
            host_path: dir.path().to_string_lossy().into_owned(),
            uid_mappings: users.uids.clone(),
            gid_mappings: users.gids.clone(),
            ..Default::default()
        }];
    };
    let container = pod.start(|config| {
        mount(config);
        security(config).capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_ADMIN".into(), "SYS_ADMIN".into()],
            ..Default::default()
        });
    });
    for map in ["uid_map", "gid_map"] {
        let text = container.sh(&format!("cat /proc/self/{map}"));
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, ["0", "131072", "65536"], "{map}");
    }
    assert_eq!(
        container.sh("stat -c '%n %u:%g' /bin/busybox /etc/hosts /data/of-root /data/of-user"),
        "/bin/busybox 0:0\n/etc/hosts 0:0\n/data/of-root 0:0\n/data/of-user 1000:1001\n"
    );
    assert_eq!(
        container.sh(
            "touch /data/new /x; chown 7:8 /data/new; ip addr add 10.99.0.1/32 dev lo; ip -4 addr show dev lo | grep -c 10.99; \
             (echo 5 > /proc/sys/kernel/panic) 2> /dev/null || echo refused; hostname > /dev/null && id -u",
        ),
        "1\nrefused\n0\n"
    );
    let found = std::fs::metadata(dir.path().join("new")).unwrap();
    assert_eq!((found.uid(), found.gid()), (7, 8));
    let user = pod.start(|config| {
        mount(config);
        let security = security(config);
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.run_as_group = Some(v1::Int64Value { value: 1001 });
    });
    assert_eq!(
        user.sh("id -u > /dev/stderr; touch /data/of-user /data/own; stat -c %u:%g /data/own; echo out > /dev/stdout"),
        "1000:1001\nout\n"
    );
    // They share the pod's address, which the CNI's plugins have made.
    assert!(user.sh("ip -4 addr show dev eth0").contains(&pod.address()));
    let found = std::fs::metadata(dir.path().join("own")).unwrap();
    assert_eq!((found.uid(), found.gid()), (1000, 1001));
}
