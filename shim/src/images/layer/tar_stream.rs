//! A bounded reader of tar streams: ustar, GNU and PAX, as layers and image archives use them.
//!
//! The `tar` crate parses header fields; this module walks the stream itself, because an archive from a
//! stranger must not decide how much memory an extension header takes or how often one may repeat.
//! Reads only: it knows no file system, follows nothing and cleans no path.

mod entry;
mod pax;
mod source;

use std::io::{self, BufReader, Read, Seek, SeekFrom};

pub use entry::{EntryKind, TarEntry, TarError};
use pax::Overrides;
pub use source::{Streamed, TarSource};
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::printable;

const BLOCK: u64 = 512;
/// Longest PAX record set, GNU long name or long link that is kept in memory; the same as Go's reader allows.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Longest path or link target: the kernel's PATH_MAX.
const PATH_LIMIT: usize = 4096;
/// Most segments of one GNU sparse file.
const SPARSE_LIMIT: usize = 1 << 16;

/// Walks a tar stream entry by entry. After [`TarStream::next_entry`], reading gives that entry's bytes.
#[derive(Debug)]
pub struct TarStream<R> {
    inner: R,
    offset: u64,
    remaining: u64,
    padding: u64,
    headers: u64,
    max_entries: u64,
    current: String,
}

impl<R: TarSource> TarStream<R> {
    /// Reads from `inner`, refusing more than `max_entries` headers.
    pub fn new(inner: R, max_entries: u64) -> Self {
        Self {
            inner,
            offset: 0,
            remaining: 0,
            padding: 0,
            headers: 0,
            max_entries,
            current: "the first header".into(),
        }
    }

    /// The next entry, or `None` at the end of the archive. Unread bytes of the entry before are skipped.
    ///
    /// # Errors
    /// [`TarError`]; the stream cannot be read on afterwards.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut overrides = Overrides::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = field(
                self.offset,
                "size",
                &header.as_old().size,
                header.entry_size(),
            )?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let data = self.read_extension(size)?;
                    overrides.apply_pax(&data, self.offset)?;
                }
                EntryType::GNULongName => {
                    overrides.path = Some(until_nul(self.read_extension(size)?))
                }
                EntryType::GNULongLink => {
                    overrides.link = Some(until_nul(self.read_extension(size)?))
                }
                EntryType::XGlobalHeader => self.set_remaining(size)?,
                _ => return self.finish_entry(&header, size, overrides).map(Some),
            }
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> TarError {
        TarError::Header {
            offset: self.offset,
            reason: reason.into(),
        }
    }

    fn set_remaining(&mut self, size: u64) -> Result<(), TarError> {
        let padded = size
            .checked_next_multiple_of(BLOCK)
            .filter(|padded| *padded <= i64::MAX as u64);
        let padded = padded.ok_or_else(|| self.invalid(format!("a size of {size} bytes")))?;
        self.remaining = size;
        self.padding = padded - size;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let count = self.remaining.saturating_add(self.padding);
        let offset = self.offset;
        let skipped = self
            .inner
            .skip(count)
            .map_err(|source| TarError::Read { offset, source })?;
        self.offset = self.offset.saturating_add(skipped);
        // Some writers leave out the padding after the last file; only missing content is an error.
        if skipped < self.remaining {
            return Err(TarError::Truncated {
                what: self.current.clone(),
                offset: self.offset,
            });
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads one block; `None` at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, TarError> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => {
                    return Err(TarError::Truncated {
                        what: "a header".into(),
                        offset: self.offset,
                    });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        self.offset = self.offset.saturating_add(BLOCK);
        Ok(true)
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if !self.read_block(header.as_mut_bytes())?
            || header.as_bytes().iter().all(|byte| *byte == 0)
        {
            return Ok(None);
        }
        self.headers += 1;
        if self.headers > self.max_entries {
            return Err(TarError::TooManyEntries {
                limit: self.max_entries,
            });
        }
        let bytes = header.as_bytes();
        // POSIX ustar: the checksum is summed with its own eight bytes taken as spaces.
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.invalid("its checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_LIMIT {
            return Err(TarError::ExtensionTooLarge { size });
        }
        self.set_remaining(size)?;
        self.current = "an extension header".into();
        let mut data = Vec::new();
        let offset = self.offset;
        self.read_to_end(&mut data)
            .map_err(|source| TarError::Read { offset, source })?;
        Ok(data)
    }

    fn finish_entry(
        &mut self,
        header: &Header,
        size: u64,
        overrides: Overrides,
    ) -> Result<TarEntry, TarError> {
        let offset = self.offset;
        let path = overrides
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = overrides
            .link
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        for text in [&path, &link] {
            if text.contains(&0) || text.len() > PATH_LIMIT {
                return Err(self.invalid(format!(
                    "a path with a NUL byte or longer than {PATH_LIMIT} bytes: {}",
                    printable(text)
                )));
            }
        }
        self.current = printable(&path);
        let mut size = overrides.size.unwrap_or(size);
        let mut stored = size;
        let kind = match header.entry_type() {
            // Before ustar a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => EntryKind::File { sparse: None },
            EntryType::GNUSparse => {
                let (segments, real) = self.read_sparse(header, stored)?;
                size = real;
                EntryKind::File {
                    sparse: Some(segments),
                }
            }
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => EntryKind::CharDevice,
            EntryType::Block => EntryKind::BlockDevice,
            other => {
                let reason = format!(
                    "{} is of the unknown kind {:#04x}",
                    self.current,
                    other.as_byte()
                );
                return Err(self.invalid(reason));
            }
        };
        if !matches!(kind, EntryKind::File { .. }) {
            // As in Go's reader: these kinds have no content, whatever the size field says.
            (size, stored) = (0, 0);
        }
        self.set_remaining(stored)?;
        let id = |name: &str, value: u64| {
            // The largest value means "leave unchanged" to chown(2), so it is no owner.
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| TarError::Header {
                    offset,
                    reason: format!(
                        "{} has the {name} {value}, which is out of range",
                        printable(&path)
                    ),
                })
        };
        let number = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
        Ok(TarEntry {
            uid: id(
                "owner",
                match overrides.uid {
                    Some(uid) => uid,
                    None => field(offset, "uid", &header.as_old().uid, header.uid())?,
                },
            )?,
            gid: id(
                "group",
                match overrides.gid {
                    Some(gid) => gid,
                    None => field(offset, "gid", &header.as_old().gid, header.gid())?,
                },
            )?,
            mode: field(offset, "mode", &header.as_old().mode, header.mode())? & 0o7777,
            mtime: overrides.mtime.unwrap_or_else(|| {
                (
                    header
                        .mtime()
                        .ok()
                        .and_then(|t| i64::try_from(t).ok())
                        .unwrap_or(0),
                    0,
                )
            }),
            device: (number(header.device_major()), number(header.device_minor())),
            xattrs: overrides.xattrs,
            data_offset: self.offset,
            path,
            link,
            kind,
            size,
        })
    }

    /// The segment map of an old-style GNU sparse file, and the size with holes.
    fn read_sparse(
        &mut self,
        header: &Header,
        stored: u64,
    ) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| self.invalid("a sparse file outside the GNU format"))?;
        let real = field(self.offset, "real size", &gnu.realsize, gnu.real_size())?;
        let mut raw = Vec::new();
        for part in gnu.sparse.iter().filter(|part| !part.is_empty()) {
            raw.push((
                field(self.offset, "sparse", &part.offset, part.offset())?,
                field(self.offset, "sparse", &part.numbytes, part.length())?,
            ));
        }
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            if !self.read_block(block.as_mut_bytes())? {
                return Err(TarError::Truncated {
                    what: self.current.clone(),
                    offset: self.offset,
                });
            }
            for part in block.sparse().iter().filter(|part| !part.is_empty()) {
                raw.push((
                    field(self.offset, "sparse", &part.offset, part.offset())?,
                    field(self.offset, "sparse", &part.numbytes, part.length())?,
                ));
            }
            extended = block.is_extended();
            if raw.len() > SPARSE_LIMIT {
                return Err(self.invalid(format!(
                    "a sparse file with more than {SPARSE_LIMIT} segments"
                )));
            }
        }
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (at, length) in &raw {
            let next = at
                .checked_add(*length)
                .filter(|next| *at >= end && *next <= real);
            end = next.ok_or_else(|| {
                self.invalid("a sparse file whose segments overlap or pass its end")
            })?;
            sum += length;
        }
        if sum != stored {
            return Err(self.invalid("a sparse file whose segments do not add up to its size"));
        }
        Ok((raw, real))
    }
}

impl<R: TarSource> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..want).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let count = self.inner.read(buffer)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the archive ends in the middle of {}", self.current),
            ));
        }
        self.remaining -= count as u64;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}

/// Lists the entries of a seekable archive without reading their bytes.
///
/// # Errors
/// [`TarError`] as of [`TarStream::next_entry`].
pub fn list<R: Read + Seek>(mut file: R, max_entries: u64) -> Result<Vec<TarEntry>, TarError> {
    file.seek(SeekFrom::Start(0))
        .map_err(|source| TarError::Read { offset: 0, source })?;
    let mut stream = TarStream::new(BufReader::with_capacity(4096, file), max_entries);
    let mut entries = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

/// A numeric field, of which `raw` are the bytes. Some writers leave blank what is zero.
fn field<T: Default>(
    offset: u64,
    name: &str,
    raw: &[u8],
    value: io::Result<T>,
) -> Result<T, TarError> {
    if raw.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    value.map_err(|error| TarError::Header {
        offset,
        reason: format!("the {name} field: {error}"),
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
