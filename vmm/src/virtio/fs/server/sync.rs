//! To disk, and how full the disk is: FSYNC, FSYNCDIR, SYNCFS, STATFS.

use std::os::fd::AsFd;

use super::errno::Errno;
use super::host;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{FsyncIn, InHeader, StatfsOut, flag};
use crate::virtio::fs::request::Arguments;

impl Server {
    pub(super) fn fsync(&self, mut args: Arguments<'_>) -> Result<(), Errno> {
        let fsync: FsyncIn = args.take()?;
        let handle = self.handles.get(fsync.fh)?;
        host::sync(handle.fd(), fsync.fsync_flags & flag::FSYNC_FDATASYNC != 0)
    }

    /// The node is the root of the file system, or of a mount below it that the guest sees as one of its own.
    pub(super) fn syncfs(&self, header: &InHeader) -> Result<(), Errno> {
        let inode = self.directory(header.nodeid)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let dir = host::open_at(inode.fd()?.as_fd(), c".", flags, 0)?;
        host::sync_fs(dir.as_fd())
    }

    pub(super) fn statfs(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
    ) -> Result<(), Errno> {
        let inode = self.node(header)?;
        let stat = host::statfs(inode.fd()?.as_fd())?;
        thread.put(&StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: u32::try_from(stat.f_bsize).unwrap_or(u32::MAX),
            namelen: u32::try_from(stat.f_namemax).unwrap_or(u32::MAX),
            frsize: u32::try_from(stat.f_frsize).unwrap_or(u32::MAX),
            ..StatfsOut::default()
        });
        Ok(())
    }
}
