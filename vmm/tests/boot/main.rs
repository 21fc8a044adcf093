//! Boots a real guest kernel in a real `vmpod-vmm` process and watches it from outside.
//!
//! The environment variable VMPOD_KERNEL names the kernel (`vmlinux`). These tests need KVM that runs guest kernels.

mod guest_init;
mod vmm_process;

use std::time::Duration;

use std::os::fd::AsRawFd;

use vmpod_vmm_api::{
    ExitReason, MachineState, NetConfig, Reply, Request, ShareConfig, VsockConfig,
};

use crate::vmm_process::VmmProcess;

/// What the init printed: CPUs and bytes of memory.
fn ready(console: &str) -> (u64, u64) {
    let line = console
        .lines()
        .find_map(|l| l.strip_prefix("READY cpus="))
        .unwrap_or_else(|| panic!("no READY on the console: {console}"));
    let (cpus, memory) = line.split_once(" memory=").unwrap();
    let hex = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap();
    (hex(cpus), hex(memory))
}

fn boots_and_resets(vcpus: u8, memory_mib: u64) {
    let mut vmm = VmmProcess::start();
    let config = vmm.config(vcpus, memory_mib, "reset");
    vmm.create(config);
    assert_eq!(vmm.exited(), ExitReason::Reset, "{}", vmm.console());
    assert_eq!(vmm.wait(), (Some(0), String::new()));
    let (cpus, memory) = ready(&vmm.console());
    assert_eq!(cpus, u64::from(vcpus));
    let given = memory_mib << 20;
    assert!(
        memory < given && memory > given * 3 / 4 - (24 << 20),
        "{memory} of {given} bytes"
    );
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_one_vcpu_boots_and_resets() {
    boots_and_resets(1, 256);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_four_vcpus_boots_and_resets() {
    boots_and_resets(4, 256);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_64_mib_boots_and_resets() {
    boots_and_resets(1, 64);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_memory_on_both_sides_of_the_hole_boots_and_resets() {
    boots_and_resets(2, 6144);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_whose_init_exits_ends_as_panic_with_its_message() {
    let mut vmm = VmmProcess::start();
    let config = vmm.config(1, 128, "exit");
    vmm.create(config);
    match vmm.exited() {
        ExitReason::Panic { message } => {
            assert!(message.contains("Attempted to kill init"), "{message}");
        }
        other => panic!("{other:?}: {}", vmm.console()),
    }
    let (status, stderr) = vmm.wait();
    assert_eq!(status, Some(2));
    assert!(stderr.contains("Attempted to kill init"), "{stderr}");
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_paused_runs_nothing_and_resumed_goes_on() {
    let mut vmm = VmmProcess::start();
    let config = vmm.config(2, 128, "wait");
    vmm.create(config);
    vmm.wait_console("READY");
    for _ in 0..2 {
        assert_eq!(vmm.request(&Request::Pause), Reply::Done);
    }
    let Reply::Info(info) = vmm.request(&Request::Info) else {
        panic!("no info");
    };
    assert_eq!(info.state, MachineState::Paused);
    let before = vmm.metrics().vcpu_exits;
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(vmm.metrics().vcpu_exits, before);
    assert_eq!(vmm.request(&Request::Resume), Reply::Done);
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
    assert_eq!(vmm.wait(), (Some(0), String::new()));
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_that_runs_has_metrics_and_little_memory_of_its_own() {
    let mut vmm = VmmProcess::start();
    let config = vmm.config(1, 128, "wait");
    vmm.create(config);
    vmm.wait_console("READY");
    let metrics = vmm.metrics();
    println!("{metrics:?}");
    assert!(metrics.vcpu_exits["io"] > 0);
    assert!(metrics.vcpu_exits["mmio"] > 0);
    assert!(metrics.memory_resident_bytes > 4 << 20);
    assert!(metrics.memory_resident_bytes < 100 << 20);
    assert!(metrics.devices["rng0"].requests > 0);
    let own = vmm.anonymous_bytes_beside_guest(128 << 20);
    println!("anonymous memory beside guest memory: {} KiB", own / 1024);
    assert!(own < 1 << 20, "{own}");
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_whose_host_hangs_up_or_signals_ends() {
    let mut vmm = VmmProcess::start();
    let config = vmm.config(1, 128, "wait");
    vmm.create(config);
    vmm.hang_up();
    assert_eq!(vmm.wait(), (Some(0), String::new()));

    let mut vmm = VmmProcess::start();
    let config = vmm.config(2, 128, "wait");
    vmm.create(config);
    // SAFETY: the child has not been waited for, so its id is its own.
    unsafe { libc::kill(vmm.child.id() as i32, libc::SIGTERM) };
    assert_eq!(vmm.exited(), ExitReason::Terminated { signal: 15 });
    assert_eq!(vmm.wait(), (Some(0), String::new()));
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_devices_boots_and_its_drivers_start_them() {
    let mut vmm = VmmProcess::start_with_tap("vmmtest0");
    let mut config = vmm.config(1, 128, "wait");
    config.vsock = Some(VsockConfig {
        guest_cid: 3,
        uds_path: vmm.dir.path().join("vsock"),
    });
    config.shares.push(ShareConfig {
        tag: "pod".into(),
        path: vmm.dir.path().to_owned(),
        queues: 2,
        read_only: false,
    });
    config.nets.push(NetConfig {
        tap_fd: vmm.tap.as_ref().unwrap().as_raw_fd(),
        mac: "02:00:00:00:00:01".into(),
        mtu: 1500,
    });
    vmm.create(config);
    vmm.wait_console("READY");
    let metrics = vmm.metrics();
    println!("{metrics:?}");
    let names: Vec<_> = metrics.devices.keys().map(String::as_str).collect();
    assert_eq!(names, ["fs0", "net0", "rng0", "vsock0"]);
    // The vsock driver hands its receive buffers out as soon as it has started.
    assert!(metrics.devices["vsock0"].notifications > 0);
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
    assert_eq!(vmm.wait(), (Some(0), String::new()));
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_a_descriptor_that_is_no_tap_is_refused() {
    let mut vmm = VmmProcess::start();
    let mut config = vmm.config(1, 128, "wait");
    config.nets.push(NetConfig {
        tap_fd: 77,
        mac: "02:00:00:00:00:01".into(),
        mtu: 1500,
    });
    let Reply::Error { message } = vmm.request(&Request::Create(Box::new(config))) else {
        panic!("accepted");
    };
    assert!(message.contains("net0: descriptor 77"), "{message}");
    assert_eq!(vmm.wait().0, Some(1));
}

#[test]
fn machine_out_of_range_is_refused_with_its_field_and_status_1() {
    let mut vmm = VmmProcess::start();
    let mut config = vmm_config_without_kernel(&vmm);
    config.vcpus = 65;
    let Reply::Error { message } = vmm.request(&Request::Create(Box::new(config))) else {
        panic!("accepted");
    };
    assert!(message.contains("vcpus is 65"), "{message}");
    let (status, stderr) = vmm.wait();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("vcpus is 65"), "{stderr}");
}

#[test]
fn process_before_create_answers_info_and_refuses_pause() {
    let mut vmm = VmmProcess::start();
    let Reply::Info(info) = vmm.request(&Request::Info) else {
        panic!("no info");
    };
    assert_eq!(info.state, MachineState::Empty);
    assert_eq!(info.pid, vmm.child.id());
    assert!(matches!(vmm.request(&Request::Pause), Reply::Error { .. }));
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
}

fn vmm_config_without_kernel(vmm: &VmmProcess) -> vmpod_vmm_api::MachineConfig {
    vmpod_vmm_api::MachineConfig {
        id: "test".into(),
        vcpus: 1,
        memory_mib: 64,
        kernel: vmpod_vmm_api::KernelConfig {
            vmlinux: "/nonexistent".into(),
            initramfs: None,
            extra_cmdline: String::new(),
        },
        console_log: vmm.dir.path().join("console.log"),
        console_log_bytes: 1 << 16,
        shares: vec![],
        nets: vec![],
        blocks: vec![],
        vsock: None,
        balloon: false,
        jail: None,
    }
}
