//! `vmpod check` measures the host.

use std::time::Duration;

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
