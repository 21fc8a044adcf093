//! New files: CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK. They belong to the user of the request from the start.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Errno;
use super::host::{self, FdName};
use super::inode::Inode;
use super::lookup::Found;
use super::open::host_flags;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{CreateIn, InHeader, MkdirIn, MknodIn, OpenOut, flag};
use crate::virtio::fs::request::Arguments;
use std::os::fd::OwnedFd;

/// Mode bits of a new file. The guest's kernel has dropped the set-group-id bit where the user must not set it.
const NEW_FILE_BITS: u32 = 0o7777;

impl Server {
    pub(super) fn create(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let create: CreateIn = args.take()?;
        let name = args.name()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        let dir = parent.fd()?;
        let flags = host_flags(create.flags)? & !libc::O_TRUNC;
        let made = thread.create_as((header.uid, header.gid), create.umask, || {
            // O_EXCL, so that this is a new regular file and never somebody's link, FIFO or device.
            let flags = flags | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
            host::open_at(dir.as_fd(), name, flags, create.mode & NEW_FILE_BITS)
        });
        let (found, opened) = match made {
            Ok(file) => {
                let found = self.adopt_open(&parent, name, &file)?;
                (found, self.new_handle(file))
            }
            // The host made it since the guest looked: that is an open of an existing file.
            Err(Errno::EEXIST) if create.flags.cast_signed() & libc::O_EXCL == 0 => {
                let found = self.find(&parent, name)?;
                match self.open_inode(&found.inode, create.flags, create.open_flags) {
                    Ok(opened) => (found, opened),
                    Err(error) => {
                        self.inodes.forget(found.inode.id, 1);
                        return Err(error);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        thread.put(&self.entry(&parent, &found));
        thread.put(&opened);
        Ok(())
    }

    pub(super) fn tmpfile(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let create: CreateIn = args.take()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        let dir = parent.fd()?;
        // O_EXCL means here that the file may never get a name.
        let unlinkable = create.flags.cast_signed() & libc::O_EXCL;
        let flags = (host_flags(create.flags)? & !libc::O_TRUNC) | libc::O_TMPFILE | unlinkable;
        let file = thread.create_as((header.uid, header.gid), create.umask, || {
            host::open_at(dir.as_fd(), c".", flags, create.mode & NEW_FILE_BITS)
        })?;
        let found = self.adopt_open(&parent, c"", &file)?;
        let opened = self.new_handle(file);
        thread.put(&self.entry(&parent, &found));
        thread.put(&opened);
        Ok(())
    }

    fn new_handle(&self, file: OwnedFd) -> OpenOut {
        OpenOut {
            fh: self.handles.insert_file(file),
            // What the guest writes to a new file is the newest there is.
            open_flags: flag::FOPEN_KEEP_CACHE,
            backing_id: 0,
        }
    }

    /// References the inode of an open new file.
    fn adopt_open(&self, parent: &Arc<Inode>, name: &CStr, file: &OwnedFd) -> Result<Found, Errno> {
        let own = FdName::new(file.as_fd());
        let fd = host::open_at(self.proc_fds.as_fd(), own.as_c_str(), libc::O_PATH, 0)?;
        let stat = host::stat(fd.as_fd())?;
        let place = Self::place_of(parent, name, &stat);
        let inode = self.inodes.adopt(fd, &stat, parent, place)?;
        Ok(Found { inode, stat })
    }

    /// Replies with a name that was just made.
    pub(super) fn put_new(
        &self,
        thread: &mut ServerThread<'_>,
        parent: &Arc<Inode>,
        name: &CStr,
    ) -> Result<(), Errno> {
        let found = self.find_new(parent, name)?;
        thread.put(&self.entry(parent, &found));
        Ok(())
    }

    pub(super) fn mkdir(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let mkdir: MkdirIn = args.take()?;
        let name = args.name()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        let dir = parent.fd()?;
        thread.create_as((header.uid, header.gid), mkdir.umask, || {
            host::mkdir_at(dir.as_fd(), name, mkdir.mode & NEW_FILE_BITS)
        })?;
        self.put_new(thread, &parent, name)
    }

    pub(super) fn mknod(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let mknod: MknodIn = args.take()?;
        let name = args.name()?;
        self.writable()?;
        match mknod.mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | 0 => {}
            // Device 0:0 is no device but overlayfs' mark for a deleted file.
            libc::S_IFCHR if mknod.rdev == 0 => {}
            // A node of a real device would be the host's device on the host.
            libc::S_IFCHR | libc::S_IFBLK => return Err(Errno::EPERM),
            _ => return Err(Errno::EINVAL),
        }
        let parent = self.directory(header.nodeid)?;
        let dir = parent.fd()?;
        let mode = mknod.mode & (libc::S_IFMT | NEW_FILE_BITS);
        thread.create_as((header.uid, header.gid), mknod.umask, || {
            host::mknod_at(dir.as_fd(), name, mode, 0)
        })?;
        self.put_new(thread, &parent, name)
    }

    pub(super) fn symlink(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let name = args.name()?;
        // Any text: the host never follows it.
        let target = args.text()?;
        self.writable()?;
        let parent = self.directory(header.nodeid)?;
        let dir = parent.fd()?;
        thread.create_as((header.uid, header.gid), 0, || {
            host::symlink_at(target, dir.as_fd(), name)
        })?;
        self.put_new(thread, &parent, name)
    }
}
