//! What the guest may keep, and that it sees what the host changes; mounts below the share.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, Mounted, OFFERED, value};
use crate::virtio::fs::fuse::{AttrOut, EntryOut, GetattrIn, ROOT_ID, flag, init_flag, opcode};

#[test]
fn shared_file_is_kept_by_the_guest_only_while_unchanged() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "one").unwrap();
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(5);
    let set_past = || {
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(past)
            .unwrap();
        // The change time is now; let it settle.
        std::thread::sleep(std::time::Duration::from_millis(80));
    };
    set_past();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let mut keeps =
        || guest.open(node, libc::O_RDONLY).unwrap().open_flags & flag::FOPEN_KEEP_CACHE != 0;
    assert!(!keeps());
    assert!(keeps());
    // Same size, same modification time: the change time tells.
    fs::write(&path, "two").unwrap();
    set_past();
    assert!(!keeps());
    assert!(keeps());
    // While the file may change within a tick of its times, nothing is kept.
    fs::write(&path, "six").unwrap();
    assert!(!keeps());
    assert!(!keeps());
}

#[test]
fn host_write_is_seen_by_the_next_read_and_getattr() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "one").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"one");
    fs::write(&path, "three").unwrap();
    assert_eq!(guest.getattr(node).unwrap().attr.size, 5);
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"three");
    let attr = guest.getattr(node).unwrap();
    assert_eq!((attr.attr_valid, attr.attr_valid_nsec), (0, 0));
}

#[test]
fn read_of_a_file_that_just_changed_never_finds_the_same_time() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    let file = fs::File::create(&path).unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    let get = GetattrIn {
        getattr_flags: flag::GETATTR_FH,
        dummy: 0,
        fh,
    };
    let before_read = |guest: &mut Guest| {
        let reply = guest.call(opcode::GETATTR, node, &[get.as_slice()]);
        let attr = value::<AttrOut>(&reply.unwrap()).attr;
        (attr.mtime, attr.mtimensec)
    };
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let times = [0; 3].map(|_| before_read(&mut guest));
    assert_ne!(times[0], times[1]);
    assert_ne!(times[1], times[2]);
    // What stat(2) gets is the truth, and a read does too once the file is quiet.
    let host = fs::metadata(&path).unwrap();
    let truth = (host.mtime().cast_unsigned(), host.mtime_nsec() as u32);
    let attr = guest.getattr(node).unwrap().attr;
    assert_eq!((attr.mtime, attr.mtimensec), truth);
    std::thread::sleep(std::time::Duration::from_millis(80));
    assert_eq!(before_read(&mut guest), truth);
    assert_eq!(before_read(&mut guest), truth);
}

#[test]
fn host_swap_of_a_symbolic_link_is_seen_by_the_next_lookup() {
    let dir = tempdir().unwrap();
    symlink("v1", dir.path().join("..data")).unwrap();
    let mut guest = Guest::new(dir.path());
    let before = guest.walk("..data");
    assert_eq!((before.entry_valid, before.entry_valid_nsec), (0, 0));
    symlink("v2", dir.path().join("..tmp")).unwrap();
    fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
    let after = guest.walk("..data");
    assert_ne!(before.nodeid, after.nodeid);
    assert_eq!(guest.readlink(after.nodeid).unwrap(), "v2");
    // The guest may still hold the old one.
    assert_eq!(guest.readlink(before.nodeid).unwrap(), "v1");
}

#[test]
fn name_that_the_host_removes_and_makes_again_comes_and_goes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    let mut guest = Guest::new(dir.path());
    for _ in 0..3 {
        assert_eq!(guest.lookup(ROOT_ID, "f"), Err(libc::ENOENT));
        fs::write(&path, "x").unwrap();
        guest.lookup(ROOT_ID, "f").unwrap();
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn container_root_is_cached_and_the_rest_is_not() {
    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join("containers/a/rootfs/etc")).unwrap();
    fs::write(dir.path().join("containers/a/rootfs/etc/hosts"), "h").unwrap();
    fs::write(dir.path().join("containers/a/config"), "c").unwrap();
    let mut guest = Guest::new(dir.path());
    let container = guest.walk("containers/a");
    // Laid out by the pod host, which does not replace it.
    assert_eq!((container.entry_valid, container.attr_valid), (1, 1));
    let config = guest.walk("containers/a/config");
    assert_eq!((config.entry_valid, config.attr_valid), (0, 0));
    // The name in the container's directory may change, what is below may not.
    let root = guest.walk("containers/a/rootfs");
    assert_eq!((root.entry_valid, root.attr_valid), (0, 3600));
    let etc = guest.lookup(root.nodeid, "etc").unwrap();
    assert_eq!((etc.entry_valid, etc.attr_valid), (3600, 3600));
    let missing = guest.lookup(etc.nodeid, "shadow").unwrap();
    assert_eq!((missing.nodeid, missing.entry_valid), (0, 3600));
    assert_eq!(guest.lookup(container.nodeid, "no"), Err(libc::ENOENT));
    let hosts = guest.lookup(etc.nodeid, "hosts").unwrap();
    assert_eq!(guest.getattr(hosts.nodeid).unwrap().attr_valid, 3600);
    let open = guest.open(hosts.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(open.open_flags, flag::FOPEN_KEEP_CACHE);
    let open = guest
        .open(hosts.nodeid, libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    assert_eq!(open.open_flags, 0);
    let open = guest.opendir(etc.nodeid).unwrap();
    assert_eq!(
        open.open_flags,
        flag::FOPEN_CACHE_DIR | flag::FOPEN_KEEP_CACHE
    );
    assert_eq!(guest.opendir(container.nodeid).unwrap().open_flags, 0);
    // Listings of private directories bring the attributes along.
    let listed = guest.list(etc.nodeid, 4096, true);
    let entry = listed.iter().find(|l| l.name == "hosts").unwrap();
    assert_eq!(entry.entry.unwrap().nodeid, hosts.nodeid);
    let dots = listed.iter().filter(|l| l.name.starts_with('.'));
    assert!(
        dots.map(|l| l.entry.unwrap())
            .all(|e| e == EntryOut::default())
    );
}

#[test]
fn mount_below_the_share_is_a_submount_and_shared() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("containers/a/rootfs");
    fs::create_dir_all(root.join("data")).unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    let mut guest = Guest::new(dir.path());
    let plain = guest.walk("volume");
    assert_eq!(plain.attr.flags & flag::ATTR_SUBMOUNT, 0);
    let volume = Mounted::tmpfs(&dir.path().join("volume"));
    fs::write(dir.path().join("volume/f"), "in the mount").unwrap();
    let mounted = guest.walk("volume");
    assert_ne!(mounted.nodeid, plain.nodeid);
    assert_ne!(mounted.attr.flags & flag::ATTR_SUBMOUNT, 0);
    let file = guest.lookup(mounted.nodeid, "f").unwrap();
    assert_eq!(file.attr.flags & flag::ATTR_SUBMOUNT, 0);
    assert_eq!(guest.contents(file.nodeid), b"in the mount");
    assert_eq!(
        guest.rename((mounted.nodeid, "f"), (ROOT_ID, "f"), 0),
        Err(libc::EXDEV)
    );
    // Below a container's root a mount is a volume, which the host may change.
    let _data = Mounted::tmpfs(&root.join("data"));
    fs::write(root.join("data/g"), "").unwrap();
    let data = guest.walk("containers/a/rootfs/data");
    assert_eq!((data.entry_valid, data.attr_valid), (0, 0));
    assert_ne!(data.attr.flags & flag::ATTR_SUBMOUNT, 0);
    let g = guest.lookup(data.nodeid, "g").unwrap();
    assert_eq!((g.entry_valid, g.attr_valid), (0, 0));
    // And gone again.
    drop(volume);
    assert_eq!(guest.walk("volume").nodeid, plain.nodeid);
    assert_eq!(guest.contents(file.nodeid), b"in the mount");
}

#[test]
fn container_root_that_is_a_mount_is_private() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("containers/a/rootfs");
    fs::create_dir_all(&root).unwrap();
    let _mount = Mounted::tmpfs(&root);
    fs::write(root.join("f"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let root = guest.walk("containers/a/rootfs");
    assert_ne!(root.attr.flags & flag::ATTR_SUBMOUNT, 0);
    assert_eq!(root.attr_valid, 3600);
    let f = guest.lookup(root.nodeid, "f").unwrap();
    assert_eq!((f.entry_valid, f.attr_valid), (3600, 3600));
}

#[test]
fn submount_is_not_announced_to_a_guest_that_does_not_know_them() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    let _mount = Mounted::tmpfs(&dir.path().join("volume"));
    let mut guest = Guest::before_init(dir.path(), false);
    guest.init(OFFERED & !init_flag::SUBMOUNTS).unwrap();
    assert_eq!(guest.walk("volume").attr.flags, 0);
}

#[test]
fn file_found_in_a_shared_directory_too_is_shared() {
    let dir = tempdir().unwrap();
    let private = dir.path().join("containers/a/rootfs");
    fs::create_dir_all(&private).unwrap();
    fs::write(private.join("f"), "").unwrap();
    fs::hard_link(private.join("f"), dir.path().join("g")).unwrap();
    let mut guest = Guest::new(dir.path());
    let f = guest.walk("containers/a/rootfs/f");
    assert_eq!(f.attr_valid, 3600);
    let g = guest.walk("g");
    assert_eq!((g.nodeid, g.attr_valid), (f.nodeid, 0));
    assert_eq!(guest.getattr(f.nodeid).unwrap().attr_valid, 0);
}
