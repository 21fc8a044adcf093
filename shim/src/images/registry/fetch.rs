//! Documents and layers from registry hosts: each host tried in turn, transient failures tried again with growing
//! pauses, sizes and digests checked before anything is believed.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::Client;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::super::digest::Digest;
use super::super::manifest::{self, Content};
use super::super::progress::{Event, Progress};
use super::super::reference::Reference;
use super::certificates;
use super::endpoint::{Endpoint, endpoints, is_plain_http};
use super::fault::PullCause;
use super::pull::PullOptions;

/// The first pause before trying again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A session with the hosts that may have one image.
pub(super) struct Fetcher<'a> {
    client: Client,
    endpoints: Vec<Endpoint>,
    auths: HashMap<String, RegistryAuth>,
    attempts: u32,
    progress: &'a dyn Progress,
}

/// A manifest or index as a host gave it.
pub(super) struct FetchedManifest {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
}

/// Sets the implementation of TLS's cryptography, which the registry client does not bring along.
pub(super) fn provide_cryptography() {
    // An error says that one is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl<'a> Fetcher<'a> {
    /// Looks up credentials for all hosts that will be asked.
    pub(super) async fn new(
        reference: &Reference,
        options: &PullOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, PullCause> {
        let endpoints = endpoints(reference, &options.mirrors);
        let (mut plain, mut trusted) = (Vec::new(), Vec::new());
        for endpoint in &endpoints {
            let own = certificates::for_host(&options.certificates, &endpoint.host)?;
            if own.is_empty() && is_plain_http(&endpoint.host, &options.insecure) {
                plain.push(endpoint.host.clone());
            }
            trusted.extend(own);
        }
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            extra_root_certificates: trusted,
            connect_timeout: Some(options.connect_timeout),
            // Time without a single byte, not time for the whole of it.
            read_timeout: Some(options.read_timeout),
            user_agent: concat!("vmpod/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        provide_cryptography();
        let client =
            Client::try_from(config).map_err(|error| PullCause::Client(error.to_string()))?;
        let mut auths = HashMap::new();
        for endpoint in &endpoints {
            let auth = options.credentials.for_host(&endpoint.host).await?;
            client.store_auth_if_needed(&endpoint.host, &auth).await;
            auths.insert(endpoint.host.clone(), auth);
        }
        Ok(Self {
            client,
            endpoints,
            auths,
            attempts: options.attempts.max(1),
            progress,
        })
    }

    /// The manifest or index that the name (or `digest`) means.
    pub(super) async fn manifest(
        &self,
        name: &str,
        wanted: Option<&Digest>,
    ) -> Result<FetchedManifest, PullCause> {
        let what = wanted.map_or_else(
            || "the manifest".to_owned(),
            |digest| format!("the manifest {digest}"),
        );
        self.asking_each(&what, async |endpoint: &Endpoint| {
            self.progress.event(Event::Resolving {
                name,
                from: &endpoint.host,
            });
            let reference = match wanted {
                Some(digest) => endpoint.reference.clone_with_digest(digest.to_string()),
                None => endpoint.reference.clone(),
            };
            let auth = self
                .auths
                .get(&endpoint.host)
                .unwrap_or(&RegistryAuth::Anonymous);
            let (bytes, _) = self
                .client
                .pull_manifest_raw(&reference, auth, &manifest::ACCEPTED)
                .await
                .map_err(|error| {
                    PullCause::of_client(
                        &endpoint.host,
                        &format!("giving {what}"),
                        auth != &RegistryAuth::Anonymous,
                        &error,
                    )
                })?;
            // The client compares with what the registry's header says; what counts is what was asked for.
            let digest = Digest::of(&bytes);
            match wanted {
                Some(wanted) if wanted != &digest => Err(PullCause::wrong_digest(
                    &endpoint.host,
                    &what,
                    &digest,
                    wanted,
                )),
                _ => Ok(FetchedManifest {
                    bytes: bytes.to_vec(),
                    digest,
                }),
            }
        })
        .await
    }

    /// A document of known digest and size, in memory.
    pub(super) async fn document(
        &self,
        what: &str,
        content: &Content,
        limit: u64,
    ) -> Result<Vec<u8>, PullCause> {
        if content.size > limit {
            return Err(manifest::ManifestError::TooLarge {
                what: "image configuration",
                limit,
            }
            .into());
        }
        self.asking_each(what, async |endpoint: &Endpoint| {
            let mut bytes = Vec::new();
            self.stream(endpoint, what, content, async |chunk: &[u8]| {
                bytes.extend_from_slice(chunk);
                Ok(())
            })
            .await?;
            Ok(bytes)
        })
        .await
    }

    /// Downloads a layer into a file. When this returns `Ok`, the file has the layer's size and digest.
    pub(super) async fn layer(&self, content: &Content, to: &Path) -> Result<(), PullCause> {
        let what = format!("layer {}", content.digest);
        self.asking_each(&what, async |endpoint: &Endpoint| {
            let file = tokio::fs::File::create(to)
                .await
                .map_err(PullCause::of_disk)?;
            let mut file = tokio::io::BufWriter::with_capacity(512 << 10, file);
            let (mut done, mut told) = (0_u64, 0_u64);
            self.progress.event(Event::LayerBytes {
                layer: &content.digest,
                done: 0,
                total: content.size,
            });
            self.stream(endpoint, &what, content, async |chunk: &[u8]| {
                file.write_all(chunk).await.map_err(PullCause::of_disk)?;
                done += chunk.len() as u64;
                if done - told >= 256 << 10 || done == content.size {
                    told = done;
                    self.progress.event(Event::LayerBytes {
                        layer: &content.digest,
                        done,
                        total: content.size,
                    });
                }
                Ok(())
            })
            .await?;
            file.flush().await.map_err(PullCause::of_disk)
        })
        .await
    }

    /// Reads a blob, handing on each piece, and checks size and digest.
    async fn stream(
        &self,
        endpoint: &Endpoint,
        what: &str,
        content: &Content,
        mut each: impl AsyncFnMut(&[u8]) -> Result<(), PullCause>,
    ) -> Result<(), PullCause> {
        let host = endpoint.host.as_str();
        let authenticated = self
            .auths
            .get(host)
            .is_some_and(|auth| auth != &RegistryAuth::Anonymous);
        let descriptor = OciDescriptor {
            digest: content.digest.to_string(),
            ..OciDescriptor::default()
        };
        let blob = self
            .client
            .pull_blob_stream_partial(&endpoint.reference, &descriptor, 0, None)
            .await
            .map_err(|error| {
                PullCause::of_client(host, &format!("giving {what}"), authenticated, &error)
            })?;
        let mut stream = match blob {
            oci_client::client::BlobResponse::Full(sized)
            | oci_client::client::BlobResponse::Partial(sized) => sized.stream,
        };
        let mut hasher = Sha256::new();
        let mut size = 0_u64;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| {
                let detail = super::fault::chain(&error);
                // The client's own check of the digest comes as an error of the stream.
                if detail.to_lowercase().contains("digest") {
                    return PullCause::content(host, what, "digest", detail, &content.digest);
                }
                PullCause::Registry {
                    host: host.to_owned(),
                    doing: format!("giving {what}"),
                    detail,
                    transient: true,
                }
            })?;
            size = size.saturating_add(chunk.len() as u64);
            if size > content.size {
                return Err(PullCause::content(
                    host,
                    what,
                    "size in bytes",
                    format!("more than {}", content.size),
                    content.size,
                ));
            }
            hasher.update(&chunk);
            each(&chunk).await?;
        }
        if size != content.size {
            return Err(PullCause::content(
                host,
                what,
                "size in bytes",
                size,
                content.size,
            ));
        }
        let found = Digest::finish(hasher);
        if found != content.digest {
            return Err(PullCause::wrong_digest(host, what, &found, &content.digest));
        }
        Ok(())
    }

    /// Tries each host in turn, and each several times while its failures may pass.
    async fn asking_each<T, F>(&self, what: &str, fetch: F) -> Result<T, PullCause>
    where
        F: AsyncFn(&Endpoint) -> Result<T, PullCause>,
    {
        let mut mirrors: Vec<String> = Vec::new();
        for endpoint in &self.endpoints {
            let error = match self.with_retries(what, || fetch(endpoint)).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            // A full disk is not the fault of a host.
            if matches!(error, PullCause::Io { .. } | PullCause::DiskFull { .. }) {
                return Err(error);
            }
            if endpoint.is_mirror {
                let text = error.to_string();
                tracing::warn!(host = %endpoint.host, error = %text, "a mirror failed; asking the next");
                self.progress.event(Event::Retrying {
                    what,
                    reason: &text,
                    wait: Duration::ZERO,
                });
                mirrors.push(text);
            } else if mirrors.is_empty() {
                return Err(error);
            } else {
                return Err(PullCause::WithMirrors {
                    last: Box::new(error),
                    mirrors: mirrors.join("; "),
                });
            }
        }
        Err(PullCause::Client("there is no host to ask".into()))
    }

    async fn with_retries<T, Fut: Future<Output = Result<T, PullCause>>>(
        &self,
        what: &str,
        fetch: impl Fn() -> Fut,
    ) -> Result<T, PullCause> {
        let mut pause = FIRST_PAUSE;
        let mut wrong_content = false;
        for attempt in 1.. {
            let error = match fetch().await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let is_content = matches!(error, PullCause::Content { .. });
            // Wrong content once may be a cut connection; twice it is what the registry has.
            if !error.is_transient() || attempt >= self.attempts || (is_content && wrong_content) {
                return Err(error);
            }
            wrong_content |= is_content;
            self.progress.event(Event::Retrying {
                what,
                reason: &error.to_string(),
                wait: pause,
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(PullCause::Client("no attempt was made".into()))
    }
}
