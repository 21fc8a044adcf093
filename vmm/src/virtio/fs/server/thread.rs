//! What a worker thread brings along for serving requests: buffers, credentials, umask, working directory.

use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::ByteValued;

use super::credentials::Credentials;
use super::errno::Errno;
use crate::virtio::chain::IoVecs;

/// State of one thread. Must stay on the thread that made it.
#[derive(Debug)]
pub(in crate::virtio::fs) struct ServerThread<'m> {
    /// Body of the reply.
    pub(in crate::virtio::fs) reply: Vec<u8>,
    pub(super) vectors: IoVecs<'m>,
    pub(super) credentials: Credentials,
    umask: u32,
}

impl ServerThread<'_> {
    /// Prepares the calling thread: a umask and a working directory (`/proc/self/fd`) of its own.
    ///
    /// # Errors
    /// What unshare(2) or fchdir(2) failed with.
    pub(in crate::virtio::fs) fn prepare(proc_fds: BorrowedFd<'_>) -> Result<Self, Errno> {
        // SAFETY: plain calls; they change this thread's file-system context only, once it is unshared.
        unsafe {
            if libc::unshare(libc::CLONE_FS) < 0 || libc::fchdir(proc_fds.as_raw_fd()) < 0 {
                return Err(Errno::last());
            }
            libc::umask(0);
        }
        Ok(Self {
            reply: Vec::with_capacity(4096),
            vectors: IoVecs::default(),
            credentials: Credentials::of_this_thread()?,
            umask: 0,
        })
    }

    /// Appends a fixed part to the reply.
    pub(super) fn put<T: ByteValued>(&mut self, part: &T) {
        self.reply.extend_from_slice(part.as_slice());
    }

    /// Runs `create` as the guest's user and with its umask, which the host's file system applies, unless the directory
    /// has a default ACL.
    pub(super) fn create_as<T>(
        &mut self,
        owner: (u32, u32),
        umask: u32,
        create: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let umask = umask & 0o777;
        if umask != self.umask {
            // SAFETY: umask takes a number; the file-system context is this thread's own.
            unsafe { libc::umask(umask) };
            self.umask = umask;
        }
        self.credentials.run_as(owner.0, owner.1, create)
    }
}
