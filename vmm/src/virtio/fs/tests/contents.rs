//! File contents beyond plain reading and writing.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, value};
use crate::virtio::fs::fuse::{
    CopyFileRangeIn, FallocateIn, FsyncIn, LseekIn, LseekOut, ROOT_ID, StatxIn, StatxOut, WriteOut,
    flag, opcode,
};

#[test]
fn open_with_truncation_empties_the_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "data").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    guest.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(guest.getattr(node).unwrap().attr.size, 0);
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(guest.open(node, 3), Err(libc::EINVAL));
}

#[test]
fn appending_write_goes_behind_what_the_host_appended() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("log");
    let mut guest = Guest::new(dir.path());
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let (_, open) = guest.create(ROOT_ID, "log", 0o600, flags).unwrap();
    guest.write_with(open.fh, 0, b"guest1 ", flags, 0).unwrap();
    let mut host = fs::File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut host, b"host ").unwrap();
    // The guest does not know of it yet.
    guest.write_with(open.fh, 7, b"guest2", flags, 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"guest1 host guest2");
    // A page that is written back stays in its place.
    guest
        .write_with(open.fh, 0, b"GUEST1", flags, flag::WRITE_CACHE)
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"GUEST1 host guest2");
}

#[test]
fn handle_opened_for_reading_does_not_write() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f"), "data").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.write(fh, 0, b"x"), Err(libc::EBADF));
    let dir_fh = guest.opendir(ROOT_ID).unwrap().fh;
    assert_eq!(guest.read(dir_fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.readdir(ROOT_ID, fh, 0, 4096, false), Err(libc::EBADF));
    assert_eq!(guest.read(fh, u64::MAX, 1), Err(libc::EINVAL));
}

#[test]
fn file_without_a_name_is_usable_until_forgotten() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let (entry, open) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    guest.unlink(ROOT_ID, "f").unwrap();
    guest.write(open.fh, 0, b"still here").unwrap();
    assert_eq!(guest.read(open.fh, 0, 100).unwrap(), b"still here");
    let attr = guest.getattr(entry.nodeid).unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 10));
    // Its inode can be opened once more.
    assert_eq!(guest.contents(entry.nodeid), b"still here");
    // The number of the inode goes to another file, the node does not.
    guest.release(entry.nodeid, open.fh).unwrap();
    let (other, _) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    assert_ne!(other.nodeid, entry.nodeid);
    assert_eq!(guest.contents(entry.nodeid), b"still here");
    guest.forget(entry.nodeid, 1);
    assert_eq!(guest.getattr(entry.nodeid), Err(libc::ESTALE));
}

#[test]
fn hard_links_are_one_inode() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a"), "A").unwrap();
    let mut guest = Guest::new(dir.path());
    let a = guest.walk("a");
    let b = guest.link(a.nodeid, ROOT_ID, "b").unwrap();
    assert_eq!((b.nodeid, b.attr.nlink), (a.nodeid, 2));
    assert_eq!(guest.lookup(ROOT_ID, "b").unwrap().nodeid, a.nodeid);
    assert_eq!(guest.link(a.nodeid, ROOT_ID, "b"), Err(libc::EEXIST));
    // A symbolic link is linked itself.
    let l = guest.symlink(ROOT_ID, "l", "a").unwrap();
    let m = guest.link(l.nodeid, ROOT_ID, "m").unwrap();
    assert_eq!(m.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    guest.unlink(ROOT_ID, "a").unwrap();
    assert_eq!(guest.contents(b.nodeid), b"A");
}

#[test]
fn temporary_file_gets_a_name_by_link() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    guest.uid = 1000;
    guest.gid = 1000;
    let (entry, open) = guest.tmpfile(ROOT_ID, 0o666, libc::O_RDWR).unwrap();
    assert_eq!((entry.attr.nlink, entry.attr.uid), (0, 1000));
    guest.write(open.fh, 0, b"tmp").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    guest.link(entry.nodeid, ROOT_ID, "named").unwrap();
    assert_eq!(fs::read(dir.path().join("named")).unwrap(), b"tmp");
    let (entry, _) = guest
        .tmpfile(ROOT_ID, 0o600, libc::O_RDWR | libc::O_EXCL)
        .unwrap();
    assert_eq!(
        guest.link(entry.nodeid, ROOT_ID, "never"),
        Err(libc::ENOENT)
    );
    assert_eq!(
        guest.tmpfile(ROOT_ID, 0o600, libc::O_RDONLY).unwrap_err(),
        libc::EINVAL
    );
}

#[test]
fn holes_are_made_and_found() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let (entry, open) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    let allocate = |mode: i32, offset, length| FallocateIn {
        fh: open.fh,
        offset,
        length,
        mode: mode as u32,
        padding: 0,
    };
    let whole = allocate(0, 0, 1 << 20);
    guest
        .call(opcode::FALLOCATE, entry.nodeid, &[whole.as_slice()])
        .unwrap();
    assert_eq!(guest.getattr(entry.nodeid).unwrap().attr.size, 1 << 20);
    for at in [0, 1 << 19] {
        guest.write(open.fh, at, &[1; 1 << 18]).unwrap();
    }
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let hole = allocate(punch, 1 << 18, 1 << 18);
    guest
        .call(opcode::FALLOCATE, entry.nodeid, &[hole.as_slice()])
        .unwrap();
    let mut seek = |offset, whence: i32| {
        let seek = LseekIn {
            fh: open.fh,
            offset,
            whence: whence as u32,
            padding: 0,
        };
        guest
            .call(opcode::LSEEK, entry.nodeid, &[seek.as_slice()])
            .map(|b| value::<LseekOut>(&b).offset)
    };
    assert_eq!(seek(0, libc::SEEK_HOLE), Ok(1 << 18));
    assert_eq!(seek(1 << 18, libc::SEEK_DATA), Ok(1 << 19));
    assert_eq!(seek(2 << 20, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(0, libc::SEEK_END), Err(libc::EINVAL));
    let bad = allocate(0, u64::MAX, 1);
    assert_eq!(
        guest.call(opcode::FALLOCATE, entry.nodeid, &[bad.as_slice()]),
        Err(libc::EINVAL)
    );
}

#[test]
fn range_is_copied_on_the_host() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a"), "0123456789").unwrap();
    let mut guest = Guest::new(dir.path());
    let from = guest.walk("a").nodeid;
    let fh_in = guest.open(from, libc::O_RDONLY).unwrap().fh;
    let (to, open) = guest.create(ROOT_ID, "b", 0o600, libc::O_RDWR).unwrap();
    let copy = CopyFileRangeIn {
        fh_in,
        off_in: 2,
        nodeid_out: to.nodeid,
        fh_out: open.fh,
        off_out: 1,
        len: 5,
        flags: 0,
    };
    let reply = guest
        .call(opcode::COPY_FILE_RANGE, from, &[copy.as_slice()])
        .unwrap();
    assert_eq!(value::<WriteOut>(&reply).size, 5);
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"\x0023456");
}

#[test]
fn statx_adds_the_time_of_birth() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "data").unwrap();
    let mut guest = Guest::new(dir.path());
    let node = guest.walk("f").nodeid;
    let ask = StatxIn {
        sx_mask: libc::STATX_ALL,
        ..StatxIn::default()
    };
    let out: StatxOut = value(&guest.call(opcode::STATX, node, &[ask.as_slice()]).unwrap());
    let host = fs::metadata(&path).unwrap();
    assert_eq!((out.stat.size, out.stat.ino), (4, host.ino()));
    assert_eq!(u32::from(out.stat.mode), host.mode());
    assert_ne!(out.stat.mask & libc::STATX_BTIME, 0);
    let born = host
        .created()
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(out.stat.btime.sec.cast_unsigned(), born.as_secs());
    assert_eq!(out.stat.btime.nsec, born.subsec_nanos());
}

#[test]
fn contents_are_synced_and_needless_operations_declined() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let (entry, open) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    for fsync_flags in [0, flag::FSYNC_FDATASYNC] {
        let fsync = FsyncIn {
            fh: open.fh,
            fsync_flags,
            padding: 0,
        };
        guest
            .call(opcode::FSYNC, entry.nodeid, &[fsync.as_slice()])
            .unwrap();
    }
    let fsync = FsyncIn {
        fh: guest.opendir(ROOT_ID).unwrap().fh,
        ..FsyncIn::default()
    };
    guest
        .call(opcode::FSYNCDIR, ROOT_ID, &[fsync.as_slice()])
        .unwrap();
    guest.call(opcode::SYNCFS, ROOT_ID, &[&[0; 8]]).unwrap();
    assert_eq!(
        guest.call(opcode::IOCTL, ROOT_ID, &[&[0; 32]]),
        Err(libc::ENOTTY)
    );
    // FLUSH, ACCESS, GETLK, BMAP, POLL, SETUPMAPPING, and what does not exist.
    for op in [
        opcode::FLUSH,
        opcode::ACCESS,
        31,
        37,
        40,
        48,
        53,
        4096,
        u32::MAX,
    ] {
        assert_eq!(guest.call(op, ROOT_ID, &[&[0; 64]]), Err(libc::ENOSYS));
    }
}
