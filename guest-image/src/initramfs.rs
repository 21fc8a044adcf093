//! The initramfs: an uncompressed "newc" cpio archive with the agent as `/init`.
//!
//! Source: `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel. The archive
//! holds `/init`, `/dev` and `/dev/console` (the kernel opens it before `/init` could mount
//! anything) and nothing else. The content of `/init` begins a page of the archive, so that a kernel
//! that finds the archive in read-only memory can use it where it lies (`patches/0011`). Owner,
//! times and inode numbers are fixed, so the same agent gives the same bytes. General archives, other
//! file types and compression are not written here.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cache::{self, CacheError};
use crate::elf::{self, ElfError};

const MAGIC: &str = "070701";
/// A newc size field has eight hexadecimal digits.
const MAX_FILE_LEN: u64 = u32::MAX as u64;
const ALIGN: usize = 4;
const HEADER_LEN: usize = MAGIC.len() + 13 * 8;
/// Where the content of a file begins: a page.
const CONTENT_ALIGN: usize = 4096;
/// Most bytes of a name with its zeros (PATH_MAX); the kernel passes over a file with more.
const MAX_NAME_LEN: usize = 4096;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// Why no initramfs was written.
#[derive(Debug, Error)]
pub enum InitramfsError {
    #[error("cannot read {path} for /init of the initramfs")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} cannot be /init of the initramfs: it is {kind}, not a regular file; name the \
         program itself"
    )]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("{path} has {len} bytes; a file in an initramfs has at most {MAX_FILE_LEN}")]
    TooLarge { path: PathBuf, len: u64 },
    #[error("{path} cannot be /init of the initramfs")]
    NotAProgram {
        path: PathBuf,
        #[source]
        source: ElfError,
    },
    #[error(
        "{path} cannot be /init of the initramfs: it is dynamically linked, and the initramfs \
         has no loader; build it static (-C target-feature=+crt-static)"
    )]
    Dynamic { path: PathBuf },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Writes an initramfs with the static program `init` as `/init` to `out`, replacing it at once.
///
/// # Errors
/// `init` that is a symbolic link or no regular file, is over 4 GiB, is no x86-64 ELF program or
/// is dynamically linked; and any failure to read or write. `out` is then as it was.
pub fn write(init: &Path, out: &Path) -> Result<(), InitramfsError> {
    let program = read_program(init)?;
    cache::publish(out, |file: &mut File| {
        let mut sink = BufWriter::new(file);
        write_archive(&mut sink, &program)?;
        sink.flush()
    })?;
    Ok(())
}

fn read_program(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    let failed = |source| InitramfsError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let file_type = metadata.file_type();
    if !file_type.is_file() {
        let kind = if file_type.is_symlink() {
            "a symbolic link"
        } else if file_type.is_dir() {
            "a directory"
        } else {
            "a special file"
        };
        return Err(InitramfsError::NotAFile {
            path: path.to_owned(),
            kind,
        });
    }
    if metadata.len() > MAX_FILE_LEN {
        return Err(InitramfsError::TooLarge {
            path: path.to_owned(),
            len: metadata.len(),
        });
    }
    let program = fs::read(path).map_err(failed)?;
    match elf::is_dynamic(&program) {
        Ok(false) => Ok(program),
        Ok(true) => Err(InitramfsError::Dynamic {
            path: path.to_owned(),
        }),
        Err(source) => Err(InitramfsError::NotAProgram {
            path: path.to_owned(),
            source,
        }),
    }
}

fn write_archive(sink: &mut impl Write, init: &[u8]) -> io::Result<()> {
    // In order of name. Device 5:1 is /dev/console.
    let entries = [
        Entry {
            name: "dev",
            mode: S_IFDIR | 0o755,
            links: 2,
            device: (0, 0),
            content: &[],
        },
        Entry {
            name: "dev/console",
            mode: S_IFCHR | 0o600,
            links: 1,
            device: (5, 1),
            content: &[],
        },
        Entry {
            name: "init",
            mode: S_IFREG | 0o755,
            links: 1,
            device: (0, 0),
            content: init,
        },
    ];
    let mut at = 0;
    for (inode, entry) in (1u32..).zip(&entries) {
        at += entry.write(sink, inode, at)?;
    }
    Entry {
        name: "TRAILER!!!",
        mode: 0,
        links: 1,
        device: (0, 0),
        content: &[],
    }
    .write(sink, 0, at)?;
    Ok(())
}

/// One file of the archive.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Entry<'_> {
    /// Bytes of the name in an entry that begins at `at`, with the zeros behind it: one, or as many as bring the content to
    /// a page.
    fn name_len(&self, at: usize) -> usize {
        let least = self.name.len() + 1;
        if self.content.is_empty() {
            return least;
        }
        let name_at = at + HEADER_LEN;
        let padded = (name_at + least).next_multiple_of(CONTENT_ALIGN) - name_at;
        if padded <= MAX_NAME_LEN {
            padded
        } else {
            least
        }
    }

    /// Writes the entry at `at` and says how many bytes it has.
    fn write(&self, sink: &mut impl Write, inode: u32, at: usize) -> io::Result<usize> {
        let size = u32::try_from(self.content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a file over 4 GiB"))?;
        let name_len = self.name_len(at);
        let name_field = u32::try_from(name_len)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidFilename, "a name over 4 GiB"))?;
        let (major, minor) = self.device;
        write!(sink, "{MAGIC}")?;
        // inode, mode, uid, gid, links, mtime, size, device of the file system, device, name, check
        for field in [
            inode, self.mode, 0, 0, self.links, 0, size, 0, 0, major, minor, name_field, 0,
        ] {
            write!(sink, "{field:08x}")?;
        }
        sink.write_all(self.name.as_bytes())?;
        let content_at = (HEADER_LEN + name_len).next_multiple_of(ALIGN);
        sink.write_all(&vec![0; content_at - HEADER_LEN - self.name.len()])?;
        sink.write_all(self.content)?;
        let end = content_at + self.content.len();
        let bytes = end.next_multiple_of(ALIGN);
        sink.write_all(&[0; ALIGN][..bytes - end])?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
