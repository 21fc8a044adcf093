//! The content-addressed image store, shared by all pods and processes of a host.
//!
//! ```text
//! <root>/images/                  0700: layers hold setuid programs that no user of the host may reach
//!   index.json  index.lock        names -> manifest digests
//!   blobs/sha256/<hex>            manifests, indexes and configurations
//!   layers/<chain id>/fs/         an unpacked layer, as overlayfs takes it for a lower directory
//!   layers/<chain id>/layer.json  its diff ID and size
//!   tmp/                          half-done work, swept when its owner is gone
//!   locks/                        one file per name being pulled; `gc`: shared by users, exclusive to collect
//! ```
//!
//! Layers are kept by chain ID, as what a layer unpacks to may depend on those below it (hard links into them, links
//! among parents). The compressed layer is not kept: what is mounted is the unpacked one, and its diff ID was checked.
//! Does not mount anything and does not know which pods exist; callers say which manifests are in use.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digest::{Digest, HashingReader};
use super::index::{self, Index, Record};
use super::layer::compression::decompress;
use super::layer::unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
use super::manifest::{self, Content, Document, Manifest, ManifestError};
use super::reference::Reference;
use super::scratch::{self, Scratch};

/// Why the store could not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file operation.
    #[error("{doing} {path} of the image store failed")]
    Io {
        /// The step.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something that the index refers to is not there.
    #[error(
        "the image {name} is incomplete: {missing} is missing from the store; pull or import it again"
    )]
    Incomplete {
        /// The image.
        name: String,
        /// What is missing.
        missing: String,
    },
    /// A stored document is not what it was.
    #[error(
        "the image {name} in the store is damaged; remove it with `vmpod image rm` and pull or import it again"
    )]
    Damaged {
        /// The image.
        name: String,
        #[source]
        source: ManifestError,
    },
    /// `remove` of an image that a pod uses.
    #[error(
        "the image {name} is used by a pod; stop the pod first, or force the removal of the name"
    )]
    InUse {
        /// The image.
        name: String,
    },
    /// `remove` of a name that is not there.
    #[error("there is no image {name} in the store")]
    NotFound {
        /// The image.
        name: String,
    },
}

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

/// An image in the store, ready to run.
#[derive(Debug, Clone)]
pub struct Image {
    /// The normalised name by which it was found, e.g. `docker.io/library/busybox:latest`.
    pub name: String,
    /// Digest of its manifest; what a pod that uses it reports as in use.
    pub digest: Digest,
    /// Digest of the registry's index that led to the manifest, where there was one.
    pub index_digest: Option<Digest>,
    /// Digest of the configuration: the image ID of Docker and CRI.
    pub id: Digest,
    /// Environment, command, user, history and so on.
    pub config: ImageConfiguration,
    /// Directories of the unpacked layers, **top-most first**: the order of overlay's `lowerdir=`.
    pub layers: Vec<PathBuf>,
    /// Bytes of file content of all layers.
    pub size: u64,
    /// Seconds since the epoch when the name was last pulled or imported.
    pub updated: u64,
}

/// What `layer.json` says of a layer.
#[derive(Debug, Serialize, Deserialize)]
struct LayerRecord {
    diff_id: Digest,
    bytes: u64,
    entries: u64,
}

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

/// Keeps garbage collection away while an image is fetched or about to be mounted.
#[derive(Debug)]
pub struct Lease {
    _held: File,
}

/// The store of one host. Cheap to open; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io {
        doing,
        path,
        source,
    }
}

impl Store {
    /// Opens the store at `<root>/images`, making it if needed and sweeping what killed processes left.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.join("images"),
        };
        for folder in ["", "blobs/sha256", "layers", "tmp", "locks"] {
            let path = if folder.is_empty() {
                store.root.clone()
            } else {
                store.root.join(folder)
            };
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(failed("making the directory", &path))?;
        }
        std::fs::set_permissions(&store.root, std::fs::Permissions::from_mode(0o700))
            .map_err(failed("protecting the directory", &store.root))?;
        let tmp = store.root.join("tmp");
        let swept = scratch::sweep(&tmp).map_err(failed("sweeping", &tmp))?;
        if swept > 0 {
            tracing::info!(
                swept,
                "removed half-done image work of processes that are gone"
            );
        }
        Ok(store)
    }

    /// The directory of the store, `<root>/images`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Holds off garbage collection until dropped. Take one before [`Store::resolve`] when the image is going to be
    /// mounted, and drop it once the pod is on record as a user of the image.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let path = self.root.join("locks/gc");
        let held = index::open_lock(&path)
            .and_then(|file| file.lock_shared().map(|()| file))
            .map_err(failed("locking", &path))?;
        Ok(Lease { _held: held })
    }

    /// Looks an image up by name. A name with a digest is found by any name of the same repository.
    ///
    /// # Errors
    /// [`StoreError`]; a name that is not there is `Ok(None)`.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        let index = self.read_index()?;
        let name = reference.to_string();
        if let Some(record) = index.images.get(&name) {
            return self.load(&name, record).map(Some);
        }
        let Some(digest) = reference.digest() else {
            return Ok(None);
        };
        let repository = reference.name();
        let same = index.images.iter().find(|(other, record)| {
            Reference::parse(other).is_ok_and(|other| other.name() == repository)
                && (&record.manifest == digest || record.index.as_ref() == Some(digest))
        });
        same.map(|(_, record)| self.load(&name, record)).transpose()
    }

    /// Looks an image up by what a person or CRI may call it: a name, an image ID or manifest digest
    /// (`sha256:` optional), or at least 7 digits from the start of one.
    ///
    /// # Errors
    /// [`StoreError`]; what is not there is `Ok(None)`.
    pub fn find(&self, text: &str) -> Result<Option<Image>, StoreError> {
        if let Ok(reference) = Reference::parse(text)
            && let Some(image) = self.resolve(&reference)?
        {
            return Ok(Some(image));
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 7 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let matches = |digest: &Digest| digest.hex().starts_with(digits);
        Ok(self.list()?.into_iter().find(|image| {
            matches(&image.id)
                || matches(&image.digest)
                || image.index_digest.as_ref().is_some_and(matches)
        }))
    }

    /// All images by name. Images that are incomplete or damaged are left out with a warning in the log.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the index cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let index = self.read_index()?;
        let load = |(name, record): (&String, &Record)| match self.load(name, record) {
            Ok(image) => Some(image),
            Err(error) => {
                tracing::warn!(%name, %error, "left out of the list of images");
                None
            }
        };
        Ok(index.images.iter().filter_map(load).collect())
    }

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
        let found = self.find(name)?.map(|image| image.name);
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

    /// A directory for half-done work.
    pub(super) fn scratch(&self) -> Result<Scratch, StoreError> {
        let tmp = self.root.join("tmp");
        Scratch::new(&tmp).map_err(failed("making a directory in", &tmp))
    }

    /// Waits until no other process is pulling `name`, and keeps others from it. `Err` when that would block.
    pub(super) fn try_lock_name(&self, name: &str) -> Result<Result<File, File>, StoreError> {
        let path = self
            .root
            .join("locks")
            .join(Digest::of(name.as_bytes()).hex());
        let file = index::open_lock(&path).map_err(failed("locking", &path))?;
        Ok(if file.try_lock().is_ok() {
            Ok(file)
        } else {
            Err(file)
        })
    }

    /// Stores a manifest, an index or a configuration.
    pub(super) fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if path.is_file() {
            return Ok(digest);
        }
        let scratch = self.scratch()?;
        let temporary = scratch.path().join("blob");
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(failed("writing", &path))?;
        Ok(digest)
    }

    /// Reads a stored document and checks that it still is what its name says. `None` when it is missing or damaged.
    pub(super) fn get_blob(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes));
        match read {
            Ok(_) if &Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

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

    /// Makes `name` mean the image with this manifest, whose parts are all stored, and returns it.
    pub(super) fn set_name(
        &self,
        name: &str,
        manifest: &Digest,
        from_index: Option<&Digest>,
    ) -> Result<Image, StoreError> {
        let updated = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let record = Record {
            manifest: manifest.clone(),
            index: from_index.cloned(),
            updated,
        };
        let image = self.load(name, &record)?;
        let path = self.root.join("index.json");
        index::update(&path, |index| {
            index.images.insert(name.to_owned(), record);
            ((), true)
        })
        .map_err(failed("updating", &path))?;
        Ok(image)
    }

    fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.root.join("index.json");
        index::read(&path).map_err(failed("reading", &path))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    fn layer_record(&self, chain: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.layer_path(chain).join("layer.json");
        match std::fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Manifest, configuration and diff IDs (bottom-most first) of a stored image.
    fn read_documents(
        &self,
        name: &str,
        digest: &Digest,
    ) -> Result<(Manifest, ImageConfiguration, Vec<Digest>), StoreError> {
        let missing = |what: &str, digest: &Digest| StoreError::Incomplete {
            name: name.to_owned(),
            missing: format!("its {what} {digest}"),
        };
        let damaged = |source| StoreError::Damaged {
            name: name.to_owned(),
            source,
        };
        let bytes = self
            .get_blob(digest, manifest::MANIFEST_LIMIT)?
            .ok_or_else(|| missing("manifest", digest))?;
        let Document::Manifest(manifest) = manifest::parse(&bytes).map_err(damaged)? else {
            return Err(missing("manifest", digest));
        };
        let config = self
            .get_blob(&manifest.config.digest, manifest::CONFIG_LIMIT)?
            .ok_or_else(|| missing("configuration", &manifest.config.digest))?;
        let (config, diff_ids) =
            manifest::parse_config(&config, manifest.layers.len()).map_err(damaged)?;
        Ok((manifest, config, diff_ids))
    }

    fn load(&self, name: &str, record: &Record) -> Result<Image, StoreError> {
        let (manifest, config, diff_ids) = self.read_documents(name, &record.manifest)?;
        let mut layers = Vec::new();
        let mut size = 0_u64;
        for chain in chain_ids(&diff_ids) {
            let path = self.layer_path(&chain).join("fs");
            if !path.is_dir() {
                return Err(StoreError::Incomplete {
                    name: name.to_owned(),
                    missing: format!("its layer {chain}"),
                });
            }
            size = size.saturating_add(self.layer_record(&chain)?.map_or(0, |record| record.bytes));
            layers.push(path);
        }
        layers.reverse();
        Ok(Image {
            name: name.to_owned(),
            digest: record.manifest.clone(),
            index_digest: record.index.clone(),
            id: manifest.config.digest,
            config,
            layers,
            size,
            updated: record.updated,
        })
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
