//! The machine is sized from the pod; limits hold inside.

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
fn kernel_and_agent_of_an_idle_pod_stay_within_their_bounds() {
    let pod = Pod::idle();
    let info = pod.sh("c", "cat /proc/meminfo");
    let kib = |name: &str| -> u64 {
        info.lines()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|w| w.parse().ok())
            .expect("a number")
    };
    // The agent lies beside the guest's memory.
    let agent = initramfs(&pod.inspect()["vmpod"]["vmmPid"]);
    assert!(agent > 1024, "{agent} KiB of agent");
    let used = (kib("MemTotal") - kib("MemAvailable") + agent) / 1024;
    assert!(used < 24, "{used} MiB are used in the guest\n{info}");
}

/// KiB that are mapped of the initramfs, which the guest uses where it lies.
fn initramfs(vmm: &serde_json::Value) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{vmm}/smaps")).expect("the VMM");
    let mut lines = smaps.lines();
    lines.find(|line| line.contains("/initramfs")).expect("it");
    let resident = lines.find_map(|line| line.strip_prefix("Rss:"));
    let word = resident.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).expect("a number")
}

/// Sums of `/proc/PID/smaps` in KiB without guest memory, which is what is kept out of core dumps (flag `dd`): the
/// proportional share of everything, and the anonymous part.
fn own_memory(pid: u64) -> (u64, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a process");
    let (mut share, mut anonymous) = (0, 0);
    let (mut mapping_share, mut mapping_anonymous) = (0, 0);
    for line in smaps.lines() {
        let value = || -> u64 {
            let word = line.split_whitespace().nth(1);
            word.and_then(|word| word.parse().ok()).expect("a number")
        };
        if line.starts_with("Pss:") {
            mapping_share = value();
        } else if line.starts_with("Anonymous:") {
            mapping_anonymous = value();
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && !flags.split_whitespace().any(|flag| flag == "dd")
        {
            share += mapping_share;
            anonymous += mapping_anonymous;
        }
    }
    (share, anonymous)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn processes_of_an_idle_pod_stay_within_their_bounds() {
    let pod = Pod::idle();
    let ids = &pod.inspect()["vmpod"];
    let sums = ["supervisorPid", "vmmPid"].map(|name| own_memory(ids[name].as_u64().expect(name)));
    let share: u64 = sums.iter().map(|(share, _)| share).sum();
    let anonymous: u64 = sums.iter().map(|(_, anonymous)| anonymous).sum();
    assert!(anonymous > 0, "nothing was read: {sums:?}");
    assert!(anonymous < 3 * 1024, "KiB (all, anonymous): {sums:?}");
    // Programs that are not optimised are several times as large.
    if std::env::var_os("VMPOD_DEBUG_BUNDLE").is_none() {
        assert!(share < 10 * 1024, "KiB (all, anonymous): {sums:?}");
    }
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
