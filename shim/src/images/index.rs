//! The store's index: which name means which manifest. One JSON file, replaced as a whole.
//!
//! Writers take an exclusive lock on a file beside it; readers need none, as the rename is atomic.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Largest index file that is read; about a hundred thousand names.
const SIZE_LIMIT: u64 = 64 << 20;

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the image's own manifest (of the chosen platform).
    pub manifest: Digest,
    /// Digest of the index that the registry gave for the name, where it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// Seconds since the epoch when the name was last set.
    pub updated: u64,
}

/// All names, by their normalised form.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Index {
    /// Version of this file's form.
    pub version: u32,
    /// Names and what they mean.
    pub images: BTreeMap<String, Record>,
}

const VERSION: u32 = 1;

/// Reads the index at `path`; a missing file is an empty index.
pub(super) fn read(path: &Path) -> io::Result<Index> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Index {
                version: VERSION,
                ..Index::default()
            });
        }
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(SIZE_LIMIT).read_to_end(&mut text)?;
    let index: Index = serde_json::from_slice(&text)?;
    if index.version != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the image index is of version {}, this vmpod writes version {VERSION}; use the vmpod that made it or remove the store",
                index.version
            ),
        ));
    }
    Ok(index)
}

/// Changes the index under the lock and writes it if `change` says so by its result's second half.
pub(super) fn update<T>(
    path: &Path,
    change: impl FnOnce(&mut Index) -> (T, bool),
) -> io::Result<T> {
    let lock = open_lock(&path.with_extension("lock"))?;
    lock.lock()?;
    let mut index = read(path)?;
    let (result, changed) = change(&mut index);
    if changed {
        write_atomically(path, &serde_json::to_vec_pretty(&index)?)?;
    }
    Ok(result)
}

/// Opens (and makes) a file that exists to be locked.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Writes a file so that after a crash it is the old one or the new one. The caller keeps others from writing it.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One name for all: the caller holds the lock, and what a crash leaves is overwritten next time.
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
