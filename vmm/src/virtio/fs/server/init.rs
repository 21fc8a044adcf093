//! FUSE_INIT and DESTROY: what the guest's kernel and this server agree on.

use std::sync::atomic::Ordering;

use super::errno::Errno;
use super::{MAX_PAGES, MAX_TRANSFER, Server, ServerThread};
use crate::virtio::fs::fuse::{self, InitIn, InitOut, init_flag};
use crate::virtio::fs::request::Arguments;

/// Features that are taken when the guest offers them.
///
/// Left out on purpose: POSIX_LOCKS and FLOCK_LOCKS (without them the guest's kernel locks by itself, which is right for a
/// file system with one guest), WRITEBACK_CACHE (holds for shared files as well, whose size and times the host may change),
/// EXPORT_SUPPORT (asks for lookups of `..`), NO_OPEN_SUPPORT (open files are handles here).
const WANTED: u64 = init_flag::ASYNC_READ
    | init_flag::ATOMIC_O_TRUNC
    | init_flag::BIG_WRITES
    | init_flag::DONT_MASK
    | init_flag::AUTO_INVAL_DATA
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::ASYNC_DIO
    | init_flag::PARALLEL_DIROPS
    | init_flag::POSIX_ACL
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::SUBMOUNTS
    | init_flag::HANDLE_KILLPRIV_V2
    | init_flag::SETXATTR_EXT
    | init_flag::INIT_EXT
    | init_flag::DIRECT_IO_ALLOW_MMAP
    | init_flag::NO_EXPORT_SUPPORT
    | init_flag::ALLOW_IDMAP;

/// Without these a request would be misread: its fixed part or its meaning would be another.
const NEEDED: u64 = init_flag::SETXATTR_EXT | init_flag::INIT_EXT | init_flag::DONT_MASK;

/// Requests that the guest keeps under way in the background (readahead, writeback).
const MAX_BACKGROUND: u16 = 256;

impl Server {
    pub(super) fn init(
        &self,
        thread: &mut ServerThread<'_>,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let init: InitIn = args.take()?;
        let mut reply = InitOut {
            major: fuse::MAJOR,
            minor: fuse::MINOR,
            ..InitOut::default()
        };
        if init.major > fuse::MAJOR {
            // The guest asks again with the version it finds in the reply.
            thread.put(&reply);
            return Ok(());
        }
        let offered = u64::from(init.flags) | u64::from(init.flags2) << 32;
        if init.major < fuse::MAJOR || init.minor < fuse::OLDEST_MINOR || offered & NEEDED != NEEDED
        {
            return Err(Errno::EPROTO);
        }
        // A guest that starts over holds nothing of what it held before.
        self.forget_everything();
        let features = offered & WANTED;
        reply.max_readahead = init.max_readahead;
        reply.flags = (features & u64::from(u32::MAX)) as u32;
        reply.flags2 = (features >> 32) as u32;
        reply.max_background = MAX_BACKGROUND;
        reply.congestion_threshold = MAX_BACKGROUND / 4 * 3;
        reply.max_write = MAX_TRANSFER;
        reply.time_gran = 1;
        reply.max_pages = MAX_PAGES;
        self.features.store(features, Ordering::Release);
        thread.put(&reply);
        Ok(())
    }

    /// The guest unmounted the file system.
    pub(super) fn destroy(&self) {
        self.features.store(0, Ordering::Release);
        self.forget_everything();
    }

    fn forget_everything(&self) {
        self.watches.clear();
        self.handles.clear();
        self.inodes.clear();
    }

    /// Negotiated features; 0 before FUSE_INIT.
    pub(super) fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }
}
