//! Each operation of the file system as a guest asks for it, and what the host then holds.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;

use tempfile::tempdir;

use super::guest::{Guest, OFFERED, open_root, value};
use crate::virtio::fs::fuse::{EntryOut, ROOT_ID, StatfsOut, init_flag, opcode};
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::guest_driver::GuestDriver;
use crate::virtio::{ActivateError, VirtioDevice};

#[test]
fn device_out_of_range_is_refused() {
    let dir = tempdir().unwrap();
    let fs = |tag: &str, queues| Fs::new("fs0".into(), tag, open_root(dir.path()), queues, false);
    assert!(matches!(fs("", 1), Err(FsError::Tag { .. })));
    assert!(matches!(fs(&"x".repeat(37), 1), Err(FsError::Tag { .. })));
    assert!(matches!(fs("a", 0), Err(FsError::Queues { queues: 0 })));
    assert!(matches!(fs("a", 9), Err(FsError::Queues { queues: 9 })));
    let file = fs::File::create(dir.path().join("f")).unwrap();
    let error = Fs::new("fs0".into(), "a", file.into(), 1, false).unwrap_err();
    assert!(matches!(error, FsError::Root { .. }));
}

#[test]
fn configuration_space_holds_tag_and_queues() {
    let dir = tempdir().unwrap();
    let fs = Fs::new("fs0".into(), "share", open_root(dir.path()), 3, false).unwrap();
    let mut bytes = [0xff; 48];
    fs.read_config(0, &mut bytes);
    assert_eq!(&bytes[..6], b"share\0");
    assert_eq!(bytes[36..40], 3u32.to_le_bytes());
    assert_eq!(bytes[40..44], 320u32.to_le_bytes());
    assert_eq!(bytes[44..], [0; 4]);
    fs.read_config(u64::MAX, &mut bytes);
    assert_eq!(bytes, [0; 48]);
    assert_eq!(fs.queue_sizes(), [128, 32, 512, 512, 512]);
    assert_eq!(fs.device_type(), 26);
}

#[test]
fn activation_without_a_request_queue_is_refused() {
    let dir = tempdir().unwrap();
    let mut fs = Fs::new("fs0".into(), "share", open_root(dir.path()), 1, false).unwrap();
    let activation = GuestDriver::new(1, 16).activation(0);
    assert!(matches!(
        fs.activate(activation),
        Err(ActivateError::QueueMissing { index: 1 })
    ));
}

#[test]
fn init_takes_features_and_limits() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::before_init(dir.path(), false);
    assert_eq!(guest.getattr(ROOT_ID), Err(libc::EIO));
    let init = guest.init(OFFERED).unwrap();
    let flags = u64::from(init.flags) | u64::from(init.flags2) << 32;
    assert_eq!((init.major, init.minor), (7, 41));
    assert_eq!((init.max_write, init.max_pages), (1 << 20, 256));
    for wanted in [
        init_flag::SUBMOUNTS,
        init_flag::AUTO_INVAL_DATA,
        init_flag::HANDLE_KILLPRIV_V2,
        init_flag::INIT_EXT,
        init_flag::ALLOW_IDMAP,
    ] {
        assert_ne!(flags & wanted, 0, "{wanted:#x}");
    }
    // Locks, writeback, export, open-less: not ours.
    assert_eq!(flags & (1 << 1 | 1 << 10 | 1 << 16 | 1 << 4 | 1 << 17), 0);
    assert_eq!(guest.init(0), Err(libc::EPROTO));
    guest.getattr(ROOT_ID).unwrap();
}

#[test]
fn lookup_gives_attributes_of_the_host() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "hello").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let mut guest = Guest::new(dir.path());
    let entry = guest.lookup(ROOT_ID, "file").unwrap();
    let host = fs::metadata(&path).unwrap();
    let attr = entry.attr;
    assert_eq!((attr.size, attr.mode), (5, libc::S_IFREG | 0o640));
    assert_eq!((attr.uid, attr.gid, attr.nlink), (12, 34, 1));
    assert_eq!(attr.ino, host.ino());
    assert_eq!(attr.mtime.cast_signed(), host.mtime());
    assert_eq!(i64::from(attr.mtimensec), host.mtime_nsec());
    assert_eq!((entry.entry_valid, entry.attr_valid), (0, 0));
    assert_eq!(guest.getattr(entry.nodeid).unwrap().attr, attr);
    // Again the same node.
    assert_eq!(guest.lookup(ROOT_ID, "file").unwrap().nodeid, entry.nodeid);
    assert_eq!(guest.lookup(ROOT_ID, "none"), Err(libc::ENOENT));
    assert_eq!(guest.lookup(entry.nodeid, "x"), Err(libc::ENOTDIR));
    assert_eq!(guest.lookup(4711, "x"), Err(libc::ESTALE));
}

#[test]
fn file_created_written_and_read_is_on_the_host() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let (entry, open) = guest
        .create(ROOT_ID, "new", 0o666, libc::O_RDWR | libc::O_CREAT)
        .unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o644);
    assert_eq!(guest.write(open.fh, 0, b"0123456789").unwrap(), 10);
    assert_eq!(guest.write(open.fh, 8, b"abc").unwrap(), 3);
    assert_eq!(guest.read(open.fh, 2, 100).unwrap(), b"234567abc");
    assert_eq!(guest.read(open.fh, 100, 100).unwrap(), b"");
    assert_eq!(fs::read(dir.path().join("new")).unwrap(), b"01234567abc");
    guest.release(entry.nodeid, open.fh).unwrap();
    assert_eq!(guest.read(open.fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.release(entry.nodeid, open.fh), Err(libc::EBADF));
    assert_eq!(
        guest
            .create(ROOT_ID, "new", 0o666, libc::O_RDWR | libc::O_EXCL)
            .unwrap_err(),
        libc::EEXIST
    );
    // Without O_EXCL an existing file is opened.
    let again = guest.create(ROOT_ID, "new", 0o600, libc::O_WRONLY).unwrap();
    assert_eq!(again.0.nodeid, entry.nodeid);
    assert_eq!(again.0.attr.mode, libc::S_IFREG | 0o644);
    let counters = guest.fs.counters();
    assert_eq!(counters.written_bytes.load(Ordering::Relaxed), 13);
    assert_eq!(counters.read_bytes.load(Ordering::Relaxed), 9);
}

#[test]
fn transfers_of_a_mebibyte_go_in_one_request() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let data: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
    let (_, open) = guest.create(ROOT_ID, "big", 0o600, libc::O_RDWR).unwrap();
    assert_eq!(guest.write(open.fh, 0, &data).unwrap(), 1 << 20);
    let read = crate::virtio::fs::fuse::ReadIn {
        fh: open.fh,
        size: u32::MAX,
        ..Default::default()
    };
    let body = super::guest::bytes_of(&read);
    let back = guest
        .call_on(2, opcode::READ, ROOT_ID, &[&body], 3 << 20)
        .unwrap();
    assert_eq!(back, data);
    assert_eq!(
        guest.write(open.fh, 0, &[0; (1 << 20) + 1]),
        Err(libc::EINVAL)
    );
}

#[test]
fn read_stops_where_the_guest_left_room() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), [7; 1000]).unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    let read = crate::virtio::fs::fuse::ReadIn {
        fh,
        size: 1000,
        ..Default::default()
    };
    let body = super::guest::bytes_of(&read);
    let got = guest.call_on(1, opcode::READ, node, &[&body], 100).unwrap();
    assert_eq!(got, [7; 100]);
}

#[test]
fn listing_of_many_entries_is_complete_in_small_pieces() {
    let dir = tempdir().unwrap();
    let mut expected: Vec<String> = (0..1000).map(|i| format!("entry-{i:04}")).collect();
    for name in &expected {
        fs::write(dir.path().join(name), "").unwrap();
    }
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    let mut guest = Guest::new(dir.path());
    for (size, plus) in [(300, false), (4096, false), (4096, true), (60_000, true)] {
        let listed = guest.list(ROOT_ID, size, plus);
        let mut names: Vec<String> = listed.iter().map(|l| l.name.clone()).collect();
        names.sort();
        assert_eq!(names, expected, "{size} {plus}");
        // In a shared directory attributes are asked for one by one, when they are wanted.
        assert!(
            listed
                .iter()
                .all(|l| l.entry.is_none_or(|e| e == EntryOut::default()))
        );
    }
    // Going back to any offset continues behind the entry that gave it.
    let all = guest.list(ROOT_ID, 4096, false);
    let fh = guest.opendir(ROOT_ID).unwrap().fh;
    for at in [700, 3, 999, 0] {
        let some = guest.readdir(ROOT_ID, fh, all[at].off, 400, false).unwrap();
        assert_eq!(some[0], all[at + 1]);
    }
    assert_eq!(guest.readdir(ROOT_ID, fh, 0, 10, false), Err(libc::EINVAL));
}

#[test]
fn listing_from_the_start_shows_what_the_host_added() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let fh = guest.opendir(ROOT_ID).unwrap().fh;
    let before = guest.readdir(ROOT_ID, fh, 0, 4096, false).unwrap();
    fs::write(dir.path().join("b"), "").unwrap();
    let after = guest.readdir(ROOT_ID, fh, 0, 4096, false).unwrap();
    assert_eq!((before.len(), after.len()), (3, 4));
}

#[test]
fn names_are_made_moved_and_removed() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut guest = Guest::new(dir.path());
    let sub = guest.mkdir(ROOT_ID, "sub", 0o777).unwrap();
    assert_eq!(sub.attr.mode, libc::S_IFDIR | 0o755);
    fs::write(at("a"), "A").unwrap();
    fs::write(at("b"), "B").unwrap();
    guest.rename((ROOT_ID, "a"), (sub.nodeid, "c"), 0).unwrap();
    assert_eq!(fs::read(at("sub/c")).unwrap(), b"A");
    assert_eq!(
        guest.rename((sub.nodeid, "c"), (ROOT_ID, "b"), libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    guest
        .rename((sub.nodeid, "c"), (ROOT_ID, "b"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert_eq!(fs::read(at("b")).unwrap(), b"A");
    assert_eq!(
        guest.rename((ROOT_ID, "b"), (ROOT_ID, "x"), 1 << 7),
        Err(libc::EINVAL)
    );
    assert_eq!(guest.rmdir(ROOT_ID, "sub"), Err(libc::ENOTEMPTY));
    assert_eq!(guest.unlink(ROOT_ID, "sub"), Err(libc::EISDIR));
    guest.unlink(sub.nodeid, "c").unwrap();
    guest.rmdir(ROOT_ID, "sub").unwrap();
    assert!(!at("sub").exists());
    // The old form of the operation.
    let names = [&ROOT_ID.to_le_bytes()[..], b"b\0", b"d\0"].concat();
    guest.call(opcode::RENAME, ROOT_ID, &[&names]).unwrap();
    assert!(at("d").exists());
}

#[test]
fn symbolic_link_is_read_and_never_followed() {
    let dir = tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("out")).unwrap();
    let mut guest = Guest::new(dir.path());
    let link = guest.symlink(ROOT_ID, "l", "../../x").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.readlink(link.nodeid).unwrap(), "../../x");
    let out = guest.walk("out");
    assert_eq!(guest.readlink(out.nodeid).unwrap(), "/etc/passwd");
    assert_eq!(guest.open(out.nodeid, libc::O_RDONLY), Err(libc::ENXIO));
    assert_eq!(guest.lookup(out.nodeid, "x"), Err(libc::ENOTDIR));
    assert_eq!(guest.readlink(ROOT_ID), Err(libc::EINVAL));
}

#[test]
fn statfs_gives_the_size_of_the_host_file_system() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let stat: StatfsOut = value(&guest.call(opcode::STATFS, ROOT_ID, &[]).unwrap());
    assert!(stat.blocks > 0 && stat.bfree <= stat.blocks);
    assert_eq!(stat.namelen, 255);
}
