//! Watches: what the host changes is told through the notification queue, what the guest changes by itself is not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::tempdir;
use vm_memory::ByteValued;

use super::guest::{Guest, bytes_of, text, value};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::fuse::{
    NotifyWatchOut, OutHeader, ROOT_ID, SetattrIn, WatchIn, WatchOut, WriteIn, flag, notification,
    opcode,
};
use crate::virtio::guest_driver::Chain;

const LIMIT: Duration = Duration::from_secs(20);
const QUEUE: usize = 1;
const BUFFER: usize = 320;
const ALL: u32 = libc::IN_ALL_EVENTS;

/// An event as the guest gets it: node, mask, name.
type Told = (u64, u32, String);

struct Watching {
    guest: Guest,
    buffers: std::collections::VecDeque<Chain>,
}

impl Watching {
    fn new(path: &Path) -> Self {
        let mut new = Self {
            guest: Guest::notified(path),
            buffers: [].into(),
        };
        new.give_buffers(32);
        new
    }

    fn give_buffers(&mut self, n: usize) {
        for _ in 0..n {
            let chain = self.guest.driver.put(QUEUE, &[], &[BUFFER]);
            self.buffers.push_back(chain);
        }
        self.guest.driver.kick(QUEUE);
    }

    fn watch_as(&mut self, node: u64, owner: u32, mask: u32) -> Result<bool, i32> {
        let watch = WatchIn { mask, owner };
        let reply = self.guest.call(opcode::WATCH, node, &[watch.as_slice()])?;
        Ok(value::<WatchOut>(&reply).watched != 0)
    }

    fn watch(&mut self, node: u64, mask: u32) {
        assert_eq!(self.watch_as(node, 7, mask), Ok(true));
    }

    fn next_whole(&mut self) -> (NotifyWatchOut, String) {
        let used = self.guest.driver.wait_used(QUEUE, LIMIT);
        let chain = self.buffers.pop_front().unwrap();
        let bytes = self.guest.driver.written(&chain, &used);
        self.give_buffers(1);
        let head: OutHeader = value(&bytes);
        assert_eq!(
            (head.len as usize, head.error, head.unique),
            (bytes.len(), notification::WATCH, 0)
        );
        let out: NotifyWatchOut = value(&bytes[16..]);
        let name = String::from_utf8(bytes[40..].to_vec()).unwrap();
        assert_eq!(out.namelen as usize, name.len());
        (out, name)
    }

    fn next(&mut self) -> Told {
        let (out, name) = self.next_whole();
        assert_eq!(out.owner, 7);
        (out.nodeid, out.mask, name)
    }

    /// The events up to that of a file of this name that is made now on the host in a directory that is watched.
    fn until_marked(&mut self, mark: &Path) -> Vec<Told> {
        let name = mark.file_name().unwrap().to_str().unwrap();
        symlink("mark", mark).unwrap();
        let mut told = Vec::new();
        loop {
            let event = self.next();
            if event.2 == name {
                return told;
            }
            told.push(event);
        }
    }
}

fn of(node: u64, mask: u32, name: &str) -> Told {
    (node, mask, name.into())
}

#[test]
fn host_changes_in_a_watched_directory_are_told_with_their_names() {
    let dir = tempdir().unwrap();
    let mut watching = Watching::new(dir.path());
    watching.watch(ROOT_ID, ALL);
    let path = |name: &str| dir.path().join(name);
    fs::write(path("f"), "text").unwrap();
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_CREATE, "f"));
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_MODIFY, "f"));
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_CLOSE_WRITE, "f"));
    fs::set_permissions(path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_ATTRIB, "f"));
    fs::rename(path("f"), path("g")).unwrap();
    let (from, name) = watching.next_whole();
    assert_eq!((from.mask, name.as_str()), (libc::IN_MOVED_FROM, "f"));
    let (to, name) = watching.next_whole();
    assert_eq!((to.mask, name.as_str()), (libc::IN_MOVED_TO, "g"));
    assert!(from.cookie != 0 && from.cookie == to.cookie);
    fs::remove_file(path("g")).unwrap();
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_DELETE, "g"));
    fs::create_dir(path("d")).unwrap();
    let made = libc::IN_CREATE | libc::IN_ISDIR;
    assert_eq!(watching.next(), of(ROOT_ID, made, "d"));
    // Reading is no change.
    fs::read_dir(path("d")).unwrap().count();
    assert_eq!(watching.until_marked(&path("mark")), []);
}

#[test]
fn swapped_link_is_told_as_moved() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    symlink("..one", path("..data")).unwrap();
    let mut watching = Watching::new(dir.path());
    watching.watch(ROOT_ID, libc::IN_MOVED_TO);
    symlink("..two", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    // Only what was asked for.
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_MOVED_TO, "..data"));
}

#[test]
fn watched_file_that_the_host_deletes_is_told_to_be_gone() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("f"), "").unwrap();
    fs::create_dir(path("d")).unwrap();
    let mut watching = Watching::new(dir.path());
    let file = watching.guest.walk("f").nodeid;
    let directory = watching.guest.walk("d").nodeid;
    watching.watch(file, ALL);
    watching.watch(directory, ALL);
    fs::hard_link(path("f"), path("g")).unwrap();
    assert_eq!(watching.next(), of(file, libc::IN_ATTRIB, ""));
    fs::remove_file(path("f")).unwrap();
    assert_eq!(watching.next(), of(file, libc::IN_ATTRIB, ""));
    fs::remove_file(path("g")).unwrap();
    assert_eq!(watching.next(), of(file, libc::IN_ATTRIB, ""));
    assert_eq!(watching.next(), of(file, libc::IN_DELETE_SELF, ""));
    fs::remove_dir(path("d")).unwrap();
    let gone = libc::IN_DELETE_SELF | libc::IN_ISDIR;
    assert_eq!(watching.next(), of(directory, gone, ""));
}

#[test]
fn own_changes_are_not_told() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("known"), "").unwrap();
    fs::create_dir(path("d")).unwrap();
    let mut watching = Watching::new(dir.path());
    let known = watching.guest.walk("known").nodeid;
    let directory = watching.guest.walk("d").nodeid;
    for node in [ROOT_ID, known, directory] {
        watching.watch(node, ALL);
    }
    let guest = &mut watching.guest;
    let (made, open) = guest.create(ROOT_ID, "f", 0o600, libc::O_RDWR).unwrap();
    let write = WriteIn {
        fh: open.fh,
        size: 4,
        ..WriteIn::default()
    };
    guest
        .call(opcode::WRITE, made.nodeid, &[write.as_slice(), b"text"])
        .unwrap();
    guest.release(made.nodeid, open.fh).unwrap();
    let open = guest.open(known, libc::O_RDWR | libc::O_TRUNC).unwrap();
    guest.release(known, open.fh).unwrap();
    let set = SetattrIn {
        valid: flag::FATTR_MODE | flag::FATTR_SIZE | flag::FATTR_MTIME | flag::FATTR_MTIME_NOW,
        mode: 0o640,
        size: 10,
        ..SetattrIn::default()
    };
    guest.setattr(known, set).unwrap();
    let names = [text("f"), text("h")].concat();
    let moved = directory.to_le_bytes();
    guest
        .call(opcode::RENAME, ROOT_ID, &[&moved, &names])
        .unwrap();
    let mode = (0o755u64).to_le_bytes();
    guest
        .call(opcode::MKDIR, ROOT_ID, &[&mode, &text("sub")])
        .unwrap();
    guest.call(opcode::RMDIR, ROOT_ID, &[&text("sub")]).unwrap();
    let link = known.to_le_bytes();
    guest
        .call(opcode::LINK, directory, &[&link, &text("l")])
        .unwrap();
    for (parent, name) in [(directory, "l"), (directory, "h"), (ROOT_ID, "known")] {
        guest.call(opcode::UNLINK, parent, &[&text(name)]).unwrap();
    }
    guest.call(opcode::RMDIR, ROOT_ID, &[&text("d")]).unwrap();
    assert_eq!(watching.until_marked(&path("mark")), []);
}

#[test]
fn host_change_of_what_the_guest_changes_too_is_told() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut watching = Watching::new(dir.path());
    watching.watch(ROOT_ID, libc::IN_CREATE | libc::IN_DELETE);
    for round in 0..20 {
        let name = format!("f{round}");
        let made = watching.guest.create(ROOT_ID, &name, 0o600, libc::O_RDWR);
        made.unwrap();
        fs::remove_file(path(&name)).unwrap();
        assert_eq!(watching.next(), of(ROOT_ID, libc::IN_DELETE, &name));
        fs::write(path(&name), "").unwrap();
        assert_eq!(watching.next(), of(ROOT_ID, libc::IN_CREATE, &name));
        let gone = watching
            .guest
            .call(opcode::UNLINK, ROOT_ID, &[&text(&name)]);
        gone.unwrap();
    }
    assert_eq!(watching.until_marked(&path("mark")), []);
}

#[test]
fn ended_watch_tells_nothing() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        fs::write(path(name), "").unwrap();
    }
    let mut watching = Watching::new(dir.path());
    let (a, b) = (
        watching.guest.walk("a").nodeid,
        watching.guest.walk("b").nodeid,
    );
    for node in [ROOT_ID, a, b] {
        watching.watch(node, libc::IN_MODIFY | libc::IN_CREATE);
    }
    assert_eq!(watching.guest.fs.watches(), 3);
    assert_eq!(watching.watch_as(a, 7, 0), Ok(false));
    watching.guest.forget(b, 1);
    assert_eq!(watching.guest.fs.watches(), 1);
    for name in ["a", "b"] {
        fs::write(path(name), "x").unwrap();
    }
    let told = watching.until_marked(&path("mark"));
    assert!(told.iter().all(|event| event.0 == ROOT_ID), "{told:?}");
    // A file system that is unmounted watches nothing.
    watching.guest.call(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(watching.guest.fs.watches(), 0);
}

#[test]
fn node_watched_by_two_owners_tells_both() {
    let dir = tempdir().unwrap();
    let mut watching = Watching::new(dir.path());
    for owner in [1, 2] {
        let watched = watching.watch_as(ROOT_ID, owner, libc::IN_CREATE);
        assert_eq!(watched, Ok(true));
    }
    fs::write(dir.path().join("f"), "").unwrap();
    let owners = [watching.next_whole().0.owner, watching.next_whole().0.owner];
    assert_eq!(owners, [1, 2]);
    assert_eq!(watching.watch_as(ROOT_ID, 1, 0), Ok(false));
    fs::write(dir.path().join("g"), "").unwrap();
    assert_eq!(watching.next_whole().0.owner, 2);
}

#[test]
fn root_file_system_of_a_container_is_not_watched() {
    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join("containers/a/rootfs")).unwrap();
    let mut watching = Watching::new(dir.path());
    let root = watching.guest.walk("containers/a/rootfs").nodeid;
    assert_eq!(watching.watch_as(root, 7, ALL), Ok(false));
    assert_eq!(watching.guest.fs.watches(), 0);
}

#[test]
fn guest_without_the_queue_is_told_that_there_are_no_watches() {
    let dir = tempdir().unwrap();
    let mut guest = Guest::new(dir.path());
    let watch = WatchIn {
        mask: ALL,
        owner: 0,
    };
    let reply = guest.call(opcode::WATCH, ROOT_ID, &[watch.as_slice()]);
    assert_eq!(reply, Err(libc::ENOSYS));
}

#[test]
fn events_that_nobody_takes_become_an_overflow() {
    let dir = tempdir().unwrap();
    let mut watching = Watching {
        guest: Guest::notified(dir.path()),
        buffers: [].into(),
    };
    watching.watch(ROOT_ID, libc::IN_CREATE);
    for i in 0..3000 {
        fs::write(dir.path().join(format!("f{i}")), "").unwrap();
    }
    // Whatever came first, the loss is told, and after it the newest.
    watching.give_buffers(32);
    let mut told = Vec::new();
    while told.last() != Some(&of(ROOT_ID, libc::IN_CREATE, "f2999")) {
        told.push(watching.next());
    }
    let lost = of(ROOT_ID, libc::IN_Q_OVERFLOW, "");
    assert!(told.contains(&lost));
    assert!(told.len() < 3000);
}

#[test]
fn events_during_a_stop_are_told_after_it() {
    let dir = tempdir().unwrap();
    let mut watching = Watching::new(dir.path());
    watching.watch(ROOT_ID, libc::IN_CREATE);
    let features = watching.guest.fs.features();
    let stopped = watching.guest.fs.stop();
    fs::write(dir.path().join("f"), "").unwrap();
    let mut activation = watching.guest.driver.activation(features);
    let active = |q: crate::virtio::StoppedQueue| crate::virtio::ActiveQueue {
        index: q.index,
        queue: q.queue,
        kick: q.kick,
    };
    activation.queues = stopped.into_iter().map(active).collect();
    watching.guest.fs.activate(activation).unwrap();
    assert_eq!(watching.next(), of(ROOT_ID, libc::IN_CREATE, "f"));
}

#[test]
fn bad_notification_buffers_cost_the_guest_its_events_only() {
    let dir = tempdir().unwrap();
    let mut watching = Watching {
        guest: Guest::notified(dir.path()),
        buffers: [].into(),
    };
    watching.watch(ROOT_ID, libc::IN_CREATE);
    let driver = &mut watching.guest.driver;
    let heads = [
        driver.put(QUEUE, &[], &[39]).head,
        driver.put(QUEUE, &[&[0; 400]], &[]).head,
        driver.put_raw(QUEUE, &[(u64::MAX - 8, 400, 2)]),
    ];
    driver.kick(QUEUE);
    for i in 0..3 {
        fs::write(dir.path().join(format!("f{i}")), "").unwrap();
    }
    for head in heads {
        let used = watching.guest.driver.wait_used(QUEUE, LIMIT);
        assert_eq!((used.head, used.written), (head, 0));
    }
    watching.give_buffers(1);
    assert_eq!(watching.next().1, libc::IN_CREATE);
}

#[test]
fn watches_beyond_the_limit_are_refused() {
    let dir = tempdir().unwrap();
    let mut watching = Watching::new(dir.path());
    for owner in 0..8192 {
        assert_eq!(watching.watch_as(ROOT_ID, owner, libc::IN_CREATE), Ok(true));
    }
    let more = watching.watch_as(ROOT_ID, 8192, libc::IN_CREATE);
    assert_eq!(more, Err(libc::ENOSPC));
    assert_eq!(watching.watch_as(ROOT_ID, 0, libc::IN_DELETE), Ok(true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_requests_while_everything_is_watched_end(
        requests in proptest::collection::vec(
            (0u32..54, 0u64..6, proptest::collection::vec(any::<u8>(), 0..80), any::<bool>()),
            1..30,
        )
    ) {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("f"), "f").unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let mut watching = Watching::new(dir.path());
        for path in ["f", "d"] {
            let node = watching.guest.walk(path).nodeid;
            watching.watch(node, ALL);
        }
        watching.watch(ROOT_ID, ALL);
        for (op, node, body, named) in requests {
            let op = if op == 53 { opcode::WATCH } else { op };
            let name = if named { text("d") } else { Vec::new() };
            let header = watching.guest.header(op, node, body.len() + name.len());
            let head = bytes_of(&header);
            let chain = watching.guest.driver.put(2, &[&head, &body, &name].map(|p| &p[..]), &[4096]);
            watching.guest.driver.kick(2);
            let used = watching.guest.driver.wait_used(2, LIMIT);
            watching.guest.driver.written(&chain, &used);
        }
        if watching.guest.getattr(ROOT_ID).is_err() {
            watching.guest.init(super::guest::OFFERED).unwrap();
        }
        watching.watch(ROOT_ID, ALL);
        watching.until_marked(&dir.path().join("mark"));
    }
}
