//! The device under a real kernel: what this machine's FUSE client reads from `/dev/fuse` is put on the rings, and the
//! replies are written back, so that ordinary programs work in the share as they would in a guest.
//!
//! Differs from a guest in what is virtio's own: one request at a time, no submounts.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use tempfile::{TempDir, tempdir};

use super::guest::{Guest, value};
use crate::virtio::fs::fuse::{InHeader, ReadIn, opcode};

/// Room for a WRITE of 1 MiB with its head.
const REQUEST: usize = (1 << 20) + 4096;

/// A share mounted on this machine.
struct Mounted {
    host: TempDir,
    mount: TempDir,
    bridge: Option<JoinHandle<Guest>>,
}

impl Mounted {
    fn new() -> Self {
        let host = tempdir().unwrap();
        let mount = tempdir().unwrap();
        let guest = Guest::before_init(host.path(), false);
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("this test needs /dev/fuse (modprobe fuse) and root");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let target = CString::new(mount.path().to_str().unwrap()).unwrap();
        let options = CString::new(options).unwrap();
        // SAFETY: all texts are NUL-terminated.
        let result = unsafe {
            libc::mount(
                c"share".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        assert_eq!(
            result,
            0,
            "mounting fuse for this test failed: {}",
            std::io::Error::last_os_error()
        );
        let bridge = std::thread::spawn(move || bridge(device, guest));
        Self {
            host,
            mount,
            bridge: Some(bridge),
        }
    }

    /// A path as the programs of the guest see it.
    fn guest(&self, path: &str) -> PathBuf {
        self.mount.path().join(path)
    }

    fn host(&self, path: &str) -> PathBuf {
        self.host.path().join(path)
    }

    /// Runs a shell script in the share; its output.
    fn shell(&self, script: &str) -> String {
        let out = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.mount.path())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// Unmounts, and gives the device back.
    fn unmount(mut self) -> Guest {
        unmount(self.mount.path());
        self.bridge.take().unwrap().join().unwrap()
    }
}

fn unmount(path: &Path) {
    let target = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the text is NUL-terminated.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.mount.path());
    }
}

/// Passes requests on until the file system is unmounted.
fn bridge(mut device: File, mut guest: Guest) -> Guest {
    let mut request = vec![0; REQUEST];
    loop {
        let len = match device.read(&mut request) {
            Ok(len) => len,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return guest,
            // A request that was interrupted before it was read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => panic!("reading /dev/fuse: {error}"),
        };
        let header: InHeader = value(&request);
        let parts = [&request[..40], &request[40..len]];
        let parts: Vec<&[u8]> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            assert!(guest.driver.request(0, &parts, &[]).is_empty());
            continue;
        }
        let room = match header.opcode {
            opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
                value::<ReadIn>(&request[40..]).size as usize
            }
            opcode::READLINK | opcode::GETXATTR | opcode::LISTXATTR => 64 << 10,
            _ => 288,
        };
        let reply = guest.driver.request(1, &parts, &[16, room]);
        if !reply.is_empty() {
            // ENOENT: nobody waits for it any more.
            if let Err(error) = device.write_all(&reply) {
                assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{header:?}");
            }
        }
    }
}

#[test]
fn ordinary_programs_work_in_the_share() {
    let share = Mounted::new();
    share.shell(
        "mkdir -p src/deep/er && cp /bin/sh src/sh && cp -a /etc/passwd src/deep/er/passwd
         ln -s deep/er src/link && ln src/sh src/sh2
         tar cf t.tar src && mkdir out && tar xpf t.tar -C out
         diff -r --no-dereference src out/src
         test $(stat -c %h out/src/sh) = 2
         ./out/src/sh -c 'echo run from the share' > said
         cp --sparse=always /bin/sh sparse && cmp /bin/sh sparse
         dd if=/dev/urandom of=big bs=1M count=3 status=none && sha256sum big > sum && sha256sum -c sum >/dev/null
         mv out moved && rm -r moved && test ! -e moved
         find . | sort > list; sed -i s/src/SRC/ list; grep -q SRC list",
    );
    assert_eq!(
        fs::read(share.host("said")).unwrap(),
        b"run from the share\n"
    );
    assert_eq!(
        fs::read(share.host("big")).unwrap(),
        fs::read(share.guest("big")).unwrap()
    );
    assert_eq!(share.shell("readlink src/link"), "deep/er\n");
    let guest = share.unmount();
    assert!(guest.fs.table_sizes().1 == 0, "all files were closed");
}

#[test]
fn host_changes_are_seen_by_the_next_access() {
    let share = Mounted::new();
    let (guest, host) = (share.guest("f"), share.host("f"));
    assert!(!guest.exists());
    fs::write(&host, "one").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"one");
    let mut open = File::open(&guest).unwrap();
    for i in 0..50 {
        // Sizes differ; see below for equal ones.
        let text = "x".repeat(1 + i % 7);
        fs::write(&host, &text).unwrap();
        assert_eq!(fs::read_to_string(&guest).unwrap(), text);
        assert_eq!(fs::metadata(&guest).unwrap().len(), text.len() as u64);
        let mut seen = String::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, text);
    }
    for i in 0..50u8 {
        // As quick as can be, same size: each open must see it.
        fs::write(&host, [i; 5]).unwrap();
        assert_eq!(fs::read(&guest).unwrap(), [i; 5]);
    }
    fs::remove_file(&host).unwrap();
    assert!(!guest.exists());
    fs::create_dir(share.host("v1")).unwrap();
    fs::create_dir(share.host("v2")).unwrap();
    fs::write(share.host("v1/key"), "old").unwrap();
    fs::write(share.host("v2/key"), "new").unwrap();
    symlink("v1", share.host("..data")).unwrap();
    symlink("..data/key", share.host("key")).unwrap();
    assert_eq!(fs::read(share.guest("key")).unwrap(), b"old");
    symlink("v2", share.host("..tmp")).unwrap();
    fs::rename(share.host("..tmp"), share.host("..data")).unwrap();
    assert_eq!(fs::read(share.guest("key")).unwrap(), b"new");
    assert_eq!(fs::read_dir(share.mount.path()).unwrap().count(), 4);
    fs::write(share.host("more"), "").unwrap();
    assert_eq!(fs::read_dir(share.mount.path()).unwrap().count(), 5);
}

#[test]
fn handle_kept_open_sees_host_writes_of_the_same_size() {
    let share = Mounted::new();
    let host = share.host("f");
    fs::write(&host, [0; 5]).unwrap();
    let open = File::open(share.guest("f")).unwrap();
    for i in 1..=200u8 {
        fs::write(&host, [i; 5]).unwrap();
        let mut seen = [0; 5];
        open.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [i; 5]);
    }
}

#[test]
fn guest_appends_behind_the_host() {
    let share = Mounted::new();
    let append = |path: PathBuf| {
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap()
    };
    let mut guest = append(share.guest("log"));
    let mut host = append(share.host("log"));
    for i in 0..20 {
        writeln!(guest, "guest {i}").unwrap();
        writeln!(host, "host {i}").unwrap();
    }
    let expected: String = (0..20).map(|i| format!("guest {i}\nhost {i}\n")).collect();
    assert_eq!(fs::read_to_string(share.host("log")).unwrap(), expected);
    assert_eq!(fs::read_to_string(share.guest("log")).unwrap(), expected);
}

#[test]
fn mapped_file_is_written_back() {
    let share = Mounted::new();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(share.guest("m"))
        .unwrap();
    file.set_len(10_000).unwrap();
    // SAFETY: a fresh shared mapping of an open file, unmapped below and used in between only.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            10_000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        std::ptr::write_bytes(at.cast::<u8>().add(4000), 7, 200);
        assert_eq!(libc::msync(at, 10_000, libc::MS_SYNC), 0);
        libc::munmap(at, 10_000);
    }
    let host = fs::read(share.host("m")).unwrap();
    assert_eq!(host.len(), 10_000);
    assert!(host[4000..4200].iter().all(|b| *b == 7));
    assert_eq!(host[3999], 0);
}

#[test]
fn other_users_are_held_to_permissions_and_own_what_they_make() {
    let share = Mounted::new();
    fs::set_permissions(share.host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(share.mount.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(share.guest("team")).unwrap();
    std::os::unix::fs::chown(share.guest("team"), Some(0), Some(77)).unwrap();
    fs::set_permissions(share.guest("team"), fs::Permissions::from_mode(0o2770)).unwrap();
    fs::create_dir(share.guest("tmp")).unwrap();
    fs::set_permissions(share.guest("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(share.guest("tmp/roots"), "").unwrap();
    let as_user = |groups: &str, script: &str| {
        Command::new("setpriv")
            .args(["--reuid=1000", "--regid=1000", groups, "sh", "-ec", script])
            .current_dir(share.mount.path())
            .output()
            .unwrap()
    };
    let refused = as_user("--clear-groups", "echo x > team/f");
    assert!(!refused.status.success());
    // A supplementary group allows it; the directory gives its group.
    let made = as_user("--groups=77", "umask 007; echo x > team/f; mkdir team/d");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let meta = fs::metadata(share.host("team/f")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1000, 77, 0o660)
    );
    let meta = fs::metadata(share.host("team/d")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1000, 77, 0o2770)
    );
    assert!(
        !as_user("--clear-groups", "rm -f tmp/roots")
            .status
            .success()
    );
    assert!(
        as_user("--clear-groups", "touch tmp/mine; rm tmp/mine")
            .status
            .success()
    );
    assert!(
        !as_user("--clear-groups", "chown 0 tmp; true || false")
            .status
            .success()
    );
    // Writing to a set-user-id file takes the bit away, but not from root.
    fs::write(share.guest("suid"), "x").unwrap();
    fs::set_permissions(share.guest("suid"), fs::Permissions::from_mode(0o4777)).unwrap();
    fs::write(share.guest("suid"), "y").unwrap();
    assert_eq!(
        fs::metadata(share.host("suid")).unwrap().mode() & 0o7777,
        0o4777
    );
    assert!(as_user("--clear-groups", "echo z >> suid").status.success());
    assert_eq!(
        fs::metadata(share.host("suid")).unwrap().mode() & 0o7777,
        0o777
    );
    assert_eq!(
        fs::metadata(share.guest("suid")).unwrap().mode() & 0o7777,
        0o777
    );
}

#[test]
fn guest_uses_its_own_fifos_and_devices() {
    let share = Mounted::new();
    let said = share.shell("mkfifo p; (echo through > p &) ; cat p");
    assert_eq!(said, "through\n");
    nix::sys::stat::mknod(
        &share.host("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        libc::makedev(1, 3),
    )
    .unwrap();
    assert_eq!(share.shell("echo gone > null; wc -c < null"), "0\n");
    let refused = nix::sys::stat::mknod(
        &share.guest("sda"),
        nix::sys::stat::SFlag::S_IFBLK,
        nix::sys::stat::Mode::from_bits_truncate(0o600),
        libc::makedev(8, 0),
    );
    assert_eq!(refused, Err(nix::errno::Errno::EPERM));
}

#[test]
fn temporary_and_exclusive_files_work() {
    let share = Mounted::new();
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o640)
        .open(share.mount.path());
    let mut file = file.unwrap();
    file.write_all(b"nameless").unwrap();
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let to = CString::new(share.guest("named").to_str().unwrap()).unwrap();
    // SAFETY: both texts are NUL-terminated.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    assert_eq!(linked, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(fs::read(share.host("named")).unwrap(), b"nameless");
    let again = File::options()
        .write(true)
        .create_new(true)
        .open(share.guest("named"));
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    let mut open = File::create(share.guest("gone")).unwrap();
    fs::remove_file(share.guest("gone")).unwrap();
    open.write_all(b"still").unwrap();
    assert_eq!(open.metadata().unwrap().len(), 5);
}

#[test]
fn container_root_is_cached_and_coherent_with_itself() {
    let share = Mounted::new();
    fs::create_dir_all(share.host("containers/a/rootfs/dir")).unwrap();
    let root = share.guest("containers/a/rootfs");
    for i in 0..300 {
        fs::write(root.join(format!("dir/f{i}")), format!("{i}")).unwrap();
    }
    assert_eq!(fs::read_dir(root.join("dir")).unwrap().count(), 300);
    for i in (0..300).step_by(2) {
        fs::remove_file(root.join(format!("dir/f{i}"))).unwrap();
    }
    assert_eq!(fs::read_dir(root.join("dir")).unwrap().count(), 150);
    assert!(!root.join("dir/f0").exists());
    fs::write(root.join("dir/f0"), "again").unwrap();
    assert_eq!(fs::read(root.join("dir/f0")).unwrap(), b"again");
    fs::rename(root.join("dir/f1"), root.join("dir/f0")).unwrap();
    assert_eq!(fs::read(root.join("dir/f0")).unwrap(), b"1");
    assert!(!root.join("dir/f1").exists());
    fs::hard_link(root.join("dir/f3"), root.join("dir/g3")).unwrap();
    assert_eq!(fs::metadata(root.join("dir/f3")).unwrap().nlink(), 2);
    fs::set_permissions(root.join("dir/g3"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(
        fs::metadata(root.join("dir/f3")).unwrap().mode() & 0o7777,
        0o4711
    );
    fs::write(root.join("dir/f3"), "longer than before").unwrap();
    assert_eq!(
        fs::read(root.join("dir/g3")).unwrap(),
        b"longer than before"
    );
    fs::remove_file(root.join("dir/f3")).unwrap();
    assert_eq!(fs::metadata(root.join("dir/g3")).unwrap().nlink(), 1);
    let guest = share.unmount();
    assert_eq!(guest.fs.table_sizes().1, 0);
}
