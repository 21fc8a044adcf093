//! What the entries of an archive are, and why an archive cannot be read.

use std::io;

use thiserror::Error;

use super::EXTENSION_LIMIT;

/// Why a tar stream cannot be read on.
#[derive(Debug, Error)]
pub enum TarError {
    /// The bytes below (file, decompressor, network) failed.
    #[error("reading the archive failed after {offset} bytes")]
    Read {
        /// Bytes of tar stream read before.
        offset: u64,
        #[source]
        source: io::Error,
    },
    /// The stream stops inside a header or a file.
    #[error("the archive ends in the middle of {what} (after {offset} bytes); it is cut short")]
    Truncated {
        /// Entry or part.
        what: String,
        /// Bytes of tar stream read before.
        offset: u64,
    },
    /// A header is not a tar header.
    #[error("not a valid tar header at byte {offset}: {reason}")]
    Header {
        /// Where in the tar stream.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// More headers than the limit.
    #[error("the archive has more than {limit} entries; refused")]
    TooManyEntries {
        /// The limit that passed.
        limit: u64,
    },
    /// An extension header is larger than any honest one.
    #[error(
        "the archive has an extension header of {size} bytes (at most {EXTENSION_LIMIT} are accepted)"
    )]
    ExtensionTooLarge {
        /// Size claimed.
        size: u64,
    },
}

/// What an entry is, with the data only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file whose bytes follow; with the map of its segments where it is a GNU sparse file.
    File {
        /// `(offset, length)` of each segment; `None` when the bytes are the file.
        sparse: Option<Vec<(u64, u64)>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link to `TarEntry::link`.
    Symlink,
    /// Another name for the earlier entry `TarEntry::link`.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// One entry. Paths are as the archive has them, not cleaned, without NUL bytes, at most 4096 bytes long.
#[derive(Debug, Clone)]
pub struct TarEntry {
    /// The name.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link, else empty.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of the file when written out (of a sparse file: with its holes).
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since the epoch and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers, major and minor.
    pub device: (u32, u32),
    /// Extended attributes (PAX `SCHILY.xattr.`), in the archive's order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset of the entry's bytes in the tar stream.
    pub data_offset: u64,
}
