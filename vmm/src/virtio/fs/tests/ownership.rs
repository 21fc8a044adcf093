//! Who owns new files, with which mode; privileges that are lost; special files; read-only shares.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::Guest;
use crate::virtio::fs::fuse::{OpenIn, ROOT_ID, SetattrIn, flag, opcode};

fn owner(path: &Path) -> (u32, u32, u32) {
    let host = fs::symlink_metadata(path).unwrap();
    (host.uid(), host.gid(), host.mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn new_files_belong_to_the_user_who_asks() {
    let dir = tempdir().unwrap();
    // Nobody but root may write there on the host; the guest's kernel has decided otherwise.
    set_mode(dir.path(), 0o700);
    let at = |name: &str| dir.path().join(name);
    let mut guest = Guest::new(dir.path());
    guest.uid = 1000;
    guest.gid = 2000;
    guest.umask = 0o027;
    let (entry, open) = guest.create(ROOT_ID, "f", 0o666, libc::O_RDWR).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 2000));
    assert_eq!(owner(&at("f")), (1000, 2000, 0o640));
    guest.write(open.fh, 0, b"x").unwrap();
    guest.mkdir(ROOT_ID, "d", 0o777).unwrap();
    assert_eq!(owner(&at("d")), (1000, 2000, 0o750));
    guest.symlink(ROOT_ID, "l", "x").unwrap();
    assert_eq!(owner(&at("l")), (1000, 2000, 0o777));
    guest.mknod(ROOT_ID, "p", libc::S_IFIFO | 0o666, 0).unwrap();
    assert_eq!(owner(&at("p")), (1000, 2000, 0o640));
    // A file without write permission can be written through the open that made it.
    let (_, open) = guest.create(ROOT_ID, "ro", 0o400, libc::O_WRONLY).unwrap();
    guest.write(open.fh, 0, b"once").unwrap();
    assert_eq!(owner(&at("ro")), (1000, 2000, 0o400));
    // The thread is itself again.
    guest.uid = 0;
    guest.gid = 0;
    guest.umask = 0;
    guest.mkdir(ROOT_ID, "r", 0o777).unwrap();
    assert_eq!(owner(&at("r")), (0, 0, 0o777));
    guest.uid = u32::MAX;
    assert_eq!(guest.mkdir(ROOT_ID, "n", 0o777), Err(libc::EINVAL));
    assert!(!at("n").exists());
}

#[test]
fn set_group_id_directory_passes_its_group_on() {
    let dir = tempdir().unwrap();
    chown(dir.path(), Some(5), Some(77)).unwrap();
    set_mode(dir.path(), 0o2775);
    let mut guest = Guest::new(dir.path());
    for (uid, gid) in [(0, 0), (1000, 2000)] {
        guest.uid = uid;
        guest.gid = gid;
        let name = |kind: &str| format!("{kind}{uid}");
        guest.create(ROOT_ID, &name("f"), 0o666, 0).unwrap();
        guest.mkdir(ROOT_ID, &name("d"), 0o777).unwrap();
        assert_eq!(owner(&dir.path().join(name("f"))), (uid, 77, 0o644));
        assert_eq!(owner(&dir.path().join(name("d"))), (uid, 77, 0o2755));
    }
}

#[test]
fn mode_bits_of_a_new_file_are_all_kept() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    guest.umask = 0;
    guest.uid = 1000;
    guest.gid = 1000;
    guest.create(ROOT_ID, "s", 0o6755, 0).unwrap();
    guest.mkdir(ROOT_ID, "t", 0o1777).unwrap();
    assert_eq!(owner(&dir.path().join("s")).2, 0o6755);
    assert_eq!(owner(&dir.path().join("t")).2, 0o1777);
}

#[test]
fn default_acl_of_the_directory_replaces_the_umask() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    // Version 2; user::rwx group::rwx other::rwx, each {tag, permissions, id}.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for tag in [0x01u16, 0x04, 0x20] {
        acl.extend(tag.to_le_bytes());
        acl.extend(7u16.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    guest
        .setxattr(ROOT_ID, "system.posix_acl_default", &acl)
        .expect("the file system of the temporary directory must have POSIX ACLs");
    guest.umask = 0o077;
    guest.create(ROOT_ID, "f", 0o664, 0).unwrap();
    guest.mkdir(ROOT_ID, "d", 0o775).unwrap();
    assert_eq!(owner(&dir.path().join("f")).2, 0o664);
    assert_eq!(owner(&dir.path().join("d")).2, 0o775);
}

#[test]
fn attributes_are_set_on_the_host() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "0123456789").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let set = SetattrIn {
        valid: flag::FATTR_MODE | flag::FATTR_UID | flag::FATTR_GID | flag::FATTR_SIZE,
        mode: libc::S_IFREG | 0o4751,
        uid: 7,
        gid: 8,
        size: 4,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, set).unwrap().attr;
    assert_eq!((attr.uid, attr.gid, attr.size), (7, 8, 4));
    assert_eq!(attr.mode, libc::S_IFREG | 0o4751);
    assert_eq!(owner(&path), (7, 8, 0o4751));
    assert_eq!(fs::read(&path).unwrap(), b"0123");
    // One id alone; a change of owner takes the set-user-id bit away.
    let set = SetattrIn {
        valid: flag::FATTR_GID,
        uid: 99,
        gid: 9,
        ..SetattrIn::default()
    };
    guest.setattr(node, set).unwrap();
    assert_eq!(owner(&path), (7, 9, 0o751));
    let set = SetattrIn {
        valid: flag::FATTR_ATIME | flag::FATTR_MTIME,
        atime: 1_000,
        atimensec: 5,
        mtime: (-3i64).cast_unsigned(),
        mtimensec: 6,
        ..SetattrIn::default()
    };
    guest.setattr(node, set).unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((host.atime(), host.atime_nsec()), (1_000, 5));
    assert_eq!((host.mtime(), host.mtime_nsec()), (-3, 6));
    let set = SetattrIn {
        valid: flag::FATTR_MTIME | flag::FATTR_MTIME_NOW,
        ..SetattrIn::default()
    };
    guest.setattr(node, set).unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!(host.atime(), 1_000);
    assert!(host.mtime() > 1_000_000_000);
    let set = SetattrIn {
        valid: flag::FATTR_SIZE,
        size: u64::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, set), Err(libc::EINVAL));
}

#[test]
fn attributes_of_a_symbolic_link_are_its_own() {
    let dir = tempdir().unwrap();
    let target = dir.path().join("target");
    fs::write(&target, "").unwrap();
    let before = owner(&target);
    let mut guest = Guest::new(dir.path());
    let node = guest.symlink(ROOT_ID, "l", "target").unwrap().nodeid;
    let set = SetattrIn {
        valid: flag::FATTR_UID | flag::FATTR_GID | flag::FATTR_MTIME,
        uid: 5,
        gid: 6,
        mtime: 77,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, set).unwrap().attr;
    assert_eq!((attr.uid, attr.gid, attr.mtime), (5, 6, 77));
    let set = SetattrIn {
        valid: flag::FATTR_MODE,
        mode: 0o777,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, set), Err(libc::EOPNOTSUPP));
    let set = SetattrIn {
        valid: flag::FATTR_SIZE,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, set), Err(libc::ENXIO));
    assert_eq!(owner(&target), before);
}

#[test]
fn privileges_are_lost_when_the_guest_says_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    let mut guest = Guest::new(dir.path());
    fs::write(&path, "0123").unwrap();
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    set_mode(&path, 0o6755);
    guest.write(fh, 0, b"x").unwrap();
    assert_eq!(owner(&path).2, 0o6755);
    guest
        .write_with(fh, 0, b"x", 0, flag::WRITE_KILL_SUIDGID)
        .unwrap();
    assert_eq!(owner(&path).2, 0o755);
    // Without group execution the bit means something else.
    set_mode(&path, 0o6745);
    guest
        .write_with(fh, 0, b"x", 0, flag::WRITE_KILL_SUIDGID)
        .unwrap();
    assert_eq!(owner(&path).2, 0o2745);
    set_mode(&path, 0o4755);
    let set = SetattrIn {
        valid: flag::FATTR_SIZE | flag::FATTR_KILL_SUIDGID,
        size: 2,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, set).unwrap().attr;
    assert_eq!(attr.mode & 0o7777, 0o755);
    set_mode(&path, 0o4755);
    let open = OpenIn {
        flags: (libc::O_WRONLY | libc::O_TRUNC) as u32,
        open_flags: flag::OPEN_KILL_SUIDGID,
    };
    guest.call(opcode::OPEN, node, &[open.as_slice()]).unwrap();
    assert_eq!(owner(&path).2, 0o755);
}

#[test]
fn device_nodes_are_refused_except_whiteouts() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    for mode in [libc::S_IFCHR, libc::S_IFBLK] {
        assert_eq!(
            guest.mknod(ROOT_ID, "dev", mode | 0o666, 0x0103),
            Err(libc::EPERM)
        );
    }
    assert_eq!(
        guest.mknod(ROOT_ID, "dev", libc::S_IFBLK, 0),
        Err(libc::EPERM)
    );
    assert_eq!(
        guest.mknod(ROOT_ID, "dev", libc::S_IFDIR, 0),
        Err(libc::EINVAL)
    );
    let whiteout = guest.mknod(ROOT_ID, "w", libc::S_IFCHR, 0).unwrap();
    assert_eq!(whiteout.attr.rdev, 0);
    let host = fs::metadata(dir.path().join("w")).unwrap();
    assert!(host.file_type().is_char_device());
    assert_eq!(host.rdev(), 0);
    guest
        .mknod(ROOT_ID, "s", libc::S_IFSOCK | 0o666, 0)
        .unwrap();
    guest.mknod(ROOT_ID, "r", libc::S_IFREG | 0o600, 0).unwrap();
    assert!(dir.path().join("r").is_file());
    // The mark of a deleted file is left behind by renames too.
    guest
        .rename((ROOT_ID, "r"), (ROOT_ID, "q"), libc::RENAME_WHITEOUT)
        .unwrap();
    let host = fs::metadata(dir.path().join("r")).unwrap();
    assert!(host.file_type().is_char_device());
}

#[test]
fn special_files_are_never_opened_on_the_host() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    guest.mknod(ROOT_ID, "p", libc::S_IFIFO | 0o666, 0).unwrap();
    guest
        .mknod(ROOT_ID, "s", libc::S_IFSOCK | 0o666, 0)
        .unwrap();
    nix::sys::stat::mknod(
        &dir.path().join("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        libc::makedev(1, 3),
    )
    .unwrap();
    for name in ["p", "s", "null"] {
        let entry = guest.walk(name);
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC] {
            assert_eq!(guest.open(entry.nodeid, flags), Err(libc::ENXIO), "{name}");
        }
        // CREATE of a name that is there is an open too.
        assert_eq!(
            guest
                .create(ROOT_ID, name, 0o600, libc::O_RDWR)
                .unwrap_err(),
            libc::ENXIO
        );
    }
    // The guest learns which device it is, to use its own.
    assert_eq!(guest.walk("null").attr.rdev, 0x103);
    assert_eq!(guest.open(ROOT_ID, libc::O_RDONLY), Err(libc::EISDIR));
}

#[test]
fn read_only_share_refuses_every_change() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "data").unwrap();
    let mut guest = Guest::with(dir.path(), true);
    let node = guest.walk("f").nodeid;
    let erofs = libc::EROFS;
    assert_eq!(guest.create(ROOT_ID, "n", 0o600, 0).unwrap_err(), erofs);
    assert_eq!(
        guest.tmpfile(ROOT_ID, 0o600, libc::O_RDWR).unwrap_err(),
        erofs
    );
    assert_eq!(guest.mkdir(ROOT_ID, "n", 0o700), Err(erofs));
    assert_eq!(guest.mknod(ROOT_ID, "n", libc::S_IFIFO, 0), Err(erofs));
    assert_eq!(guest.symlink(ROOT_ID, "n", "x"), Err(erofs));
    assert_eq!(guest.link(node, ROOT_ID, "n"), Err(erofs));
    assert_eq!(guest.unlink(ROOT_ID, "f"), Err(erofs));
    assert_eq!(guest.rmdir(ROOT_ID, "f"), Err(erofs));
    assert_eq!(guest.rename((ROOT_ID, "f"), (ROOT_ID, "n"), 0), Err(erofs));
    assert_eq!(guest.setattr(node, SetattrIn::default()), Err(erofs));
    assert_eq!(guest.setxattr(node, "user.a", b"1"), Err(erofs));
    assert_eq!(
        guest.call(opcode::REMOVEXATTR, node, &[b"user.a\0"]),
        Err(erofs)
    );
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(node, flags), Err(erofs));
    }
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.write(fh, 0, b"x"), Err(erofs));
    assert_eq!(guest.call(opcode::FALLOCATE, node, &[&[0; 32]]), Err(erofs));
    assert_eq!(
        guest.call(opcode::COPY_FILE_RANGE, node, &[&[0; 56]]),
        Err(erofs)
    );
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"data");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
