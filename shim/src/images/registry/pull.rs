//! From a name to an image in the store: resolve, download layers side by side, unpack them in order, set the name.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::super::digest::Digest;
use super::super::import::Reporting;
use super::super::layer::unpack::UnpackLimits;
use super::super::layers::chain_ids;
use super::super::manifest::{self, Content, Document, Platform};
use super::super::progress::{Event, Progress};
use super::super::reference::Reference;
use super::super::store::{Image, Store, StoreError};
use super::certificates::CERTIFICATES_PATH;
use super::credentials::CredentialSource;
use super::endpoint::Mirror;
use super::fault::{PullCause, PullError};
use super::fetch::Fetcher;

/// When to ask the registry (Kubernetes API, `imagePullPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Always; layers that are there are not fetched again.
    Always,
    /// Only when the image is not in the store.
    #[default]
    IfNotPresent,
    /// Never: an image that is not in the store is an error.
    Never,
}

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// The platform to choose from an index.
    pub platform: Platform,
    /// Where credentials come from.
    pub credentials: CredentialSource,
    /// Hosts to ask before the registry of the name, in this order.
    pub mirrors: Vec<Mirror>,
    /// Hosts spoken to by plain http, `HOST` or `HOST:PORT`; loopback always is.
    pub insecure: Vec<String>,
    /// Folder of the certificates that are trusted for one host each, `HOST[:PORT]/*.crt`. A host that has some is spoken
    /// to by https even on loopback.
    pub certificates: PathBuf,
    /// Layers downloaded at once.
    pub parallel: usize,
    /// Tries for each document and layer and host.
    pub attempts: u32,
    /// Limit for a connection to come up.
    pub connect_timeout: Duration,
    /// Limit between two pieces of an answer.
    pub read_timeout: Duration,
    /// How much a layer may unpack to.
    pub limits: UnpackLimits,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            policy: PullPolicy::default(),
            platform: Platform::default(),
            credentials: CredentialSource::default(),
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certificates: CERTIFICATES_PATH.into(),
            parallel: 3,
            attempts: 4,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
            limits: UnpackLimits::default(),
        }
    }
}

/// What is going to be in the store.
struct Plan {
    name: String,
    manifest: Vec<u8>,
    digest: Digest,
    index: Option<(Digest, Vec<u8>)>,
    config: Vec<u8>,
    layers: Vec<PlannedLayer>,
}

/// A layer, bottom-most first, with what unpacking it takes.
#[derive(Clone)]
struct PlannedLayer {
    content: Content,
    diff_id: Digest,
    /// Chain IDs below, top-most first.
    below: Vec<Digest>,
    present: bool,
}

fn failed(reference: &Reference, cause: PullCause) -> PullError {
    PullError {
        name: reference.to_string(),
        cause,
    }
}

impl Store {
    /// Makes the image that `reference` means available, and returns it. Needs a Tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`PullError`] with the name and the cause. The store is then as before, but for whole layers, which a later
    /// pull uses and a collection takes.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        self.pull_checked(reference, options, progress)
            .await
            .map_err(|cause| failed(reference, cause))
    }

    async fn pull_checked(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullCause> {
        let name = reference.to_string();
        if let Some(image) = self.present(reference, options.policy)? {
            return Ok(image);
        }
        if options.policy == PullPolicy::Never {
            return Err(PullCause::NotPresent);
        }
        let _turn = self.wait_for_turn(&name, progress).await?;
        // Whoever had the lock before may have pulled the very image.
        if let Some(image) = self.present(reference, options.policy)? {
            return Ok(image);
        }
        let _lease = self.lease()?;
        let fetcher = Fetcher::new(reference, options, progress).await?;
        let plan = self.plan(&fetcher, reference, options).await?;
        let bytes = plan
            .layers
            .iter()
            .map(|layer| layer.content.size)
            .fold(0, u64::saturating_add);
        progress.event(Event::Resolved {
            name: &name,
            digest: &plan.digest,
            layers: plan.layers.len(),
            bytes,
        });
        self.fetch_layers(&fetcher, &plan, options, progress)
            .await?;
        self.put_blob(&plan.config)?;
        self.put_blob(&plan.manifest)?;
        if let Some((_, bytes)) = &plan.index {
            self.put_blob(bytes)?;
        }
        let image = self.set_name(
            &name,
            &plan.digest,
            plan.index.as_ref().map(|(digest, _)| digest),
        )?;
        progress.event(Event::Done {
            name: &name,
            digest: &plan.digest,
        });
        Ok(image)
    }

    /// The image, if the policy lets the store answer: what [`Self::pull`] looks for first, without a runtime.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub fn pulled(
        &self,
        reference: &Reference,
        policy: PullPolicy,
    ) -> Result<Option<Image>, Box<PullError>> {
        self.present(reference, policy)
            .map_err(|error| Box::new(failed(reference, error.into())))
    }

    /// The same, unnamed. An incomplete image counts as absent where it can be pulled again.
    fn present(
        &self,
        reference: &Reference,
        policy: PullPolicy,
    ) -> Result<Option<Image>, StoreError> {
        match (policy, self.resolve(reference)) {
            (PullPolicy::Always, _) => Ok(None),
            (
                PullPolicy::IfNotPresent,
                Err(StoreError::Incomplete { .. } | StoreError::Damaged { .. }),
            ) => Ok(None),
            (_, found) => found,
        }
    }

    async fn wait_for_turn(&self, name: &str, progress: &dyn Progress) -> Result<File, StoreError> {
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock_name(name)? {
                return Ok(lock);
            }
            if !told {
                progress.event(Event::Waiting { name });
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn plan(
        &self,
        fetcher: &Fetcher<'_>,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Plan, PullCause> {
        let name = reference.to_string();
        let mut fetched = fetcher.manifest(&name, reference.digest()).await?;
        let mut index = None;
        if let Document::Index(choices) = manifest::parse(&fetched.bytes)? {
            let chosen = manifest::choose(&choices, &options.platform)?;
            let bytes = std::mem::take(&mut fetched.bytes);
            index = Some((fetched.digest, bytes));
            fetched = fetcher.manifest(&name, Some(&chosen.digest)).await?;
        }
        let Document::Manifest(parsed) = manifest::parse(&fetched.bytes)? else {
            return Err(manifest::ManifestError::Kind("an index in an index".into()).into());
        };
        let config = match self.get_blob(&parsed.config.digest, manifest::CONFIG_LIMIT)? {
            Some(known) => known,
            None => {
                fetcher
                    .document(
                        "the image configuration",
                        &parsed.config,
                        manifest::CONFIG_LIMIT,
                    )
                    .await?
            }
        };
        let (parsed_config, diff_ids) = manifest::parse_config(&config, parsed.layers.len())?;
        manifest::check_platform(&parsed_config, &options.platform)?;
        let chains = chain_ids(&diff_ids);
        let layers = parsed
            .layers
            .into_iter()
            .zip(diff_ids)
            .zip(&chains)
            .enumerate()
            .map(|(at, ((content, diff_id), chain))| PlannedLayer {
                content,
                diff_id,
                below: chains.iter().take(at).rev().cloned().collect(),
                present: self.has_layer(chain),
            })
            .collect();
        Ok(Plan {
            name,
            manifest: fetched.bytes,
            digest: fetched.digest,
            index,
            config,
            layers,
        })
    }

    /// Downloads ahead while unpacking in order: what a layer unpacks to may depend on those below.
    async fn fetch_layers(
        &self,
        fetcher: &Fetcher<'_>,
        plan: &Plan,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<(), PullCause> {
        let scratch = self.scratch()?;
        tracing::debug!(name = %plan.name, layers = plan.layers.len(), "pulling");
        let parallel = options.parallel.clamp(1, 16);
        let (ready, mut to_unpack) = mpsc::channel::<(PlannedLayer, PathBuf)>(parallel);
        let download = async {
            let mut downloads = stream::iter(plan.layers.iter().enumerate())
                .map(|(at, layer)| {
                    let path = scratch.path().join(format!("{at}.blob"));
                    async move {
                        if !layer.present {
                            fetcher.layer(&layer.content, &path).await?;
                        }
                        Ok::<_, PullCause>((layer.clone(), path))
                    }
                })
                .buffered(parallel);
            while let Some(layer) = downloads.try_next().await? {
                if ready.send(layer).await.is_err() {
                    break;
                }
            }
            drop(ready);
            Ok(())
        };
        let unpack = async {
            while let Some((layer, path)) = to_unpack.recv().await {
                if layer.present {
                    progress.event(Event::LayerPresent {
                        layer: &layer.content.digest,
                    });
                    continue;
                }
                self.unpack_downloaded(&layer, &path, options.limits, progress)
                    .await?;
                progress.event(Event::LayerDone {
                    layer: &layer.content.digest,
                });
                let removed = tokio::fs::remove_file(&path).await;
                removed.map_err(|source| PullCause::Io {
                    doing: "removing a downloaded layer",
                    source,
                })?;
            }
            Ok(())
        };
        tokio::try_join!(download, unpack).map(|_| ())
    }

    async fn unpack_downloaded(
        &self,
        layer: &PlannedLayer,
        path: &std::path::Path,
        limits: UnpackLimits,
        progress: &dyn Progress,
    ) -> Result<(), PullCause> {
        let (told, mut tells) = mpsc::unbounded_channel::<u64>();
        let (store, planned, path) = (self.clone(), layer.clone(), path.to_path_buf());
        let work = tokio::task::spawn_blocking(move || -> Result<(), PullCause> {
            let file = File::open(&path).map_err(|source| PullCause::Io {
                doing: "opening a downloaded layer",
                source,
            })?;
            // Nobody listens any more when the pull was given up; the layer is then finished for the next one.
            let reader = Reporting::new(file, move |done| {
                let _ = told.send(done);
            });
            store.add_layer(
                reader,
                Some(&planned.content),
                &planned.diff_id,
                &planned.below,
                &limits,
            )?;
            Ok(())
        });
        // The channel closes when the work is done, also when it panics.
        while let Some(done) = tells.recv().await {
            progress.event(Event::LayerUnpacking {
                layer: &layer.content.digest,
                done,
                total: layer.content.size,
            });
        }
        work.await.map_err(|error| PullCause::Io {
            doing: "unpacking a layer",
            source: std::io::Error::other(error),
        })?
    }
}
