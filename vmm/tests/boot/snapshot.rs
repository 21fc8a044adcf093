//! Machines that go on from a snapshot of another.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmpod_vmm_api::{ExitReason, MachineConfig, Reply, Request, TOUCHED_FILE, TouchedPages};

use crate::vmm_process::{LIMIT, VmmProcess};

const MEMORY_MIB: u64 = 128;

/// A machine that can be saved and serves its greeting.
fn config(vmm: &mut VmmProcess, vcpus: u8) -> MachineConfig {
    vmm.confined(vcpus, MEMORY_MIB, "serve")
}

/// Asks the guest for its greeting, and for a file in its share.
fn greets(vmm: &VmmProcess) {
    greets_with(vmm, "hi");
}

fn greets_with(vmm: &VmmProcess, greeting: &str) {
    let dir = vmm.dir.path();
    let mut stream = UnixStream::connect(dir.join("run/vsock")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"CONNECT 1025\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}: {}", vmm.console());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, greeting);
    let file = dir.join("share/from-guest");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), greeting);
    std::fs::remove_file(file).unwrap();
}

fn stop(vmm: &mut VmmProcess) {
    assert_eq!(vmm.request(&Request::Stop), Reply::Done);
    assert_eq!(vmm.exited(), ExitReason::Stopped);
    assert_eq!(vmm.wait(), (Some(0), String::new()));
}

/// A machine that has been saved, and where.
fn saved(tap: &str, vcpus: u8) -> (VmmProcess, PathBuf) {
    let mut vmm = VmmProcess::start_with_tap(tap);
    let mut config = config(&mut vmm, vcpus);
    let directory = vmm.dir.path().join("snapshot");
    std::fs::create_dir(&directory).unwrap();
    config.snapshot_to = Some(directory.clone());
    vmm.create(config);
    vmm.wait_console("READY");
    assert_eq!(vmm.request(&Request::Snapshot), Reply::Done);
    (vmm, directory)
}

/// A machine that goes on from there.
fn restored(tap: &str, vcpus: u8, directory: &Path) -> VmmProcess {
    let mut vmm = VmmProcess::start_with_tap(tap);
    let mut config = config(&mut vmm, vcpus);
    config.restore = Some(directory.to_owned());
    // Nothing is booted.
    config.kernel.vmlinux = "/nonexistent".into();
    config.kernel.initramfs = None;
    vmm.create(config);
    vmm
}

/// The pages that a machine says it has written to.
fn touched(vmm: &mut VmmProcess) -> TouchedPages {
    let Reply::Touched { pages } = vmm.request(&Request::Touched) else {
        panic!("no pages are told");
    };
    pages.checked().expect("they are in order")
}

fn goes_on_twice(vcpus: u8) {
    let (mut first, directory) = saved("vmmtest2", vcpus);
    greets(&first);
    // Each page lies at the offset of its address: what counts is what the file system keeps, in blocks of 512 bytes.
    let size = |name: &str| {
        let found = std::fs::metadata(directory.join(name)).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&found) * 512
    };
    println!("state {} memory {} bytes", size("state"), size("memory"));
    assert!(size("memory") < 64 << 20);
    let mut second = restored("vmmtest3", vcpus, &directory);
    greets(&second);
    let mut third = restored("vmmtest4", vcpus, &directory);
    for _ in 0..2 {
        for vmm in [&first, &second, &third] {
            greets(vmm);
        }
    }
    println!("{:?}", third.metrics());
    for vmm in [&mut first, &mut second] {
        let pages = touched(vmm);
        println!("{} pages of the snapshot touched", pages.count());
        assert!((50..1536).contains(&pages.count()));
        std::fs::write(directory.join(TOUCHED_FILE), pages.to_bytes()).unwrap();
        let Reply::Error { message } = vmm.request(&Request::Touched) else {
            panic!("told twice");
        };
        assert!(message.contains("was asked before"), "{message}");
        greets(vmm);
    }
    // One that is told them, and one that is told what is none.
    for bytes in [None, Some([0xff; 24])] {
        if let Some(bytes) = bytes {
            std::fs::write(directory.join(TOUCHED_FILE), bytes).unwrap();
        }
        let mut told = restored("vmmtest8", vcpus, &directory);
        greets(&told);
        let reply = told.request(&Request::Touched);
        assert_eq!(matches!(reply, Reply::Touched { .. }), bytes.is_some());
        stop(&mut told);
    }
    // Without its files they go on.
    std::fs::remove_dir_all(&directory).unwrap();
    for vmm in [&mut first, &mut second, &mut third] {
        greets(vmm);
        assert_eq!(vmm.request(&Request::Pause), Reply::Done);
        assert_eq!(vmm.request(&Request::Resume), Reply::Done);
        greets(vmm);
        stop(vmm);
    }
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_has_its_initramfs_where_it_lies_and_others_that_go_on_from_it_a_copy() {
    let (mut first, directory) = saved("vmmtest9", 1);
    greets(&first);
    // The init of the running machine finds what is in the file by now.
    let path = first.dir.path().join("initramfs");
    let archive = std::fs::read(&path).unwrap();
    let before = b"/mnt/from-guest\0";
    let at = archive
        .windows(before.len())
        .position(|w| w == before)
        .unwrap()
        + before.len();
    assert_eq!(archive[at..at + 3], *b"hi\0");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"ho", at as u64).unwrap();
    greets_with(&first, "ho");
    let mut second = restored("vmmtesta", 1, &directory);
    greets(&second);
    greets_with(&first, "ho");
    for vmm in [&mut first, &mut second] {
        stop(vmm);
    }
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_saved_goes_on_and_two_others_go_on_from_it() {
    goes_on_twice(1);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_with_two_vcpus_saved_goes_on_and_two_others_go_on_from_it() {
    goes_on_twice(2);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn machine_saved_before_is_not_saved_again() {
    let (mut vmm, _) = saved("vmmtest5", 1);
    let Reply::Error { message } = vmm.request(&Request::Snapshot) else {
        panic!("saved twice");
    };
    assert!(message.contains("its one snapshot was taken"), "{message}");
    greets(&vmm);
    stop(&mut vmm);
}

#[test]
#[ignore = "needs KVM: run by cargo xtask test in the node"]
fn snapshot_damaged_or_of_another_machine_is_refused_with_the_reason() {
    let (mut vmm, directory) = saved("vmmtest6", 1);
    stop(&mut vmm);
    let refused = |change: &dyn Fn(&Path, &mut MachineConfig)| {
        let copy = tempfile::tempdir().unwrap();
        for name in ["state", "memory", "initramfs"] {
            std::fs::copy(directory.join(name), copy.path().join(name)).unwrap();
        }
        let mut vmm = VmmProcess::start_with_tap("vmmtest7");
        let mut config = config(&mut vmm, 1);
        config.restore = Some(copy.path().to_owned());
        change(copy.path(), &mut config);
        let Reply::Error { message } = vmm.request(&Request::Create(Box::new(config))) else {
            panic!("accepted");
        };
        assert_eq!(vmm.wait().0, Some(1));
        println!("{message}");
        message
    };
    let message = refused(&|directory, _| {
        let path = directory.join("state");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    });
    assert!(message.contains("checksum is wrong"), "{message}");
    let message = refused(&|directory, _| {
        std::fs::write(directory.join("state"), "rubbish").unwrap();
    });
    assert!(message.contains("does not begin as one"), "{message}");
    let cut = |name: &str| {
        refused(&|directory, _| {
            let path = directory.join(name);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(4096).unwrap();
        })
    };
    let message = cut("memory");
    assert!(
        message.contains("not that of the saved memory"),
        "{message}"
    );
    let message = cut("initramfs");
    assert!(message.contains("map the saved initramfs"), "{message}");
    assert!(message.contains("it has 4096 bytes"), "{message}");
    let message = refused(&|_, config| config.memory_mib = 2 * MEMORY_MIB);
    assert!(message.contains("256 MiB"), "{message}");
    let message = refused(&|_, config| config.vcpus = 2);
    assert!(message.contains("2 vCPUs"), "{message}");
    let message = refused(&|_, config| config.balloon = false);
    assert!(message.contains("devices"), "{message}");
    let message = refused(&|directory, _| {
        std::fs::remove_file(directory.join("state")).unwrap();
    });
    assert!(message.contains("No such file"), "{message}");
}
