//! `vmpod check` measures the host.

use std::process::Command;
use std::time::{Duration, Instant};

use vmpod_tests::vmpod;

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn check_of_a_good_host_passes_in_time_item_by_item() {
    let outcome = vmpod(["check"]).run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.to_lowercase().contains("kvm"), "{outcome}");
    // An emulated node takes several times as long as a machine does.
    assert!(outcome.took < Duration::from_secs(10), "{outcome}");
    let json = vmpod(["check", "--output", "json"]).ok();
    assert!(
        serde_json::from_str::<serde_json::Value>(&json).is_ok(),
        "{json}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn check_without_the_parts_of_a_pod_names_them() {
    let outcome = vmpod(["check"])
        .env("VMPOD_LIB", "/no/such/directory")
        .run();
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.contains("/no/such/directory"), "{outcome}");
}

/// The lines of `vmpod check` about KVM, after `setting` has run in a mount namespace of its own.
fn kvm_lines(setting: &str) -> String {
    let binary = std::env::var("VMPOD_BIN").expect("VMPOD_BIN names the binary under test");
    let begun = Instant::now();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-e", "-c"])
        .arg(format!("{setting} {binary} check"))
        .output()
        .expect("run unshare");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().skip_while(|line| !line.contains("KVM device"));
    let found: Vec<&str> = lines.by_ref().take(2).collect();
    found.join("\n")
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn check_names_a_kvm_device_that_is_missing_foreign_or_unreadable_with_the_remedy() {
    let missing = kvm_lines("mount -t tmpfs none /dev;");
    assert!(
        missing.contains("/dev/kvm is not there") && missing.contains("modprobe kvm_amd"),
        "{missing}"
    );
    let foreign = kvm_lines("mount --bind /dev/zero /dev/kvm;");
    assert!(foreign.starts_with("MISSING"), "{foreign}");
    let unreadable = kvm_lines(
        "chmod 755 $(dirname $VMPOD_BIN); setpriv --reuid 65534 --regid 65534 --clear-groups",
    );
    assert!(
        unreadable.contains("permission denied") && unreadable.contains("run vmpod as root"),
        "{unreadable}"
    );
}
