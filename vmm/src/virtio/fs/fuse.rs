//! FUSE on the wire: opcodes, flags and fixed parts of requests and replies, protocol 7.41 as Linux 6.12 speaks it
//! (`include/uapi/linux/fuse.h`). All numbers are in the guest's byte order, which is little-endian here.
//!
//! Plain data; nothing in this module looks at a file.

use vm_memory::ByteValued;

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// Minor version spoken here.
pub const MINOR: u32 = 41;
/// Oldest minor version accepted: the first with the extended FUSE_INIT.
pub const OLDEST_MINOR: u32 = 36;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// User or group id meaning that the guest gave none.
pub const INVALID_ID: u32 = u32::MAX;

/// Numbers of the operations (`enum fuse_opcode`).
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    /// Not of Linux: the guest's kernel has it from `guest-image/patches`. Says which events of a node are wanted.
    pub const WATCH: u32 = 2001;
}

/// Numbers of the notifications (`enum fuse_notify_code`), in place of the error of a reply to request 0.
pub mod notification {
    /// Not of Linux: an event that [`super::opcode::WATCH`] asked for.
    pub const WATCH: i32 = 2001;
}

/// Flags of FUSE_INIT; those from bit 32 on travel in `flags2`.
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub mod init_flag {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// Flags of single operations.
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub mod flag {
    pub const FATTR_MODE: u32 = 1 << 0;
    pub const FATTR_UID: u32 = 1 << 1;
    pub const FATTR_GID: u32 = 1 << 2;
    pub const FATTR_SIZE: u32 = 1 << 3;
    pub const FATTR_ATIME: u32 = 1 << 4;
    pub const FATTR_MTIME: u32 = 1 << 5;
    pub const FATTR_FH: u32 = 1 << 6;
    pub const FATTR_ATIME_NOW: u32 = 1 << 7;
    pub const FATTR_MTIME_NOW: u32 = 1 << 8;
    pub const FATTR_KILL_SUIDGID: u32 = 1 << 11;
    pub const GETATTR_FH: u32 = 1 << 0;
    pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
    pub const WRITE_CACHE: u32 = 1 << 0;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
    pub const FSYNC_FDATASYNC: u32 = 1 << 0;
    pub const ATTR_SUBMOUNT: u32 = 1 << 0;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
}

/// Declares wire structs: integers only, no padding, so that any bytes are a value.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names are those of the protocol")]
        pub struct $name { $(pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size && 0 $(+ size_of::<$kind>())* == $size);
        // SAFETY: `repr(C)`, made of integers, and the assertion above shows that there is no padding.
        unsafe impl ByteValued for $name {}
    )*};
}

wire! {
    /// Opens every request.
    InHeader = 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
    /// Opens every reply; `error` is 0 or a negative errno.
    OutHeader = 16 { len: u32, error: i32, unique: u64, }
    /// Attributes of a file.
    Attr = 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Reply to what finds or makes a name.
    EntryOut = 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// Reply to GETATTR and SETATTR.
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// FORGET.
    ForgetIn = 8 { nlookup: u64, }
    /// Head of BATCH_FORGET.
    BatchForgetIn = 8 { count: u32, dummy: u32, }
    /// One of BATCH_FORGET.
    ForgetOne = 16 { nodeid: u64, nlookup: u64, }
    /// GETATTR.
    GetattrIn = 16 { getattr_flags: u32, dummy: u32, fh: u64, }
    /// STATX.
    StatxIn = 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    /// A point in time within [`Statx`].
    SxTime = 16 { sec: i64, nsec: u32, reserved: i32, }
    /// Attributes in the layout of statx(2).
    Statx = 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64, size: u64,
        blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// Reply to STATX.
    StatxOut = 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
    /// MKNOD, before the name.
    MknodIn = 16 { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// MKDIR, before the name.
    MkdirIn = 8 { mode: u32, umask: u32, }
    /// RENAME, before both names.
    RenameIn = 8 { newdir: u64, }
    /// RENAME2, before both names.
    Rename2In = 16 { newdir: u64, flags: u32, padding: u32, }
    /// LINK, before the name.
    LinkIn = 8 { oldnodeid: u64, }
    /// SETATTR.
    SetattrIn = 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// OPEN and OPENDIR.
    OpenIn = 8 { flags: u32, open_flags: u32, }
    /// CREATE and TMPFILE, before the name.
    CreateIn = 16 { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// Reply to OPEN and OPENDIR; second part of the reply to CREATE and TMPFILE.
    OpenOut = 16 { fh: u64, open_flags: u32, backing_id: i32, }
    /// RELEASE and RELEASEDIR.
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// READ, READDIR and READDIRPLUS.
    ReadIn = 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// WRITE, before the data.
    WriteIn = 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// Reply to WRITE and COPY_FILE_RANGE.
    WriteOut = 8 { size: u32, padding: u32, }
    /// Reply to STATFS.
    StatfsOut = 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// FSYNC and FSYNCDIR.
    FsyncIn = 16 { fh: u64, fsync_flags: u32, padding: u32, }
    /// SETXATTR (extended form), before name and value.
    SetxattrIn = 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    /// GETXATTR and LISTXATTR.
    GetxattrIn = 8 { size: u32, padding: u32, }
    /// Reply to GETXATTR and LISTXATTR when only the size was asked.
    GetxattrOut = 8 { size: u32, padding: u32, }
    /// INIT.
    InitIn = 64 { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11], }
    /// Reply to INIT.
    InitOut = 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16, max_write: u32,
        time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32, unused: [u32; 6],
    }
    /// FALLOCATE.
    FallocateIn = 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// LSEEK.
    LseekIn = 24 { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// Reply to LSEEK.
    LseekOut = 8 { offset: u64, }
    /// COPY_FILE_RANGE; the file read is the request's node.
    CopyFileRangeIn = 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64, }
    /// WATCH: events as of inotify(7), 0 for none. A node can be watched in each of the guest's file systems that has it:
    /// `owner` tells them apart and comes back with the events.
    WatchIn = 8 { mask: u32, owner: u32, }
    /// Reply to WATCH: whether the node is watched now. A file that only the guest changes never is.
    WatchOut = 8 { watched: u32, padding: u32, }
    /// An event; a name of `namelen` bytes follows when it is about an entry of the node.
    NotifyWatchOut = 24 { nodeid: u64, owner: u32, mask: u32, cookie: u32, namelen: u32, }
    /// Head of one directory entry; the name follows, padded to 8 bytes.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, kind: u32, }
}
