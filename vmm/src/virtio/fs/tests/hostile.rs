//! A guest that does what no kernel would: names that lead out of the tree, malformed and random requests.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, bytes_of, text};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::fuse::{InHeader, ROOT_ID, ReadIn, WriteIn, opcode};
use crate::virtio::guest_driver::DESC_WRITE;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn names_that_lead_elsewhere_are_refused_by_every_operation() {
    let dir = tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(share.join("f"), "").unwrap();
    let mut guest = Guest::new(&share);
    let f = guest.walk("f").nodeid;
    for name in ["", ".", "..", "../secret", "a/b", "/etc/passwd", "/", "f/"] {
        let einval = libc::EINVAL;
        assert_eq!(guest.lookup(ROOT_ID, name), Err(einval), "{name:?}");
        assert_eq!(guest.create(ROOT_ID, name, 0o600, 0).unwrap_err(), einval);
        assert_eq!(guest.mkdir(ROOT_ID, name, 0o700), Err(einval));
        assert_eq!(guest.mknod(ROOT_ID, name, libc::S_IFREG, 0), Err(einval));
        assert_eq!(guest.symlink(ROOT_ID, name, "x"), Err(einval));
        assert_eq!(guest.link(f, ROOT_ID, name), Err(einval));
        assert_eq!(guest.unlink(ROOT_ID, name), Err(einval));
        assert_eq!(guest.rmdir(ROOT_ID, name), Err(einval));
        assert_eq!(
            guest.rename((ROOT_ID, name), (ROOT_ID, "x"), 0),
            Err(einval)
        );
        assert_eq!(
            guest.rename((ROOT_ID, "f"), (ROOT_ID, name), 0),
            Err(einval)
        );
    }
    let long = "n".repeat(256);
    assert_eq!(guest.lookup(ROOT_ID, &long), Err(libc::ENAMETOOLONG));
    // Without its NUL a name is none.
    assert_eq!(
        guest.call(opcode::LOOKUP, ROOT_ID, &[b"f"]),
        Err(libc::EINVAL)
    );
    assert_eq!(
        guest.call(opcode::SYMLINK, ROOT_ID, &[b"l\0target"]),
        Err(libc::EINVAL)
    );
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn symbolic_link_in_place_of_a_directory_leads_nowhere() {
    let dir = tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/f"), "secret").unwrap();
    symlink(dir.path().join("outside"), share.join("l")).unwrap();
    symlink(dir.path().join("outside/f"), share.join("g")).unwrap();
    let mut guest = Guest::new(&share);
    let l = guest.walk("l").nodeid;
    assert_eq!(guest.lookup(l, "f"), Err(libc::ENOTDIR));
    assert_eq!(guest.opendir(l), Err(libc::ENOTDIR));
    assert_eq!(guest.create(l, "n", 0o600, 0).unwrap_err(), libc::ENOTDIR);
    assert_eq!(guest.unlink(l, "f"), Err(libc::ENOTDIR));
    assert_eq!(
        guest.rename((ROOT_ID, "g"), (l, "g"), 0),
        Err(libc::ENOTDIR)
    );
    // Creating where a link is neither follows nor replaces it.
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
        assert_eq!(
            guest.create(ROOT_ID, "g", 0o600, flags).unwrap_err(),
            libc::ENXIO
        );
    }
    assert_eq!(fs::read(dir.path().join("outside/f")).unwrap(), b"secret");
}

#[test]
fn directory_that_the_host_moves_out_gives_no_way_further() {
    let dir = tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir_all(share.join("a/b")).unwrap();
    fs::write(dir.path().join("secret"), "").unwrap();
    let mut guest = Guest::new(&share);
    let b = guest.walk("a/b").nodeid;
    fs::rename(share.join("a/b"), dir.path().join("moved")).unwrap();
    assert_eq!(guest.lookup(b, ".."), Err(libc::EINVAL));
    let parent = guest
        .list(b, 4096, true)
        .into_iter()
        .find(|l| l.name == "..")
        .unwrap();
    assert_eq!(parent.entry.unwrap().nodeid, 0);
    // The host replaces a known directory by a link to another place: the name is a link now, the node what it was.
    fs::create_dir(share.join("c")).unwrap();
    fs::write(share.join("c/f"), "inside").unwrap();
    let c = guest.walk("c").nodeid;
    fs::rename(share.join("c"), share.join("d")).unwrap();
    symlink(dir.path(), share.join("c")).unwrap();
    assert_eq!(guest.lookup(c, "secret"), Err(libc::ENOENT));
    let f = guest.lookup(c, "f").unwrap().nodeid;
    assert_eq!(guest.contents(f), b"inside");
}

#[test]
fn malformed_requests_are_answered_with_an_error_or_used_empty() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    // No header at all, half a header, no room for a reply.
    for (readable, writable) in [
        (&[][..], &[16, 64][..]),
        (&[&[1u8; 20][..]][..], &[16, 64]),
        (&[&[0; 40]], &[]),
        (&[&[0; 40]], &[15]),
    ] {
        let chain = guest.driver.put(1, readable, writable);
        guest.driver.kick(1);
        let used = guest.driver.wait_used(1, LIMIT);
        assert_eq!((used.head, used.written), (chain.head, 0));
    }
    // Lengths that disagree with the chain.
    for len in [0, 39, 41, u32::MAX] {
        let header = InHeader {
            len,
            opcode: opcode::GETATTR,
            nodeid: ROOT_ID,
            ..InHeader::default()
        };
        let reply = guest.driver.request(1, &[header.as_slice()], &[16, 256]);
        assert_eq!(reply[4..8], (-libc::EINVAL).to_le_bytes());
    }
    // A reply that has no room becomes an error.
    assert_eq!(
        guest.call_on(1, opcode::GETATTR, ROOT_ID, &[&[0; 16]], 50),
        Err(libc::EIO)
    );
    // A request that is too long for its kind.
    let long = vec![0; 200 << 10];
    assert_eq!(
        guest.call(opcode::GETATTR, ROOT_ID, &[&long]),
        Err(libc::E2BIG)
    );
    assert!(guest.fs.counters().errors.load(Ordering::Relaxed) > 6);
    guest.getattr(ROOT_ID).unwrap();
}

#[test]
fn data_that_is_not_there_is_not_written() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let (_, open) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    let write = WriteIn {
        fh: open.fh,
        size: 100,
        ..WriteIn::default()
    };
    assert_eq!(
        guest.call(opcode::WRITE, ROOT_ID, &[write.as_slice(), &[1; 99]]),
        Err(libc::EINVAL)
    );
    assert_eq!(
        guest.call(opcode::WRITE, ROOT_ID, &[&write.as_slice()[..39]]),
        Err(libc::EINVAL)
    );
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"");
}

#[test]
fn descriptors_outside_memory_or_out_of_order_are_used_empty() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let header = guest.header(opcode::GETATTR, ROOT_ID, 16);
    let at = guest.driver.allocate(4096);
    let write = |guest: &Guest, at: u64, bytes: &[u8]| {
        use vm_memory::{Bytes, GuestAddress};
        guest
            .driver
            .memory
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    };
    write(&guest, at, header.as_slice());
    for parts in [
        &[(u64::MAX - 8, 56, 0), (at, 256, DESC_WRITE)][..],
        &[(at, 56, 0), (1 << 40, 256, DESC_WRITE)],
        &[(at, u32::MAX, 0), (at, 256, DESC_WRITE)],
        &[(at + 1024, 256, DESC_WRITE), (at, 56, 0)],
        &[(at, 0, DESC_WRITE)],
    ] {
        let head = guest.driver.put_raw(1, parts);
        guest.driver.kick(1);
        let used = guest.driver.wait_used(1, LIMIT);
        assert_eq!((used.head, used.written), (head, 0), "{parts:?}");
    }
    guest.getattr(ROOT_ID).unwrap();
}

/// Bodies that are near enough to real ones to get past the first check.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![
        Just(0u64),
        Just(1),
        Just(2),
        Just(3),
        Just(u64::MAX),
        any::<u64>()
    ];
    let words = proptest::collection::vec(small, 0..12)
        .prop_map(|words| words.iter().flat_map(|w| w.to_le_bytes()).collect());
    let tail = prop_oneof![
        Just(Vec::new()),
        Just(text("a")),
        Just(text("..")),
        Just([text("a"), text("b")].concat()),
        Just(text("user.x")),
        proptest::collection::vec(any::<u8>(), 0..300),
    ];
    (words, tail).prop_map(|(mut words, tail): (Vec<u8>, Vec<u8>)| {
        words.extend(tail);
        words
    })
}

/// Not the operations that write back to disk: they take their time and look at nothing of the request.
fn operation() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0u32..54, 1 => any::<u32>()].prop_filter("slow", |op| {
        !matches!(*op, opcode::SYNCFS | opcode::FSYNC | opcode::FSYNCDIR)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_are_all_used_and_stay_in_the_tree(
        requests in proptest::collection::vec(
            (operation(), 0u64..5, any::<u16>(), body(), 0usize..3000, any::<bool>()),
            1..60,
        )
    ) {
        let dir = tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(share.join("a"), "a").unwrap();
        fs::create_dir(share.join("b")).unwrap();
        let mut guest = Guest::new(&share);
        guest.walk("a");
        guest.walk("b");
        guest.opendir(ROOT_ID).unwrap();
        for (op, node, owner, body, room, lie) in requests {
            let mut header = guest.header(op, node, body.len());
            header.uid = owner.into();
            if lie {
                header.len = header.len.wrapping_add(owner.into()).wrapping_sub(100);
            }
            let head = bytes_of(&header);
            let chain = guest.driver.put(1, &[&head, &body], &[room]);
            guest.driver.kick(1);
            let used = guest.driver.wait_used(1, LIMIT);
            let reply = guest.driver.written(&chain, &used);
            if !reply.is_empty() {
                prop_assert!(reply.len() >= 16);
                prop_assert_eq!(&reply[..4], &(reply.len() as u32).to_le_bytes());
                prop_assert_eq!(&reply[8..16], &header.unique.to_le_bytes());
            }
        }
        prop_assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // The device still serves.
        if guest.getattr(ROOT_ID).is_err() {
            guest.init(super::guest::OFFERED).unwrap();
        }
        guest.getattr(ROOT_ID).unwrap();
    }

    #[test]
    fn random_chains_are_all_used(
        chains in proptest::collection::vec(
            proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..4), 1..8),
            1..20,
        )
    ) {
        let dir = tempdir().unwrap();
        let mut guest = Guest::new(dir.path());
        for parts in chains {
            // Half of the addresses are in memory. Indirect and next flags are set by the driver or left out.
            let parts: Vec<_> = parts
                .into_iter()
                .map(|(at, len, flags)| {
                    let at = if at % 2 == 0 { 0x40_0000 + at % (32 << 20) } else { at };
                    (at, len % (1 << 22), flags & DESC_WRITE)
                })
                .collect();
            let head = guest.driver.put_raw(1, &parts);
            guest.driver.kick(1);
            prop_assert_eq!(guest.driver.wait_used(1, LIMIT).head, head);
        }
        let read = ReadIn { fh: 77, size: 10, ..ReadIn::default() };
        prop_assert_eq!(guest.call(opcode::READ, ROOT_ID, &[read.as_slice()]), Err(libc::EBADF));
    }
}
