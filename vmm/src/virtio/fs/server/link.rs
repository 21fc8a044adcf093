//! Names: LINK, UNLINK, RMDIR, RENAME, RENAME2, READLINK.

use std::ffi::CStr;
use std::os::fd::AsFd;

use super::errno::Errno;
use super::host;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{InHeader, LinkIn, Rename2In, RenameIn};
use crate::virtio::fs::request::Arguments;

/// Longest target of a symbolic link (`PATH_MAX`, with room for none of the NUL).
const MAX_TARGET: usize = 4096;
/// Flags of renameat2(2) that are passed on.
const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

impl Server {
    pub(super) fn link(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let link: LinkIn = args.take()?;
        let name = args.name()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        let inode = self.inodes.get(link.oldnodeid)?;
        let dir = parent.fd()?;
        let file = inode.fd()?;
        host::link_at(self.proc_fds.as_fd(), file.as_fd(), dir.as_fd(), name)?;
        self.put_new(thread, &parent, name)
    }

    /// `flags` is AT_REMOVEDIR for a directory.
    pub(super) fn unlink(
        &self,
        header: &InHeader,
        mut args: Arguments<'_>,
        flags: libc::c_int,
    ) -> Result<(), Errno> {
        let name = args.name()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        host::unlink_at(parent.fd()?.as_fd(), name, flags)
    }

    pub(super) fn rename(&self, header: &InHeader, mut args: Arguments<'_>) -> Result<(), Errno> {
        let rename: RenameIn = args.take()?;
        let names = (args.name()?, args.name()?);
        self.rename_names(header.nodeid, rename.newdir, names, 0)
    }

    pub(super) fn rename2(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let rename: Rename2In = args.take()?;
        let names = (args.name()?, args.name()?);
        if rename.flags & !RENAME_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let rename_it = || self.rename_names(header.nodeid, rename.newdir, names, rename.flags);
        if rename.flags & libc::RENAME_WHITEOUT != 0 {
            // The whiteout is a new file.
            thread.create_as((header.uid, header.gid), 0, rename_it)
        } else {
            rename_it()
        }
    }

    fn rename_names(
        &self,
        from: u64,
        to: u64,
        names: (&CStr, &CStr),
        flags: u32,
    ) -> Result<(), Errno> {
        self.writable()?;
        let (from, to) = (self.directory(from)?, self.directory(to)?);
        let (from, to) = (from.fd()?, to.fd()?);
        host::rename_at((from.as_fd(), names.0), (to.as_fd(), names.1), flags)
    }

    pub(super) fn readlink(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
    ) -> Result<(), Errno> {
        let inode = self.node(header)?;
        if inode.kind != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        thread.reply.resize(MAX_TARGET, 0);
        let read = host::read_link(inode.fd()?.as_fd(), &mut thread.reply);
        thread.reply.truncate(*read.as_ref().unwrap_or(&0));
        read.map(drop)
    }
}
