//! `vmpod install` as an administrator uses it.

use std::fs;
use std::process::Command;

use vmpod_tests::vmpod;

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
