//! Images from files: OCI layouts (directory or tar) and what `docker save` writes, old and new; plain, gzip or zstd.
//!
//! `source` opens members of a directory or a tar file, `docker` reads `manifest.json`, `layout` reads `index.json`.
//! Blocking: callers in async code run it on a blocking thread.

mod docker;
mod layout;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::Digest;
use super::layer::tar_stream::TarError;
use super::layer::unpack::UnpackLimits;
use super::layers::{LayerError, chain_ids};
use super::manifest::{self, Content, ManifestError, Platform};
use super::progress::{Event, Progress};
use super::reference::{Reference, ReferenceError};
use super::store::{Image, Store, StoreError};
use source::Source;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name to give, instead of the archive's own. Only for archives that hold one image.
    pub name: Option<Reference>,
    /// The platform to choose from an index; linux/amd64 unless set.
    pub platform: Platform,
    /// How much a layer may unpack to.
    pub limits: UnpackLimits,
}

/// Why an import failed. Nothing of it stays in the store but whole layers, which the next collection takes.
#[derive(Debug, Error)]
#[error("importing {} failed", path.display())]
pub struct ImportError {
    /// The archive.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub cause: ImportCause,
}

/// What went wrong in an import.
#[derive(Debug, Error)]
pub enum ImportCause {
    /// A file operation on the archive.
    #[error("{doing} failed")]
    Io {
        /// The step.
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// The archive is not a good tar file.
    #[error("it is not a usable tar archive")]
    Tar(#[from] TarError),
    /// A file that has to be in the archive is not.
    #[error("{member} is missing from it")]
    Missing {
        /// The member.
        member: String,
    },
    /// Neither an OCI layout nor a docker archive.
    #[error(
        "it is neither an OCI image layout (with index.json) nor a docker archive (with manifest.json); `docker save`, `podman save`, `skopeo copy` and `ctr image export` write such files"
    )]
    UnknownForm,
    /// A document of the archive does not have the digest that leads to it.
    #[error("the document {expected} has the digest {found}; the archive is damaged")]
    Digest {
        /// As referred to.
        expected: Digest,
        /// As found.
        found: Digest,
    },
    /// A document of the archive.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A name in the archive or a missing one.
    #[error("the image in it has no name; give one with --name")]
    NoName,
    /// A name in the archive that cannot be used.
    #[error("a name in it cannot be used")]
    Name(#[from] ReferenceError),
    /// One name for several images.
    #[error(
        "it holds {count} images, so one name cannot be given to them; import it without --name"
    )]
    SeveralImages {
        /// Number of images.
        count: usize,
    },
    /// Nothing to import.
    #[error("it holds no image")]
    Empty,
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One image of an archive, found but not yet imported.
struct Found {
    /// Names the archive gives it.
    names: Vec<String>,
    /// The manifest, as bytes that are stored.
    manifest: Vec<u8>,
    /// Digest of the index the manifest was chosen from, where names meant that.
    index: Option<(Digest, Vec<u8>)>,
    config: Vec<u8>,
    /// Layers bottom-most first: what the manifest says and the archive's member.
    layers: Vec<(Content, String)>,
}

impl Store {
    /// Imports all images of an OCI layout (directory or tar) or a docker archive, compressed or not.
    /// Returns them under the names they now have, one per name. Blocks.
    ///
    /// # Errors
    /// [`ImportError`] naming the file and the cause.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImportError> {
        self.import_from(path, options, progress)
            .map_err(|cause| ImportError {
                path: path.to_path_buf(),
                cause,
            })
    }

    fn import_from(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImportCause> {
        let scratch = self.scratch()?;
        let _lease = self.lease()?;
        let source = Source::open(path, scratch.path(), &options.limits)?;
        let found = if source.has("index.json") && source.has("oci-layout") {
            layout::images(&source, &options.platform)?
        } else if source.has("manifest.json") {
            docker::images(&source)?
        } else {
            return Err(ImportCause::UnknownForm);
        };
        let names: Vec<Vec<Reference>> = match &options.name {
            Some(name) if found.len() == 1 => vec![vec![name.clone()]],
            Some(_) => return Err(ImportCause::SeveralImages { count: found.len() }),
            None => found
                .iter()
                .map(|image| {
                    image
                        .names
                        .iter()
                        .map(|name| Reference::parse(name))
                        .collect::<Result<_, _>>()
                })
                .collect::<Result<_, _>>()?,
        };
        if found.is_empty() {
            return Err(ImportCause::Empty);
        }
        if names.iter().any(Vec::is_empty) {
            return Err(ImportCause::NoName);
        }
        let mut imported = Vec::new();
        for (image, names) in found.iter().zip(&names) {
            imported.extend(self.import_one(&source, image, names, options, progress)?);
        }
        Ok(imported)
    }

    fn import_one(
        &self,
        source: &Source,
        image: &Found,
        names: &[Reference],
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImportCause> {
        let (config, diff_ids) = manifest::parse_config(&image.config, image.layers.len())?;
        manifest::check_platform(&config, &options.platform)?;
        let chains = chain_ids(&diff_ids);
        let digest = Digest::of(&image.manifest);
        let name = names.first().map(ToString::to_string).unwrap_or_default();
        let bytes = image
            .layers
            .iter()
            .map(|(layer, _)| layer.size)
            .fold(0, u64::saturating_add);
        progress.event(Event::Resolved {
            name: &name,
            digest: &digest,
            layers: chains.len(),
            bytes,
        });
        for (at, ((layer, member), diff_id)) in image.layers.iter().zip(&diff_ids).enumerate() {
            if chains.get(at).is_some_and(|chain| self.has_layer(chain)) {
                progress.event(Event::LayerPresent {
                    layer: &layer.digest,
                });
                continue;
            }
            let below: Vec<Digest> = chains.iter().take(at).rev().cloned().collect();
            let tell = |done| {
                progress.event(Event::LayerUnpacking {
                    layer: &layer.digest,
                    done,
                    total: layer.size,
                })
            };
            let reader = Reporting::new(source.open_member(member)?, tell);
            self.add_layer(reader, Some(layer), diff_id, &below, &options.limits)?;
            progress.event(Event::LayerDone {
                layer: &layer.digest,
            });
        }
        self.put_blob(&image.config)?;
        self.put_blob(&image.manifest)?;
        let index = image
            .index
            .as_ref()
            .map(|(digest, bytes)| self.put_blob(bytes).map(|_| digest))
            .transpose()?;
        let mut imported = Vec::new();
        for name in names {
            let name = name.to_string();
            imported.push(self.set_name(&name, &digest, index)?);
            progress.event(Event::Done {
                name: &name,
                digest: &digest,
            });
        }
        Ok(imported)
    }
}

/// Tells how many bytes of a layer have been read, every quarter of a mebibyte and at the end.
pub(super) struct Reporting<R, F> {
    inner: R,
    tell: F,
    done: u64,
    told: u64,
}

impl<R: io::Read, F: FnMut(u64)> Reporting<R, F> {
    pub(super) fn new(inner: R, tell: F) -> Self {
        Self {
            inner,
            tell,
            done: 0,
            told: 0,
        }
    }
}

impl<R: io::Read, F: FnMut(u64)> io::Read for Reporting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done = self.done.saturating_add(count as u64);
        if (count == 0 && self.told < self.done) || self.done - self.told >= 256 << 10 {
            self.told = self.done;
            (self.tell)(self.done);
        }
        Ok(count)
    }
}
