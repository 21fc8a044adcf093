//! Limits, counters, sizes.

use k8s_cri::v1;
use vmpod_tests::{Sandbox, containerd, eventually, on_both};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn limits_hold_and_can_be_changed() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
            config.mounts = vec![];
            let linux = config.linux.as_mut().unwrap();
            linux.resources = Some(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 512,
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            });
        });
        assert_eq!(container.sh("cat /sys/fs/cgroup/memory.max"), "67108864\n");
        assert_eq!(container.sh("cat /sys/fs/cgroup/cpu.max"), "50000 100000\n");
        container
            .update(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 20_000,
                memory_limit_in_bytes: 96 << 20,
                ..Default::default()
            })
            .unwrap();
        assert_eq!(container.sh("cat /sys/fs/cgroup/memory.max"), "100663296\n");
        assert_eq!(container.sh("cat /sys/fs/cgroup/cpu.max"), "20000 100000\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn stats_count_what_the_container_uses() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod
            .shell("dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; while :; do :; done");
        let used = eventually("memory and processor time in the counters", || {
            let stats = container.stats();
            let memory = stats.memory?.working_set_bytes?.value;
            let time = stats.cpu?.usage_core_nano_seconds?.value;
            (memory > 20 << 20 && time > 0).then_some(time)
        });
        eventually("more processor time", || {
            let time = container.stats().cpu?.usage_core_nano_seconds?.value;
            (time > used).then_some(())
        });
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn machine_is_as_large_as_the_pods_resources_say() {
    containerd();
    let pod = Sandbox::run_with("vmpod", |config| {
        let linux = config.linux.as_mut().unwrap();
        linux.resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 100 << 20,
            cpu_period: 100_000,
            cpu_quota: 100_000,
            ..Default::default()
        });
    });
    let container = pod.shell("sleep 1000");
    let total: u64 = container
        .sh("sed -n 's/MemTotal: *//p' /proc/meminfo")
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!((130_000..=168_000).contains(&total), "{total} kB");
    assert_eq!(container.sh("nproc"), "1\n");
}
