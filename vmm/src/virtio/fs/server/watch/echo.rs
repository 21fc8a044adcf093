//! The guest's own changes: events that a request is going to cause on the host, and which therefore are not told to the
//! guest, whose kernel has reported them by itself.
//!
//! A request that may cause events is done under the lock of the watches, between two looks at the host's queue: events
//! found before it are others', of those found behind it the ones that it explains are its own. If somebody else caused
//! the very same event on the same file in between, the guest's program still looks at the file afterwards: its own event
//! comes when the reply is there.

use std::ffi::CStr;
use std::os::fd::AsFd;

use super::{Watcher, Watches};
use crate::virtio::fs::fuse::{
    CopyFileRangeIn, CreateIn, InHeader, LinkIn, MkdirIn, MknodIn, OpenIn, Rename2In, RenameIn,
    opcode,
};
use crate::virtio::fs::request::Arguments;
use crate::virtio::fs::server::errno::Errno;
use crate::virtio::fs::server::host::inotify::RawEvent;
use crate::virtio::fs::server::host::{self, Key};
use crate::virtio::fs::server::{Answer, Server};

/// What a change of contents or attributes causes, on the host, where a file may be opened for it.
const CHANGE: u32 = libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_CLOSE_WRITE;
/// What happens to a file that loses a name.
const LOSS: u32 = libc::IN_ATTRIB | libc::IN_DELETE_SELF;

/// The events of one request.
#[derive(Debug, Default)]
pub(super) struct Effects<'a> {
    /// Files, and what happens to each.
    files: Vec<(Key, u32)>,
    /// Entries of directories, and what happens there.
    names: Vec<(Key, &'a CStr, u32)>,
}

impl Effects<'_> {
    /// Whether the request deletes the file.
    pub(super) fn ends(&self, key: Key) -> bool {
        self.file(key, libc::IN_DELETE_SELF)
    }

    fn file(&self, key: Key, event: u32) -> bool {
        (self.files.iter()).any(|(file, mask)| *file == key && event & mask != 0)
    }
}

impl Watches {
    /// Whether a request needs no more than to be done.
    fn is_idle(&self) -> bool {
        self.len() == 0
    }
}

impl Server {
    /// Does a request, and takes its events out of what is told to the guest.
    pub(in super::super) fn without_echo(
        &self,
        header: &InHeader,
        args: Arguments<'_>,
        request: impl FnOnce() -> Result<Answer, Errno>,
    ) -> Result<Answer, Errno> {
        if self.watches.is_idle() {
            return request();
        }
        // What cannot be understood here fails there.
        let Ok(Some(effects)) = self.effects(header, args) else {
            return request();
        };
        let mut state = self.watches.state();
        self.drain(&mut state, None);
        let answer = request();
        self.drain(&mut state, Some(&effects));
        if !state.waiting.is_empty() || !state.overflowed.is_empty() {
            self.watches.wake_up();
        }
        answer
    }

    /// The events that a request is going to cause; `None` if none are told.
    fn effects<'a>(
        &self,
        header: &InHeader,
        mut args: Arguments<'a>,
    ) -> Result<Option<Effects<'a>>, Errno> {
        let mut effects = Effects::default();
        let node = header.nodeid;
        match header.opcode {
            opcode::WRITE
            | opcode::FALLOCATE
            | opcode::SETATTR
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::RELEASE => effects.files.push((self.key(node)?, CHANGE)),
            opcode::OPEN => {
                let open: OpenIn = args.take()?;
                if open.flags.cast_signed() & libc::O_TRUNC == 0 {
                    return Ok(None);
                }
                effects.files.push((self.key(node)?, CHANGE));
            }
            opcode::COPY_FILE_RANGE => {
                let copy: CopyFileRangeIn = args.take()?;
                effects.files.push((self.key(copy.nodeid_out)?, CHANGE));
            }
            opcode::CREATE => {
                let _: CreateIn = args.take()?;
                self.makes(&mut effects, node, args.name()?)?;
            }
            opcode::MKNOD => {
                let _: MknodIn = args.take()?;
                self.makes(&mut effects, node, args.name()?)?;
            }
            opcode::MKDIR => {
                let _: MkdirIn = args.take()?;
                self.makes(&mut effects, node, args.name()?)?;
            }
            opcode::SYMLINK => self.makes(&mut effects, node, args.name()?)?,
            opcode::LINK => {
                let link: LinkIn = args.take()?;
                self.makes(&mut effects, node, args.name()?)?;
                let file = self.key(link.oldnodeid)?;
                effects.files.push((file, libc::IN_ATTRIB));
            }
            opcode::UNLINK | opcode::RMDIR => {
                let name = args.name()?;
                let parent = self.key(node)?;
                effects.names.push((parent, name, libc::IN_DELETE));
                self.touches(&mut effects, node, name, LOSS);
            }
            opcode::RENAME => {
                let rename: RenameIn = args.take()?;
                self.renames(&mut effects, node, rename.newdir, args)?;
            }
            opcode::RENAME2 => {
                let rename: Rename2In = args.take()?;
                self.renames(&mut effects, node, rename.newdir, args)?;
            }
            _ => return Ok(None),
        }
        Ok(Some(effects))
    }

    fn key(&self, node: u64) -> Result<Key, Errno> {
        Ok(self.inodes.get(node)?.key)
    }

    /// The identity of what a directory has under a name.
    fn key_at(&self, directory: u64, name: &CStr) -> Option<Key> {
        let inode = self.inodes.get(directory).ok()?;
        let fd = inode.fd().ok()?;
        Some(host::stat_at(fd.as_fd(), name).ok()?.key())
    }

    fn makes<'a>(
        &self,
        effects: &mut Effects<'a>,
        parent: u64,
        name: &'a CStr,
    ) -> Result<(), Errno> {
        let parent = self.key(parent)?;
        effects.names.push((parent, name, libc::IN_CREATE | CHANGE));
        Ok(())
    }

    fn touches(&self, effects: &mut Effects<'_>, parent: u64, name: &CStr, mask: u32) {
        if let Some(key) = self.key_at(parent, name) {
            effects.files.push((key, mask));
        }
    }

    /// Both names for each half: the two may change places, and a whiteout may be left.
    fn renames<'a>(
        &self,
        effects: &mut Effects<'a>,
        from: u64,
        to: u64,
        mut args: Arguments<'a>,
    ) -> Result<(), Errno> {
        let moves = libc::IN_MOVED_FROM | libc::IN_MOVED_TO | libc::IN_CREATE;
        for directory in [from, to] {
            let name = args.name()?;
            let parent = self.key(directory)?;
            effects.names.push((parent, name, moves));
            self.touches(effects, directory, name, libc::IN_MOVE_SELF | LOSS);
        }
        Ok(())
    }

    /// Whether an event that a watcher would get is one of these.
    pub(super) fn is_own(
        &self,
        effects: &Effects<'_>,
        watcher: &Watcher,
        event: &RawEvent<'_>,
    ) -> bool {
        if event.name.is_empty() {
            return effects.file(watcher.key, event.mask);
        }
        let named = effects.names.iter().any(|(parent, name, mask)| {
            *parent == watcher.key && name.to_bytes() == event.name && event.mask & mask != 0
        });
        // A change of a file is an event of the directory around it, under the name that the file was found by.
        named
            || effects.files.iter().any(|(key, mask)| {
                event.mask & mask != 0 && self.is_entry(watcher.node, event.name, *key)
            })
    }

    fn is_entry(&self, directory: u64, name: &[u8], key: Key) -> bool {
        let Ok(name) = std::ffi::CString::new(name) else {
            return false;
        };
        self.key_at(directory, &name) == Some(key)
    }
}
