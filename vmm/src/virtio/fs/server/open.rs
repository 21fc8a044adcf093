//! Opening and closing: OPEN, OPENDIR, RELEASE, RELEASEDIR.

use std::os::fd::{AsFd, OwnedFd};

use super::errno::Errno;
use super::host::{self, FdName};
use super::inode::{ContentStamp, Inode};
use super::policy::CachePolicy;
use super::{Server, ServerThread, attributes};
use crate::virtio::fs::fuse::{InHeader, OpenIn, OpenOut, ReleaseIn, flag};
use crate::virtio::fs::request::Arguments;

/// Open flags that reach the host. O_APPEND does not: each WRITE says whether it appends, and dirty pages written back
/// through the same handle must not. O_DIRECT does not: the guest's buffers need not suit the host's device.
const PASSED_FLAGS: libc::c_int = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;

/// Flags of an open request as the host gets them.
///
/// # Errors
/// EINVAL for an access mode that is none.
pub(super) fn host_flags(flags: u32) -> Result<libc::c_int, Errno> {
    let flags = flags.cast_signed() & PASSED_FLAGS;
    if flags & libc::O_ACCMODE == libc::O_ACCMODE {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}

/// True when opening like this, or what can be done with it, changes the file.
pub(super) fn changes_file(flags: libc::c_int) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

impl Server {
    /// Opens an inode for I/O, which must be a regular file: opening anything else could block or act on the host.
    ///
    /// # Errors
    /// ENXIO for a special file or symbolic link, EISDIR for a directory; as openat(2).
    pub(super) fn reopen(&self, inode: &Inode, flags: libc::c_int) -> Result<OwnedFd, Errno> {
        if inode.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        if !inode.is_file() {
            return Err(Errno::ENXIO);
        }
        let fd = inode.fd()?;
        let name = FdName::new(fd.as_fd());
        host::open_at(self.proc_fds.as_fd(), name.as_c_str(), flags, 0)
    }

    pub(super) fn open(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let open: OpenIn = args.take()?;
        let inode = self.node(header)?;
        let reply = self.open_inode(&inode, open.flags, open.open_flags)?;
        thread.put(&reply);
        Ok(())
    }

    /// Opens a regular file for the guest, and says whether it may keep the contents it has.
    pub(super) fn open_inode(
        &self,
        inode: &Inode,
        flags: u32,
        open_flags: u32,
    ) -> Result<OpenOut, Errno> {
        let flags = host_flags(flags)?;
        if changes_file(flags) {
            self.writable()?;
        }
        let file = self.reopen(inode, flags)?;
        let truncated = flags & libc::O_TRUNC != 0;
        if truncated && open_flags & flag::OPEN_KILL_SUIDGID != 0 {
            attributes::kill_privileges(self.proc_fds.as_fd(), file.as_fd())?;
        }
        let keep = match inode.policy() {
            CachePolicy::Private => true,
            CachePolicy::Shared => {
                let now = ContentStamp::of(&host::stat(file.as_fd())?);
                inode.unchanged_since_last_open(now)
            }
        };
        Ok(OpenOut {
            fh: self.handles.insert_file(file),
            open_flags: if keep && !truncated {
                flag::FOPEN_KEEP_CACHE
            } else {
                0
            },
            backing_id: 0,
        })
    }

    pub(super) fn opendir(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
    ) -> Result<(), Errno> {
        let inode = self.directory(header.nodeid)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let dir = host::open_at(inode.fd()?.as_fd(), c".", flags, 0)?;
        thread.put(&OpenOut {
            fh: self.handles.insert_directory(dir),
            open_flags: match inode.policy() {
                CachePolicy::Private => flag::FOPEN_CACHE_DIR | flag::FOPEN_KEEP_CACHE,
                CachePolicy::Shared => 0,
            },
            backing_id: 0,
        });
        Ok(())
    }

    pub(super) fn release(&self, mut args: Arguments<'_>) -> Result<(), Errno> {
        let release: ReleaseIn = args.take()?;
        self.handles.remove(release.fh)
    }
}
