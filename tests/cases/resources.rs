//! The machine is sized from the pod; limits hold inside.

use serde_json::Value;
use vmpod_tests::{Pod, eventually};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn machine_has_the_pods_effective_memory_plus_overhead() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  initContainers: [{name: i, image: busybox, command: ['true'], resources: {limits: {memory: 100Mi, cpu: 100m}}}]
  containers:
  - {name: a, image: busybox, command: [cat, /proc/meminfo], resources: {limits: {memory: 150Mi, cpu: 100m}}}
  - {name: b, image: busybox, command: [nproc], resources: {limits: {memory: 50Mi, cpu: 100m}}}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let line = outcome
        .out
        .lines()
        .find(|l| l.contains("MemTotal"))
        .expect("MemTotal");
    let kib: u64 = line
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|w| w.parse().ok())
        .expect("a number");
    let mib = kib / 1024;
    // 200 MiB for the containers and 64 for the guest, of which the kernel keeps some to itself.
    assert!((200..=264).contains(&mib), "{mib} MiB");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn cgroup_limits_are_those_of_the_manifest() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max']
    resources: {limits: {memory: 48Mi, cpu: 250m}}",
    );
    let outcome = pod.run();
    assert!(
        outcome.out.contains("50331648") && outcome.out.contains("25000 100000"),
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn guest_and_host_overhead_stay_within_their_bounds() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sleep, '1000'], resources: {limits: {memory: 64Mi}}}]",
    );
    pod.start();
    let found = pod.await_phase("Running");
    let number = |pointer: &str| -> u64 {
        found
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number at {pointer} in {found:#}"))
    };
    let machine = number("/vmpod/machine/memoryMib") * 1024;

    let info = pod.sh("c", "cat /proc/meminfo");
    let kib = |name: &str| -> u64 {
        info.lines()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|w| w.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {info}"))
    };
    let used = (kib("MemTotal") - kib("MemAvailable")) / 1024;
    assert!(
        used < 24,
        "{used} MiB are used in the guest, a machine of {} MiB\n{info}",
        machine / 1024
    );

    let mut processes = Vec::new();
    with_children(number("/vmpod/supervisorPid"), &mut processes);
    assert!(
        processes.contains(&number("/vmpod/vmmPid")),
        "the VMM is not among the supervisor's processes {processes:?}: {found:#}"
    );
    let mut host = 0;
    let mut guest = 0;
    let mut each = String::new();
    for process in &processes {
        let (own, guests) = memory(*process);
        host += own;
        guest += guests;
        each += &format!("process {process}: {own} KiB\n");
    }
    assert_eq!(
        guest, machine,
        "the guest's memory is not what the VMM keeps out of core dumps, KiB"
    );
    assert!(
        host < 10 * 1024,
        "the pod's processes have {host} KiB beside the guest's memory\n{each}"
    );
}

/// Adds `process` and everything below it.
fn with_children(process: u64, found: &mut Vec<u64>) {
    found.push(process);
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("list a process's tasks");
    for task in tasks {
        let path = task.expect("list a process's tasks").path().join("children");
        let children = std::fs::read_to_string(path).expect("read a task's children");
        for child in children.split_whitespace() {
            with_children(child.parse().expect("a process id"), found);
        }
    }
}

/// Memory of a process in KiB: its proportional share of everything but guest memory, and the size of that. Guest memory
/// is known by being kept out of core dumps (flag `dd` in `/proc/PID/smaps`), as some mappings of the kernel's own are,
/// whose names are in brackets.
fn memory(process: u64) -> (u64, u64) {
    let path = format!("/proc/{process}/smaps");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (mut own, mut guest) = (0, 0);
    let (mut special, mut size, mut share) = (false, 0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = || words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.first() {
            Some(&"Size:") => size = number(),
            Some(&"Pss:") => share = number(),
            // The last line of a mapping.
            Some(&"VmFlags:") if !special && words.contains(&"dd") => guest += size,
            Some(&"VmFlags:") => own += share,
            Some(word) if !word.ends_with(':') => {
                special = words.get(5).is_some_and(|name| name.starts_with('['));
            }
            _ => {}
        }
    }
    (own, guest)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn memory_that_the_guest_frees_goes_back_to_the_host() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: m, emptyDir: {medium: Memory}}]
  containers: [{name: c, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: m, mountPath: /m}], resources: {limits: {memory: 256Mi}}}]",
    );
    pod.start();
    pod.await_phase("Running");
    let vmm = pod.inspect()["vmpod"]["vmmPid"].clone();
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).expect("the VMM");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("VmRSS") / 1024
    };
    let before = resident();
    let _ = pod.sh(
        "c",
        "dd if=/dev/urandom of=/m/x bs=1M count=120 2>/dev/null",
    );
    let full = resident();
    // Some of it lies in pages that were touched before.
    assert!(full >= before + 80, "{before} MiB, then {full} MiB");
    let _ = pod.sh("c", "rm /m/x");
    eventually("less memory of the VMM", || {
        (resident() < full - 80).then_some(())
    });
}
