//! Names to inodes: LOOKUP, FORGET, and the reply that every operation gives that finds or makes a name.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Errno;
use super::host::{self, Stat};
use super::inode::Inode;
use super::policy::{CachePolicy, PRIVATE_SECONDS};
use super::{Answer, Server, ServerThread, attributes};
use crate::virtio::fs::fuse::{
    BatchForgetIn, EntryOut, ForgetIn, ForgetOne, InHeader, flag, init_flag,
};
use crate::virtio::fs::request::Arguments;

/// An inode with one more reference, which the reply passes to the guest.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) inode: Arc<Inode>,
    pub(super) stat: Stat,
}

impl Server {
    pub(super) fn lookup(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let name = args.name()?;
        let parent = self.directory(header.nodeid)?;
        let reply = match self.find(&parent, name) {
            Ok(found) => self.entry(&parent, &found),
            // Node 0 with a time tells that there is nothing, for that long.
            Err(Errno::ENOENT) if parent.policy() == CachePolicy::Private => EntryOut {
                entry_valid: PRIVATE_SECONDS,
                ..EntryOut::default()
            },
            Err(error) => return Err(error),
        };
        thread.put(&reply);
        Ok(())
    }

    /// Looks a name up and references its inode.
    pub(super) fn find(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Found, Errno> {
        let dir = parent.fd()?;
        // Names of shared directories are looked up again and again, and mostly give a known inode: one system call.
        if parent.policy() == CachePolicy::Shared {
            let stat = host::stat_at(dir.as_fd(), name)?;
            if let Some(inode) = self.inodes.reference_held(stat.key()) {
                inode.found_at(Self::place_of(parent, name, &stat));
                return Ok(Found { inode, stat });
            }
        }
        self.find_new(parent, name)
    }

    /// As [`Self::find`], for a name that was probably never looked up.
    pub(super) fn find_new(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Found, Errno> {
        let dir = parent.fd()?;
        let fd = host::open_path(dir.as_fd(), name)?;
        let stat = host::stat(fd.as_fd())?;
        let place = Self::place_of(parent, name, &stat);
        let inode = self.inodes.adopt(fd, &stat, parent, place)?;
        Ok(Found { inode, stat })
    }

    pub(super) fn place_of(parent: &Inode, name: &CStr, stat: &Stat) -> super::policy::Place {
        let is_mount = stat.0.stx_mnt_id != parent.key.mount;
        parent
            .place()
            .child(name.to_bytes(), stat.is_dir(), is_mount)
    }

    /// The reply for a name in `parent`.
    pub(super) fn entry(&self, parent: &Inode, found: &Found) -> EntryOut {
        let mut attr = attributes::attr(&found.stat);
        let is_mount = found.inode.key.mount != parent.key.mount;
        if is_mount && found.stat.is_dir() && self.features() & init_flag::SUBMOUNTS != 0 {
            attr.flags |= flag::ATTR_SUBMOUNT;
        }
        EntryOut {
            nodeid: found.inode.id,
            generation: 0,
            // What is mounted there may change at any time, whoever owns the directory.
            entry_valid: if is_mount {
                0
            } else {
                parent.place().name_seconds(found.stat.is_dir())
            },
            attr_valid: found.inode.place().attribute_seconds(),
            entry_valid_nsec: 0,
            attr_valid_nsec: 0,
            attr,
        }
    }

    pub(super) fn forget(
        &self,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        let forget: ForgetIn = args.take()?;
        if self.inodes.forget(header.nodeid, forget.nlookup) {
            self.watches.forget(std::iter::once(header.nodeid));
        }
        Ok(Answer::None)
    }

    pub(super) fn batch_forget(&self, mut args: Arguments<'_>) -> Result<Answer, Errno> {
        let head: BatchForgetIn = args.take()?;
        // Ends with the bytes that are there, whatever the count says.
        let nodes = (0..head.count)
            .map_while(|_| args.take::<ForgetOne>().ok())
            .map(|one| (one.nodeid, one.nlookup));
        let gone = self.inodes.forget_all(nodes);
        self.watches.forget(gone.into_iter());
        Ok(Answer::None)
    }
}
