//! Removing names, and the layers and documents that nothing leads to any more.
//!
//! Which images pods use is the caller's knowledge; whoever is about to use one holds a `Lease`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::digest::Digest;
use super::index;
use super::layers::chain_ids;
use super::reference::Reference;
use super::store::{Store, StoreError, failed};

/// What a garbage collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: usize,
    /// Manifests, indexes and configurations.
    pub blobs: usize,
    /// Bytes of file content of those layers.
    pub bytes: u64,
    /// Another process was using the store, so nothing was removed now.
    pub postponed: bool,
}

impl Store {
    /// Removes a name. Layers that no name and no pod needs any more go with it, unless another process is just
    /// using the store (then the next collection takes them).
    ///
    /// `in_use`: manifest digests of images that pods run from. Without `force` the last name of such an image stays;
    /// with it only the name goes, never the layers under a running pod.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::InUse`], [`StoreError::Io`].
    pub fn remove(
        &self,
        name: &str,
        in_use: &BTreeSet<Digest>,
        force: bool,
    ) -> Result<Collected, StoreError> {
        // An image that is incomplete or damaged cannot be loaded, and all the more has to be removable.
        let found = match self.find(name) {
            Err(StoreError::Incomplete { .. } | StoreError::Damaged { .. }) => None,
            other => other?.map(|image| image.name),
        };
        let key = found
            .or_else(|| {
                Reference::parse(name)
                    .ok()
                    .map(|reference| reference.to_string())
            })
            .unwrap_or_else(|| name.to_owned());
        let path = self.root.join("index.json");
        let outcome = index::update(&path, |index| {
            let Some(record) = index.images.get(&key).cloned() else {
                return (
                    Err(StoreError::NotFound {
                        name: name.to_owned(),
                    }),
                    false,
                );
            };
            let other_names = index
                .images
                .iter()
                .any(|(other, found)| other != &key && found.manifest == record.manifest);
            if in_use.contains(&record.manifest) && !other_names && !force {
                return (Err(StoreError::InUse { name: key.clone() }), false);
            }
            index.images.remove(&key);
            (Ok(()), true)
        });
        outcome.map_err(failed("updating", &path))??;
        self.gc_unreferenced(in_use)
    }

    /// Removes layers and documents that no name leads to and no pod uses.
    ///
    /// Does nothing (and says so in [`Collected::postponed`]) while another process holds a [`Lease`].
    ///
    /// # Errors
    /// [`StoreError`]. Nothing is removed if any document in use cannot be read.
    pub fn gc_unreferenced(&self, in_use: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let path = self.root.join("locks/gc");
        let lock = index::open_lock(&path).map_err(failed("locking", &path))?;
        if lock.try_lock().is_err() {
            return Ok(Collected {
                postponed: true,
                ..Collected::default()
            });
        }
        let index = self.read_index()?;
        let mut blobs: BTreeSet<Digest> = BTreeSet::new();
        let mut layers: BTreeSet<Digest> = BTreeSet::new();
        for record in index.images.values() {
            blobs.extend(record.index.clone());
        }
        let roots = index
            .images
            .values()
            .map(|record| &record.manifest)
            .chain(in_use);
        for manifest in roots {
            if !blobs.insert(manifest.clone()) {
                continue;
            }
            let name = manifest.to_string();
            match self.read_documents(&name, manifest) {
                Ok((manifest, _, diff_ids)) => {
                    blobs.insert(manifest.config.digest);
                    layers.extend(chain_ids(&diff_ids));
                }
                // An image that cannot be used any more has nothing worth keeping.
                Err(StoreError::Incomplete { .. } | StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut collected = Collected::default();
        let folder = self.root.join("layers");
        let trash = self.scratch()?;
        for (chain, path) in digests_in(&folder)? {
            if layers.contains(&chain) {
                continue;
            }
            collected.bytes += self.layer_record(&chain)?.map_or(0, |record| record.bytes);
            // Renamed first, so that a crash leaves no layer that looks whole and is not.
            std::fs::rename(&path, trash.path().join(chain.hex()))
                .map_err(failed("removing", &path))?;
            collected.layers += 1;
        }
        for (blob, path) in digests_in(&self.root.join("blobs/sha256"))? {
            if !blobs.contains(&blob) {
                std::fs::remove_file(&path).map_err(failed("removing", &path))?;
                collected.blobs += 1;
            }
        }
        Ok(collected)
    }
}

/// Entries of a directory whose names are digests.
fn digests_in(folder: &Path) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(failed("reading", folder))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", folder))?;
        if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
            found.push((digest, entry.path()));
        }
    }
    Ok(found)
}
