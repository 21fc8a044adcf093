//! What the device remembers and for how long: references, stop and activate, several queues at once.

use std::fs;
use std::time::Duration;

use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, Mounted, OFFERED, bytes_of, text, value};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::fuse::{BatchForgetIn, EntryOut, ForgetOne, OutHeader, ROOT_ID, opcode};

#[test]
fn tables_shrink_to_the_root_when_all_is_forgotten() {
    let dir = tempdir().unwrap();
    for i in 0..50 {
        fs::write(dir.path().join(format!("f{i}")), "").unwrap();
    }
    let mut guest = Guest::new(dir.path());
    let mut nodes = Vec::new();
    for i in 0..50 {
        for _ in 0..3 {
            nodes.push(guest.walk(&format!("f{i}")).nodeid);
        }
    }
    assert_eq!(guest.fs.table_sizes(), (51, 0));
    // One by one for the first, which stays until the last reference is gone.
    guest.forget(nodes[0], 2);
    guest.getattr(nodes[0]).unwrap();
    guest.forget(nodes[0], 1);
    assert_eq!(guest.getattr(nodes[0]), Err(libc::ESTALE));
    // All others at once, with more than there are.
    let head = BatchForgetIn {
        count: 1000,
        dummy: 0,
    };
    let mut body = bytes_of(&head);
    for &nodeid in &nodes[3..] {
        body.extend(bytes_of(&ForgetOne { nodeid, nlookup: 1 }));
    }
    body.extend(bytes_of(&ForgetOne {
        nodeid: ROOT_ID,
        nlookup: 99,
    }));
    let header = guest.header(opcode::BATCH_FORGET, 0, body.len());
    guest.driver.put(0, &[header.as_slice(), &body], &[]);
    guest.driver.kick(0);
    assert_eq!(
        guest.driver.wait_used(0, Duration::from_secs(10)).written,
        0
    );
    assert_eq!(guest.fs.table_sizes(), (1, 0));
    guest.getattr(ROOT_ID).unwrap();
    assert_ne!(guest.walk("f0").nodeid, nodes[0]);
}

#[test]
fn every_reply_with_a_name_counts_as_one_reference() {
    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join("containers/a/rootfs/sub")).unwrap();
    let mut guest = Guest::new(dir.path());
    let root = guest.walk("containers/a/rootfs").nodeid;
    let before = guest.fs.table_sizes().0;
    let (file, open) = guest.create(root, "f", 0o600, libc::O_RDWR).unwrap();
    guest.link(file.nodeid, root, "g").unwrap();
    let listed = guest.list(root, 4096, true);
    assert_eq!(listed.len(), 5);
    guest.release(file.nodeid, open.fh).unwrap();
    let sub = listed.iter().find(|l| l.name == "sub").unwrap();
    guest.forget(sub.entry.unwrap().nodeid, 1);
    // CREATE, LINK, and both names in the listing.
    guest.forget(file.nodeid, 3);
    guest.getattr(file.nodeid).unwrap();
    guest.forget(file.nodeid, 1);
    assert_eq!(guest.fs.table_sizes(), (before, 0));
}

#[test]
fn unmounting_forgets_all_and_mounting_again_starts_over() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    guest.open(node, libc::O_RDONLY).unwrap();
    guest.opendir(ROOT_ID).unwrap();
    assert_eq!(guest.fs.table_sizes(), (2, 2));
    guest.call(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.fs.table_sizes(), (1, 0));
    assert_eq!(guest.getattr(ROOT_ID), Err(libc::EIO));
    guest.init(OFFERED).unwrap();
    assert_ne!(guest.walk("f").nodeid, node);
}

#[test]
fn guest_goes_on_after_stop_and_activation() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "data").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    let stopped = guest.fs.stop();
    assert_eq!(
        stopped.iter().map(|q| q.index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert!(guest.fs.stop().is_empty());
    let mut activation = guest.driver.activation(0);
    activation.queues = stopped
        .into_iter()
        .map(|q| crate::virtio::ActiveQueue {
            index: q.index,
            queue: q.queue,
            kick: q.kick,
        })
        .collect();
    guest.fs.activate(activation).unwrap();
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"data");
    guest.getattr(node).unwrap();
}

#[test]
fn requests_on_several_queues_at_once_are_all_answered() {
    const EACH: usize = 400;
    let dir = tempdir().unwrap();
    for i in 0..20 {
        fs::write(dir.path().join(format!("f{i}")), format!("{i}")).unwrap();
    }
    let mut guest = Guest::new(dir.path());
    let mut answered = [0; 3];
    let mut references = std::collections::HashMap::<u64, u64>::new();
    for round in 0..EACH / 40 {
        let mut chains = Vec::new();
        // What the round before found is forgotten while this one looks it up.
        let mut forgets = Vec::new();
        for (node, count) in references.drain() {
            let header = guest.header(opcode::FORGET, node, 8);
            let body = count.to_le_bytes();
            forgets.push(guest.driver.put(0, &[header.as_slice(), &body], &[]));
        }
        guest.driver.kick(0);
        for i in 0..40 {
            for queue in [1, 2] {
                let name = text(&format!("f{}", (i + round + queue) % 20));
                let header = guest.header(opcode::LOOKUP, ROOT_ID, name.len());
                let chain = guest
                    .driver
                    .put(queue, &[header.as_slice(), &name], &[16, 128]);
                chains.push((queue, header.unique, chain));
                guest.driver.kick(queue);
            }
        }
        for (queue, unique, chain) in chains {
            let used = guest.driver.wait_used(queue, Duration::from_secs(10));
            let reply = guest.driver.written(&chain, &used);
            let out: OutHeader = value(&reply);
            assert_eq!((out.unique, out.error), (unique, 0));
            let entry: EntryOut = value(&reply[16..]);
            *references.entry(entry.nodeid).or_default() += 1;
            answered[queue] += 1;
        }
        for _ in forgets {
            guest.driver.wait_used(0, Duration::from_secs(10));
        }
        // Two workers that looked the same name up at once gave the same node, unless it was forgotten in between.
        let most = if round == 0 { 20 } else { 40 };
        assert!((20..=most).contains(&references.len()));
    }
    assert_eq!(answered, [0, EACH, EACH]);
    for (node, count) in references {
        guest.forget(node, count);
    }
    assert_eq!(guest.fs.table_sizes(), (1, 0));
}

#[test]
fn many_directories_in_the_middle_of_a_listing_all_go_on() {
    let dir = tempdir().unwrap();
    for i in 0..100 {
        fs::write(dir.path().join(format!("f{i}")), "").unwrap();
    }
    let mut guest = Guest::new(dir.path());
    let expected = guest.list(ROOT_ID, 4096, false);
    // More than keep what the host gave.
    let handles: Vec<u64> = (0..200)
        .map(|_| guest.opendir(ROOT_ID).unwrap().fh)
        .collect();
    let mut listed = vec![Vec::new(); handles.len()];
    loop {
        let mut progress = false;
        for (fh, listed) in handles.iter().zip(&mut listed) {
            let offset = listed.last().map_or(0, |l: &super::guest::Listed| l.off);
            let some = guest.readdir(ROOT_ID, *fh, offset, 1000, false).unwrap();
            progress |= !some.is_empty();
            listed.extend(some);
        }
        if !progress {
            break;
        }
    }
    for listed in listed {
        assert_eq!(listed, expected);
    }
}

#[test]
fn more_files_than_descriptors_are_held_by_handle() {
    let dir = tempdir().unwrap();
    // A file system that has handles, whatever the temporary directory is on.
    let _mount = Mounted::tmpfs(dir.path());
    fs::create_dir(dir.path().join("d")).unwrap();
    for i in 0..30 {
        fs::write(dir.path().join(format!("d/f{i}")), format!("{i}")).unwrap();
    }
    let mut guest = Guest::with_descriptors(dir.path(), 4, 6);
    let d = guest.walk("d").nodeid;
    let before = open_descriptors();
    let nodes: Vec<u64> = (0..30)
        .map(|i| guest.lookup(d, &format!("f{i}")).unwrap().nodeid)
        .collect();
    assert!(open_descriptors() < before + 15);
    for (i, &node) in nodes.iter().enumerate() {
        assert_eq!(guest.contents(node), i.to_string().as_bytes());
        assert_eq!(
            guest.getattr(node).unwrap().attr.size,
            i.to_string().len() as u64
        );
        let again = guest.lookup(d, &format!("f{i}")).unwrap().nodeid;
        assert_eq!(again, node, "f{i}");
    }
    // A file that is gone leaves a stale node, whatever gets its inode number.
    fs::remove_file(dir.path().join("d/f29")).unwrap();
    fs::write(dir.path().join("d/f29"), "new").unwrap();
    let new = guest.lookup(d, "f29").unwrap().nodeid;
    assert_ne!(new, nodes[29]);
    assert_eq!(guest.getattr(nodes[29]), Err(libc::ESTALE));
    assert_eq!(guest.contents(new), b"new");
    // Directories and new files work by handle as well.
    let sub = guest.mkdir(d, "sub", 0o755).unwrap().nodeid;
    let (file, open) = guest.create(sub, "x", 0o600, libc::O_RDWR).unwrap();
    guest.write(open.fh, 0, b"x").unwrap();
    assert_eq!(guest.list(sub, 4096, false).len(), 3);
    guest.setxattr(file.nodeid, "trusted.a", b"1").unwrap();
    guest.unlink(sub, "x").unwrap();
    guest.rmdir(d, "sub").unwrap();
    for node in nodes {
        guest.forget(node, 99);
    }
    guest.forget(new, 99);
    guest.forget(file.nodeid, 99);
    guest.forget(sub, 99);
    guest.forget(d, 99);
    assert_eq!(guest.fs.table_sizes().0, 1);
}

/// Number of this process's descriptors; other tests open some too, but not many at a time below one directory.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| fs::read_link(e.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("/d/f"))
        .count()
}
