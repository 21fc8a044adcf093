//! `vmpod install` as an administrator uses it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_cri::v1;
use serde_json::Value;
use vmpod_tests::{Container, Sandbox, SmallImage, containerd, eventually, vmpod};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn install_gives_containerd_the_runtime_and_uninstall_takes_it_back() {
    let host = tempfile::tempdir().unwrap();
    let config = host.path().join("etc/containerd/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let default = Command::new("containerd")
        .args(["config", "default"])
        .output()
        .unwrap();
    fs::write(&config, &default.stdout).unwrap();
    // The version of the containerd that is installed here.
    let said = Command::new("containerd")
        .arg("--version")
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let version = said.split_whitespace().nth(2).unwrap().to_owned();
    let install = |more: &[&str]| {
        vmpod(["install", "--containerd-version", &version, "--host"])
            .arg(host.path())
            .args(more)
            .ok()
    };
    let done = install(&[]);
    assert!(
        done.contains("wrote /opt/vmpod/bin/containerd-shim-vmpod-v2"),
        "{done}"
    );
    assert!(done.contains("systemctl restart containerd"), "{done}");
    assert_eq!(install(&[]), "everything is as it should be\n");
    let dump = Command::new("containerd")
        .arg("--config")
        .arg(&config)
        .args(["config", "dump"])
        .output()
        .unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains("runtime_type = \"io.containerd.vmpod.v2\""),
        "{dump}"
    );
    assert!(dump.contains("runtimes.runc]"), "{dump}");
    let shim = host.path().join("opt/vmpod/bin/containerd-shim-vmpod-v2");
    let told = Command::new(shim).arg("-v").output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).starts_with("io.containerd.vmpod.v2 "));
    install(&["--uninstall"]);
    assert_eq!(fs::read(&config).unwrap(), default.stdout);
    assert!(!host.path().join("opt/vmpod").exists());
}

/// A node's root directory with a configured containerd that tells its version, and a systemctl that writes down what it is
/// told.
fn node() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let containerd = |word: &str| {
        let said = Command::new("containerd")
            .args(word.split(' '))
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    write(
        "etc/containerd/config.toml",
        containerd("config default").as_bytes(),
    );
    let version = containerd("--version");
    let says = format!("#!/bin/sh\necho '{}'\n", version.trim());
    write("usr/bin/containerd", says.as_bytes());
    write(
        "usr/bin/systemctl",
        b"#!/bin/sh\necho \"$@\" >> /systemctl.log\n",
    );
    write("bin/busybox", &fs::read("/bin/busybox").unwrap());
    symlink("busybox", root.path().join("bin/sh")).unwrap();
    root
}

/// The pod template of the installer for clusters.
fn installer() -> Value {
    let file = deploy().join("installer.yaml");
    let object: Value = serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    object["spec"]["template"]["spec"].clone()
}

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/deploy")
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn installer_of_a_cluster_installs_on_its_node_and_stays() {
    let bundle = PathBuf::from(std::env::var_os("VMPOD_BIN").unwrap());
    let bundle = bundle.ancestors().nth(2).unwrap();
    let image = SmallImage::of_containerfile(&deploy().join("Containerfile"), bundle);
    containerd().import(&image.archive("docker.io/library/vmpod-installer:latest"));
    drop(image);
    let (spec, root) = (installer(), node());
    let template = &spec["containers"][0];
    assert_eq!(spec["hostPID"], true);
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/");
    assert_eq!(template["securityContext"]["privileged"], true);
    let namespaces = || v1::NamespaceOption {
        pid: v1::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let pod = Sandbox::run_with("runc", |config| {
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.privileged = true;
        security.namespace_options = Some(namespaces());
    });
    let start = || -> Container<'_> {
        pod.start(|config| {
            config.image.as_mut().unwrap().image =
                "docker.io/library/vmpod-installer:latest".into();
            config.args = serde_json::from_value(template["args"].clone()).unwrap();
            config.mounts = vec![v1::Mount {
                host_path: root.path().to_string_lossy().into_owned(),
                container_path: template["volumeMounts"][0]["mountPath"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                ..Default::default()
            }];
            let linux = config.linux.as_mut().unwrap();
            let security = linux.security_context.as_mut().unwrap();
            security.privileged = true;
            security.namespace_options = Some(namespaces());
        })
    };
    let first = start();
    let log = first.await_log("restarted containerd");
    assert!(log.contains("wrote /opt/vmpod/bin/vmpod"), "{log}");
    let told = || fs::read_to_string(root.path().join("systemctl.log")).unwrap();
    assert_eq!(told(), "restart containerd\n");
    let shim = root.path().join("opt/vmpod/bin/containerd-shim-vmpod-v2");
    let version = Command::new(shim).arg("-v").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("io.containerd.vmpod.v2 "));
    let dump = Command::new("containerd")
        .arg("--config")
        .arg(root.path().join("etc/containerd/config.toml"))
        .args(["config", "dump"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&dump.stdout).contains("io.containerd.vmpod.v2"));
    // It stays, and a second one finds nothing to do.
    let second = start();
    second.await_log("everything is as it should be");
    assert_eq!(told(), "restart containerd\n");
    eventually("a container that runs", || {
        let running = i32::from(v1::ContainerState::ContainerRunning);
        (first.status().state == running).then_some(())
    });
    first.stop(10);
    assert_eq!(first.status().exit_code, 0, "its end is asked for");
}
