//! Unpacked layers in the store: added whole and checked, or not at all.
//!
//! Layers are kept by chain ID, as what a layer unpacks to may depend on those below it (hard links into them, links
//! among parents). The compressed layer is not kept: what is mounted is the unpacked one, and its diff ID was checked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digest::{Digest, HashingReader};
use super::layer::compression::decompress;
use super::layer::unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
use super::manifest::Content;
use super::store::{Store, StoreError, failed};

/// Why a layer did not get into the store.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The store's own files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive or the disk.
    #[error("layer {layer} was not unpacked")]
    Unpack {
        /// Digest of the layer's blob or its diff ID.
        layer: Digest,
        #[source]
        source: UnpackError,
    },
    /// Reading or decompressing the layer.
    #[error("layer {layer} cannot be read")]
    Read {
        /// Digest of the layer's blob or its diff ID.
        layer: Digest,
        #[source]
        source: io::Error,
    },
    /// The content is not what the image says.
    #[error("layer {layer} is refused: its {what} is {found}, the image says {expected}")]
    Mismatch {
        /// Digest of the layer's blob or its diff ID.
        layer: Digest,
        /// What was compared.
        what: &'static str,
        /// As found.
        found: String,
        /// As the image says.
        expected: String,
    },
}

/// What `layer.json` says of a layer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    diff_id: Digest,
    pub(super) bytes: u64,
    entries: u64,
}

impl Store {
    /// Whether the layer with this chain ID is unpacked.
    pub(super) fn has_layer(&self, chain: &Digest) -> bool {
        self.layer_path(chain).join("fs").is_dir()
    }

    /// Unpacks a layer into the store. `below`: chain IDs of the layers below, top-most first. `blob`: digest and size of
    /// the compressed layer, checked when given. The uncompressed bytes must have the digest `diff_id`.
    pub(super) fn add_layer(
        &self,
        reader: impl Read,
        blob: Option<&Content>,
        diff_id: &Digest,
        below: &[Digest],
        limits: &UnpackLimits,
    ) -> Result<(), LayerError> {
        let chain = diff_id.chained_on(below.first());
        if self.has_layer(&chain) {
            return Ok(());
        }
        let layer = || blob.map_or(diff_id, |blob| &blob.digest).clone();
        let scratch = self.scratch()?;
        let fs = scratch.path().join("layer/fs");
        std::fs::create_dir_all(&fs)
            .and_then(|()| std::fs::set_permissions(&fs, std::fs::Permissions::from_mode(0o755)))
            .map_err(failed("making", &fs))?;
        let lowers: Vec<PathBuf> = below
            .iter()
            .map(|chain| self.layer_path(chain).join("fs"))
            .collect();

        let mut compressed = HashingReader::new(reader);
        let unpacked = unpack_compressed(&mut compressed, &layer(), &fs, &lowers, limits);
        // The digest is of everything, also of what follows the archive. A wrong one explains every other error.
        let drained = io::copy(&mut compressed, &mut io::sink());
        let mismatch = |what, found: String, expected: String| {
            Err(LayerError::Mismatch {
                layer: layer(),
                what,
                found,
                expected,
            })
        };
        if let Some(blob) = blob
            && drained.is_ok()
            && !matches!(
                unpacked,
                Err(LayerError::Unpack {
                    source: UnpackError::DiskFull { .. },
                    ..
                })
            )
        {
            if compressed.count() != blob.size {
                return mismatch(
                    "size in bytes",
                    compressed.count().to_string(),
                    blob.size.to_string(),
                );
            }
            if compressed.digest() != blob.digest {
                return mismatch(
                    "digest",
                    compressed.digest().to_string(),
                    blob.digest.to_string(),
                );
            }
        }
        let (unpacked, found) = unpacked?;
        drained.map_err(|source| LayerError::Read {
            layer: layer(),
            source,
        })?;
        if &found != diff_id {
            return mismatch(
                "uncompressed digest (diff ID)",
                found.to_string(),
                diff_id.to_string(),
            );
        }
        let record = LayerRecord {
            diff_id: diff_id.clone(),
            bytes: unpacked.bytes,
            entries: unpacked.entries,
        };
        self.publish_layer(scratch.path(), &chain, &record)?;
        Ok(())
    }

    fn publish_layer(
        &self,
        scratch: &Path,
        chain: &Digest,
        record: &LayerRecord,
    ) -> Result<(), StoreError> {
        let (from, to) = (scratch.join("layer"), self.layer_path(chain));
        let publish = || -> io::Result<()> {
            std::fs::write(from.join("layer.json"), serde_json::to_vec(record)?)?;
            // One flush for all files of the layer, before the name says that they are there.
            rustix::fs::syncfs(File::open(&from)?)?;
            match std::fs::rename(&from, &to) {
                // Another process was faster with the same content.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    Ok(())
                }
                other => other,
            }
        };
        publish().map_err(failed("publishing the layer", &to))
    }

    pub(super) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    pub(super) fn layer_record(&self, chain: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.layer_path(chain).join("layer.json");
        match std::fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }
}

/// Unpacks a layer as it comes; returns what it came to and the digest of the uncompressed bytes.
fn unpack_compressed(
    compressed: &mut impl Read,
    layer: &Digest,
    fs: &Path,
    lowers: &[PathBuf],
    limits: &UnpackLimits,
) -> Result<(Unpacked, Digest), LayerError> {
    let unreadable = |source| LayerError::Read {
        layer: layer.clone(),
        source,
    };
    let mut tar = HashingReader::new(Bounded {
        inner: decompress(compressed).map_err(unreadable)?,
        left: limits.bytes,
    });
    let unpacked = unpack(&mut tar, fs, lowers, limits).map_err(|source| LayerError::Unpack {
        layer: layer.clone(),
        source,
    })?;
    io::copy(&mut tar, &mut io::sink()).map_err(unreadable)?;
    Ok((unpacked, tar.digest()))
}

/// Chain IDs of layers, bottom-most first as the diff IDs are.
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chains.push(diff_id.chained_on(chains.last()));
    }
    chains
}

/// Fails once more than the granted bytes were read: a compressed stream may stand for any number of them.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other("it unpacks to more than the limit of bytes; refused")
        })?;
        Ok(count)
    }
}
