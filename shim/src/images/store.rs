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
//! `layers` adds layers to it, `collect` removes what nothing leads to. Does not mount anything and does not know which pods exist; callers say which manifests are in use.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageConfiguration;
use thiserror::Error;

use super::digest::Digest;
use super::index::{self, Index, Record};
use super::layers::chain_ids;
use super::manifest::{self, Document, Manifest, ManifestError};
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

/// Keeps garbage collection away while an image is fetched or about to be mounted.
#[derive(Debug)]
pub struct Lease {
    _held: File,
}

/// The store of one host. Cheap to open; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) root: PathBuf,
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
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

    /// A directory for half-done work.
    pub(super) fn scratch(&self) -> Result<Scratch, StoreError> {
        let tmp = self.root.join("tmp");
        Scratch::new(&tmp).map_err(failed("making a directory in", &tmp))
    }

    /// Keeps other processes from pulling `name` until the file is dropped; `None` while one is at it.
    pub(super) fn try_lock_name(&self, name: &str) -> Result<Option<File>, StoreError> {
        let path = self
            .root
            .join("locks")
            .join(Digest::of(name.as_bytes()).hex());
        let file = index::open_lock(&path).map_err(failed("locking", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("locking", &path)(error)),
        }
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

    pub(super) fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.root.join("index.json");
        index::read(&path).map_err(failed("reading", &path))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Manifest, configuration and diff IDs (bottom-most first) of a stored image.
    pub(super) fn read_documents(
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
