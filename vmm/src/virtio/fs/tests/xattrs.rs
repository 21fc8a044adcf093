//! Extended attributes.

use std::fs;

use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, value};
use crate::virtio::fs::fuse::{GetxattrIn, GetxattrOut, ROOT_ID, SetxattrIn, flag, opcode};

/// A file capability set (version 2, effective, CAP_NET_BIND_SERVICE) as `security.capability` holds it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn names(guest: &mut Guest, node: u64) -> Vec<String> {
    let list = GetxattrIn {
        size: 4096,
        padding: 0,
    };
    let bytes = guest
        .call(opcode::LISTXATTR, node, &[list.as_slice()])
        .unwrap();
    let mut names: Vec<String> = bytes
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8(n.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn attribute_is_set_read_listed_and_removed() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let file = guest.walk("f").nodeid;
    for node in [ROOT_ID, file] {
        guest.setxattr(node, "trusted.one", b"value").unwrap();
        guest.setxattr(node, "trusted.two", b"").unwrap();
        assert_eq!(guest.getxattr(node, "trusted.one", 100).unwrap(), b"value");
        let size: GetxattrOut = value(&guest.getxattr(node, "trusted.one", 0).unwrap());
        assert_eq!(size.size, 5);
        assert_eq!(guest.getxattr(node, "trusted.one", 3), Err(libc::ERANGE));
        assert_eq!(guest.getxattr(node, "trusted.no", 3), Err(libc::ENODATA));
        assert_eq!(names(&mut guest, node), ["trusted.one", "trusted.two"]);
        guest
            .call(opcode::REMOVEXATTR, node, &[b"trusted.one\0"])
            .unwrap();
        assert_eq!(names(&mut guest, node), ["trusted.two"]);
    }
}

#[test]
fn attribute_flags_reach_the_host() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let mut set = |flags: i32| {
        let set = SetxattrIn {
            size: 1,
            flags: flags as u32,
            ..SetxattrIn::default()
        };
        guest
            .call(
                opcode::SETXATTR,
                ROOT_ID,
                &[set.as_slice(), b"trusted.a\0", b"1"],
            )
            .map(drop)
    };
    assert_eq!(set(libc::XATTR_REPLACE), Err(libc::ENODATA));
    set(libc::XATTR_CREATE).unwrap();
    assert_eq!(set(libc::XATTR_CREATE), Err(libc::EEXIST));
}

#[test]
fn attributes_of_a_symbolic_link_are_its_own() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let link = guest.symlink(ROOT_ID, "l", "f").unwrap().nodeid;
    guest.setxattr(link, "trusted.x", b"link").unwrap();
    let file = guest.walk("f").nodeid;
    assert_eq!(guest.getxattr(file, "trusted.x", 9), Err(libc::ENODATA));
    assert_eq!(guest.getxattr(link, "trusted.x", 9).unwrap(), b"link");
}

#[test]
fn labels_of_host_security_modules_cannot_be_changed() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    for name in ["security.selinux", "security.ima", "security.capability2"] {
        assert_eq!(guest.setxattr(node, name, b"x"), Err(libc::EOPNOTSUPP));
    }
    guest
        .setxattr(node, "security.capability", &CAPABILITY)
        .unwrap();
    assert_eq!(
        guest.getxattr(node, "security.capability", 64).unwrap(),
        CAPABILITY
    );
    // Writing takes file capabilities away.
    let fh = guest.open(node, libc::O_WRONLY).unwrap().fh;
    guest.write(fh, 0, b"x").unwrap();
    assert_eq!(
        guest.getxattr(node, "security.capability", 64),
        Err(libc::ENODATA)
    );
}

#[test]
fn acl_set_by_a_stranger_takes_the_set_group_id_bit() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    guest.umask = 0;
    let node = guest.create(ROOT_ID, "f", 0o2770, 0).unwrap().0.nodeid;
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(0x01u16, 7u16), (0x04, 5), (0x20, 0)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    let mut set = |setxattr_flags| {
        let set = SetxattrIn {
            size: acl.len() as u32,
            setxattr_flags,
            ..SetxattrIn::default()
        };
        guest
            .call(
                opcode::SETXATTR,
                node,
                &[set.as_slice(), b"system.posix_acl_access\0", &acl],
            )
            .unwrap();
        guest.getattr(node).unwrap().attr.mode & 0o7777
    };
    assert_eq!(set(0), 0o2750);
    assert_eq!(set(flag::SETXATTR_ACL_KILL_SGID), 0o750);
}

#[test]
fn attribute_beyond_bounds_is_refused() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let huge = vec![1; (64 << 10) + 1];
    assert_eq!(
        guest.setxattr(ROOT_ID, "trusted.a", &huge),
        Err(libc::E2BIG)
    );
    let lie = SetxattrIn {
        size: 10,
        ..SetxattrIn::default()
    };
    let short = guest.call(
        opcode::SETXATTR,
        ROOT_ID,
        &[lie.as_slice(), b"trusted.a\0", b"123"],
    );
    assert_eq!(short, Err(libc::EINVAL));
    assert_eq!(guest.getxattr(ROOT_ID, "", 10), Err(libc::ERANGE));
    let long = format!("trusted.{}", "n".repeat(300));
    assert_eq!(guest.getxattr(ROOT_ID, &long, 10), Err(libc::ERANGE));
    // A buffer larger than any value is no larger on the host.
    assert_eq!(
        guest.getxattr(ROOT_ID, "trusted.a", u32::MAX),
        Err(libc::ENODATA)
    );
}
