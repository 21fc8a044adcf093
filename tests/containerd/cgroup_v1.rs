//! A host whose cgroups are of version 1, as far as containerd and the shim see: there clients expect the older metrics.

use vmpod_tests::{Containerd, Footprint, containerd, eventually};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// Bytes that the container's file takes.
const FILE_BYTES: u64 = 20 << 20;

/// The number that `ctr task metrics` has behind `name`.
fn metric(table: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        let is_it = words.next() == Some(name);
        words.next().filter(|_| is_it)?.parse().ok()
    })
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn container_on_a_host_with_cgroup_v1_has_the_metrics_of_such_a_host() {
    // What the first use makes on the host stays.
    containerd();
    let before = Footprint::now();
    let legacy = Containerd::with_cgroup_v1();
    let ctr = |words: &[&'static str]| {
        let words = ["-n", "k8s.io"].iter().chain(words).copied();
        legacy.ctr(words)
    };
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; while :; do :; done";
    ctr(&["run", "-d", "--runtime", "io.containerd.vmpod.v2"])
        .args([IMAGE, "old", "sh", "-c", script])
        .ok();
    eventually("memory and processor time in the metrics", || {
        let table = ctr(&["task", "metrics", "old"]).ok();
        let memory = metric(&table, "memory.usage_in_bytes")?;
        let time = metric(&table, "cpuacct.usage")?;
        // One that copies is a second process.
        let processes = metric(&table, "pids.current")?;
        (memory > FILE_BYTES && time > 0 && processes == 1).then_some(())
    });
    ctr(&["task", "kill", "-s", "KILL", "old"]).ok();
    eventually("the end of the task", || {
        let listed = ctr(&["task", "ls"]).ok();
        listed.contains("STOPPED").then_some(())
    });
    ctr(&["task", "rm", "old"]).ok();
    ctr(&["container", "rm", "old"]).ok();
    drop(legacy);
    before.assert_restored();
}
