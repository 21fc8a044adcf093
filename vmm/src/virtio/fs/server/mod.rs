//! A FUSE server for one directory tree of the host: every operation acts on the host's file of the same name.
//!
//! [`Server`] is shared by the device's workers and holds what outlives a request: inodes, open files, negotiated
//! features. Each worker has a [`ServerThread`] of its own for buffers and credentials. Nothing here knows of rings.
//!
//! No path of the guest is ever walked by the host: names are single components relative to an inode, symbolic links are
//! not followed, and files are opened for I/O only after they were seen to be regular.

mod attributes;
mod create;
mod credentials;
mod data;
mod directory;
mod errno;
mod handle_table;
mod host;
mod init;
mod inode;
mod inode_table;
mod link;
mod lookup;
mod open;
mod policy;
mod sync;
mod thread;
mod watch;
mod xattr;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vm_memory::VolatileSlice;

pub(super) use self::errno::Errno;
use self::handle_table::HandleTable;
use self::inode::Inode;
pub(super) use self::inode_table::DescriptorLimits;
use self::inode_table::InodeTable;
pub(super) use self::thread::ServerThread;
pub(super) use self::watch::{Event, Watches};
use super::fuse::{InHeader, opcode};
use super::request::Arguments;

/// Most bytes of one READ or WRITE.
pub(super) const MAX_TRANSFER: u32 = 1 << 20;
/// Pages of the guest (4 KiB) in one transfer.
const MAX_PAGES: u16 = 256;

/// One request, as the worker took it from the ring.
#[derive(Debug)]
pub(super) struct Request<'a, 'm> {
    pub(super) header: InHeader,
    /// What follows the header; for WRITE only the fixed part.
    pub(super) body: &'a [u8],
    /// Readable pieces of the whole chain, and where the data of a WRITE starts in them and how much there is.
    pub(super) data: (&'a [VolatileSlice<'m>], usize, usize),
    /// Writable pieces of the whole chain; the header of the reply takes the first 16 bytes.
    pub(super) space: &'a [VolatileSlice<'m>],
    /// Bytes of `space` behind the header.
    pub(super) room: usize,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The reply's body is in [`ServerThread::reply`].
    Body,
    /// That many bytes of the body are in the guest already, behind the place of the header.
    Written(usize),
    /// The operation has no reply.
    None,
}

/// The file server of one share.
#[derive(Debug)]
pub(super) struct Server {
    inodes: InodeTable,
    handles: HandleTable,
    /// `/proc/self/fd`.
    proc_fds: OwnedFd,
    read_only: bool,
    watches: Watches,
    /// Features that the guest took, 0 before FUSE_INIT. Shared by the workers; written at FUSE_INIT only.
    features: AtomicU64,
}

impl Server {
    /// A server of the tree at `root`, an O_PATH directory.
    ///
    /// # Errors
    /// ENOTDIR for a root that is no directory; what opening `/proc/self/fd` failed with.
    pub(super) fn new(
        root: OwnedFd,
        read_only: bool,
        limits: DescriptorLimits,
    ) -> Result<Self, Errno> {
        Ok(Self {
            inodes: InodeTable::new(root, limits)?,
            handles: HandleTable::default(),
            proc_fds: host::open_proc_fds()?,
            read_only,
            watches: Watches::new()?,
            features: AtomicU64::new(0),
        })
    }

    /// Prepares the calling thread for serving requests.
    ///
    /// # Errors
    /// The host refused it a file-system context of its own.
    pub(super) fn prepare_thread<'m>(&self) -> Result<ServerThread<'m>, Errno> {
        ServerThread::prepare(self.proc_fds.as_fd())
    }

    /// Number of inodes that the guest references (with the root) and of its open files.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    /// What the guest watches.
    pub(super) fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Does what a request asks for.
    ///
    /// # Errors
    /// The error number for the guest.
    pub(super) fn handle<'m>(
        &self,
        thread: &mut ServerThread<'m>,
        request: &Request<'_, 'm>,
    ) -> Result<Answer, Errno> {
        self.without_echo(&request.header, Arguments::new(request.body), || {
            self.perform(thread, request)
        })
    }

    fn perform<'m>(
        &self,
        thread: &mut ServerThread<'m>,
        request: &Request<'_, 'm>,
    ) -> Result<Answer, Errno> {
        let header = &request.header;
        let args = Arguments::new(request.body);
        thread.reply.clear();
        let features = self.features();
        match header.opcode {
            opcode::INIT => return self.init(thread, args).map(|()| Answer::Body),
            _ if features == 0
                && !matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) =>
            {
                return Err(Errno::EIO);
            }
            opcode::FORGET => return self.forget(header, args),
            opcode::BATCH_FORGET => return self.batch_forget(args),
            opcode::INTERRUPT | opcode::NOTIFY_REPLY => return Ok(Answer::None),
            opcode::READ => return self.read(thread, args, request),
            opcode::WRITE => self.write(thread, args, request)?,
            opcode::DESTROY => self.destroy(),
            opcode::LOOKUP => self.lookup(thread, header, args)?,
            opcode::GETATTR => self.getattr(thread, header, args)?,
            opcode::STATX => self.statx(thread, header, args)?,
            opcode::SETATTR => self.setattr(thread, header, args)?,
            opcode::READLINK => self.readlink(thread, header)?,
            opcode::SYMLINK => self.symlink(thread, header, args)?,
            opcode::MKNOD => self.mknod(thread, header, args)?,
            opcode::MKDIR => self.mkdir(thread, header, args)?,
            opcode::CREATE => self.create(thread, header, args)?,
            opcode::TMPFILE => self.tmpfile(thread, header, args)?,
            opcode::UNLINK => self.unlink(header, args, 0)?,
            opcode::RMDIR => self.unlink(header, args, libc::AT_REMOVEDIR)?,
            opcode::RENAME => self.rename(header, args)?,
            opcode::RENAME2 => self.rename2(thread, header, args)?,
            opcode::LINK => self.link(thread, header, args)?,
            opcode::OPEN => self.open(thread, header, args)?,
            opcode::OPENDIR => self.opendir(thread, header)?,
            opcode::RELEASE | opcode::RELEASEDIR => self.release(args)?,
            opcode::READDIR => self.readdir(thread, args, request.room)?,
            opcode::READDIRPLUS => self.readdirplus(thread, header, args, request.room)?,
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(args)?,
            opcode::SYNCFS => self.syncfs(header)?,
            opcode::STATFS => self.statfs(thread, header)?,
            opcode::FALLOCATE => self.fallocate(args)?,
            opcode::LSEEK => self.lseek(thread, args)?,
            opcode::COPY_FILE_RANGE => self.copy_file_range(thread, args)?,
            opcode::GETXATTR => self.getxattr(thread, header, args)?,
            opcode::LISTXATTR => self.listxattr(thread, header, args)?,
            opcode::SETXATTR => self.setxattr(thread, header, args)?,
            opcode::REMOVEXATTR => self.removexattr(header, args)?,
            opcode::WATCH => self.watch(thread, header, args)?,
            opcode::IOCTL => return Err(Errno::ENOTTY),
            // FLUSH and ACCESS among them. ENOSYS is how the guest's kernel learns that it need not ask: writes are not
            // delayed here, so that close(2) has no error left to report, and the guest checks permissions by itself.
            _ => return Err(Errno::ENOSYS),
        }
        Ok(Answer::Body)
    }

    /// The inode a request is about.
    fn node(&self, header: &InHeader) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(header.nodeid)
    }

    /// The directory a request is about.
    fn directory(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        let inode = self.inodes.get(id)?;
        if inode.is_dir() {
            Ok(inode)
        } else {
            Err(Errno::ENOTDIR)
        }
    }

    /// # Errors
    /// EROFS for a share that the guest must not change.
    fn writable(&self) -> Result<(), Errno> {
        if self.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }
}
