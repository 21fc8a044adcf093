//! Boots a real guest kernel in a real `vmpod-vmm` process and watches it from outside.
//!
//! The environment variable VMPOD_KERNEL names the kernel (`vmlinux`); without it that of the installation beside
//! VMPOD_BIN is taken. These tests need KVM that runs guest kernels.

mod guest_init;
mod snapshot;
mod vmm_process;

use std::time::Duration;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use vmpod_vmm_api::{
    BlockConfig, BlockSource, ExitReason, JailConfig, MachineState, NetConfig, Reply, Request,
    ShareConfig, VsockConfig,
};

use crate::vmm_process::{LIMIT, USER, VmmProcess};

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
        sender: None,
        own_network: None,
    });
    config.balloon = true;
    config.blocks.push(block(vmm.dir.path()));
    let listener = UnixListener::bind(vmm.dir.path().join("vsock_1024")).unwrap();
    vmm.create(config);
    vmm.wait_console("READY");
    let metrics = vmm.metrics();
    println!("{metrics:?}");
    let names: Vec<_> = metrics.devices.keys().map(String::as_str).collect();
    assert_eq!(names, ["balloon0", "blk0", "fs0", "net0", "rng0", "vsock0"]);
    assert_eq!(greeting(&listener), "hi");
    assert_eq!(read_from_guest(&vmm), "hi");
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
    assert_eq!(vmm.wait(), (Some(0), String::new()));
}

/// A block device on a file of 1 MiB.
fn block(dir: &Path) -> BlockConfig {
    let path = dir.join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    BlockConfig {
        serial: "disk".into(),
        source: BlockSource::Path(path),
        read_only: false,
    }
}

fn read_from_guest(vmm: &VmmProcess) -> String {
    std::fs::read_to_string(vmm.dir.path().join("from-guest")).unwrap()
}

/// What the guest sends to a listener.
fn greeting(listener: &UnixListener) -> String {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = [0; 2];
    (&stream).read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_in_a_jail_serves_its_devices_with_few_rights() {
    let mut vmm = VmmProcess::start_with_tap("vmmtest1");
    let mut config = vmm.confined(2, 128, "wait");
    let dir = vmm.dir.path().to_owned();
    config.blocks.push(block(&dir));
    let listener = UnixListener::bind(dir.join("run/vsock_1024")).unwrap();
    std::os::unix::fs::chown(dir.join("run/vsock_1024"), Some(USER), None).unwrap();
    vmm.create(config);
    vmm.wait_console("READY");
    assert_eq!(greeting(&listener), "hi");
    assert_eq!(
        std::fs::read_to_string(dir.join("share/from-guest")).unwrap(),
        "hi"
    );

    let process = Path::new("/proc").join(vmm.child.id().to_string());
    let mut root: Vec<_> = std::fs::read_dir(process.join("root"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    root.sort();
    assert_eq!(root, ["console", "proc", "share", "vsock"]);
    assert!(std::fs::read_link(process.join("root/proc/self")).is_err());

    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP
    let serve_files = 0x8800_00dfu64;
    let mut seen = Vec::new();
    for task in std::fs::read_dir(process.join("task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        let capabilities = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        let name = field("Name:");
        let serves = name.starts_with("fs0.") || name == "spawner";
        let expected = if serves { serve_files } else { 0 };
        assert_eq!(capabilities("CapPrm:"), expected, "{name}");
        assert_eq!(capabilities("CapEff:"), expected, "{name}");
        assert_eq!(capabilities("CapInh:"), 0, "{name}");
        assert_eq!(capabilities("CapAmb:"), 0, "{name}");
        assert_eq!(capabilities("CapBnd:"), serve_files, "{name}");
        assert_eq!(field("Seccomp:"), "2", "{name}");
        // Real, effective, saved, and in file systems, where the guest's root is root.
        let files = if name.starts_with("fs0.") { 0 } else { USER };
        let ids = format!("{USER}\t{USER}\t{USER}\t{files}");
        assert_eq!(field("Uid:"), ids, "{name}");
        assert_eq!(field("Gid:"), ids, "{name}");
        assert_eq!(field("Groups:"), "", "{name}");
        assert_eq!(field("NoNewPrivs:"), "1", "{name}");
        seen.push(name);
    }
    seen.sort();
    println!("{seen:?}");
    for name in [
        "balloon0", "fs0.1", "net0", "rng0", "vcpu0", "vcpu1", "vsock0",
    ] {
        assert!(seen.iter().any(|s| s == name), "{name} in {seen:?}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |p: &Path| std::fs::read_link(p.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    assert!(
        limits
            .lines()
            .any(|l| l.starts_with("Max open files") && l.contains("4096")),
        "{limits}"
    );

    assert_eq!(vmm.request(&Request::Pause), Reply::Done);
    assert_eq!(vmm.request(&Request::Resume), Reply::Done);
    vmm.metrics();
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
    assert_eq!(vmm.wait(), (Some(0), String::new()));
    assert!(!dir.join("run/vsock").exists());
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_in_a_jail_that_panics_says_so() {
    let mut vmm = VmmProcess::start();
    let mut config = vmm.config(1, 128, "exit");
    let dir = vmm.dir.path().to_owned();
    for name in ["run", "jail"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    config.console_log = dir.join("run/console.log");
    config.console_log_bytes = 1024;
    config.kernel.extra_cmdline = "ignore_loglevel -- exit".into();
    config.jail = Some(JailConfig {
        root: dir.join("jail"),
        open_files: 64,
        user: None,
    });
    vmm.console = dir.join("run/console.log");
    vmm.create(config);
    assert!(matches!(vmm.exited(), ExitReason::Panic { .. }));
    assert_eq!(vmm.wait().0, Some(2));
    // All messages of a boot are longer than the bound: the log has been set aside from within the jail.
    assert!(dir.join("run/console.log.1").exists());
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
        sender: None,
        own_network: None,
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
        snapshot_to: None,
        restore: None,
        jail: None,
    }
}
