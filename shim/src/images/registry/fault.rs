//! Why a pull failed, in words that say what to do, and whether trying again may help.

use std::error::Error;
use std::io;

use oci_client::errors::{OciDistributionError, OciErrorCode};
use thiserror::Error;

use super::super::digest::Digest;
use super::super::layers::LayerError;
use super::super::manifest::ManifestError;
use super::super::store::StoreError;
use super::credentials::CredentialError;

/// A pull that failed.
#[derive(Debug, Error)]
#[error("pulling the image {name} failed")]
pub struct PullError {
    /// The normalised name.
    pub name: String,
    /// Why.
    #[source]
    pub cause: PullCause,
}

/// What went wrong in a pull.
#[derive(Debug, Error)]
pub enum PullCause {
    /// The policy is Never.
    #[error(
        "it is not in the store, and the pull policy says never to pull; pull it with `vmpod pull` or import it with `vmpod image import`"
    )]
    NotPresent,
    /// The registry has no such image.
    #[error("the registry {host} has no such image ({detail}); check the name and the tag")]
    NotFound {
        /// Host asked.
        host: String,
        /// The registry's words.
        detail: String,
    },
    /// The registry refuses.
    #[error("the registry {host} refuses access ({detail}); {advice}")]
    Unauthorized {
        /// Host asked.
        host: String,
        /// The registry's words.
        detail: String,
        /// What to do.
        advice: &'static str,
    },
    /// The name of the registry means nothing.
    #[error(
        "the registry {host} cannot be found: its name does not resolve ({detail}); check the image's name and this host's DNS"
    )]
    UnknownHost {
        /// Host asked.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// No connection.
    #[error("the registry {host} cannot be reached: {detail}")]
    Unreachable {
        /// Host asked.
        host: String,
        /// What the system said.
        detail: String,
    },
    /// No TLS session.
    #[error(
        "no secure connection to the registry {host}: {detail}; if it speaks plain http, list it as an insecure host"
    )]
    Tls {
        /// Host asked.
        host: String,
        /// What the TLS library said.
        detail: String,
    },
    /// Any other answer of a registry.
    #[error("the registry {host} failed while {doing}: {detail}")]
    Registry {
        /// Host asked.
        host: String,
        /// What was wanted.
        doing: String,
        /// What it said.
        detail: String,
        /// Whether trying again may help.
        transient: bool,
    },
    /// The registry gave other bytes than the image names.
    #[error(
        "the registry {host} gave wrong content for {what}: its {property} is {found}, expected {expected}; refused"
    )]
    Content {
        /// Host asked.
        host: String,
        /// Document or layer.
        what: String,
        /// Digest or size.
        property: &'static str,
        /// As found.
        found: String,
        /// As wanted.
        expected: String,
    },
    /// The image's documents.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Unpacking.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No space, inodes or quota left for a download.
    #[error(
        "the disk that holds the image store is full; free space there, or remove images that no pod uses with `vmpod image rm` and `vmpod gc`"
    )]
    DiskFull {
        #[source]
        source: io::Error,
    },
    /// A local file or task.
    #[error("{doing} failed")]
    Io {
        /// The step.
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// The registry client could not be set up.
    #[error("the registry client could not be set up: {0}")]
    Client(String),
    /// A certificate that the host keeps for a registry cannot be used.
    #[error("the registry certificate {} cannot be read: {message}", path.display())]
    Certificate {
        /// The file or its folder.
        path: std::path::PathBuf,
        /// Why.
        message: String,
    },
    /// The registry of the name failed after mirrors had failed too.
    #[error("{last}; its mirrors failed as well: {mirrors}")]
    WithMirrors {
        /// What the registry of the name said.
        last: Box<PullCause>,
        /// What the mirrors said.
        mirrors: String,
    },
}

impl PullCause {
    /// Whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Registry {
                transient: true,
                ..
            } | Self::Content { .. }
        )
    }

    /// A download that could not be written.
    pub(super) fn of_disk(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { source },
            _ => Self::Io {
                doing: "writing a layer into the image store",
                source,
            },
        }
    }

    /// A wrong digest or size.
    pub(super) fn content(
        host: &str,
        what: &str,
        property: &'static str,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Content {
            host: host.to_owned(),
            what: what.to_owned(),
            property,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// Bytes whose digest is not the one asked for.
    pub(super) fn wrong_digest(host: &str, what: &str, found: &Digest, expected: &Digest) -> Self {
        Self::content(host, what, "digest", found, expected)
    }

    /// Makes a cause of what the registry client says.
    pub(super) fn of_client(
        host: &str,
        doing: &str,
        authenticated: bool,
        error: &OciDistributionError,
    ) -> Self {
        let host = host.to_owned();
        let unauthorized = |detail: String| Self::Unauthorized {
            host: host.clone(),
            detail,
            advice: if authenticated {
                "the credentials were not accepted for this image: log in again with `docker login`, or check the name"
            } else {
                "no credentials were given: log in with `docker login` if the image is private, or check the name"
            },
        };
        match error {
            OciDistributionError::UnauthorizedError { .. } => {
                unauthorized("401 unauthorized".into())
            }
            OciDistributionError::AuthenticationFailure(detail) => unauthorized(shortened(detail)),
            OciDistributionError::ImageManifestNotFoundError(detail) => Self::NotFound {
                host,
                detail: shortened(detail),
            },
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.first();
                let said = first.map_or_else(
                    || "no reason given".to_owned(),
                    |error| shortened(&error.message),
                );
                match first.map(|error| &error.code) {
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::NameInvalid,
                    ) => Self::NotFound { host, detail: said },
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => unauthorized(said),
                    Some(OciErrorCode::Toomanyrequests) => Self::Registry {
                        host,
                        doing: doing.into(),
                        detail: format!("too many requests: {said}"),
                        transient: true,
                    },
                    _ => Self::Registry {
                        host,
                        doing: doing.into(),
                        detail: said,
                        transient: false,
                    },
                }
            }
            OciDistributionError::ServerError {
                code: 404, message, ..
            } => Self::NotFound {
                host,
                detail: format!("404 {}", shortened(message)),
            },
            OciDistributionError::ServerError {
                code: 403, message, ..
            } => unauthorized(format!("403 {}", shortened(message))),
            OciDistributionError::ServerError { code, message, .. } => {
                let transient = matches!(code, 408 | 425 | 429) || *code >= 500;
                Self::Registry {
                    host,
                    doing: doing.into(),
                    detail: format!("HTTP status {code} {}", shortened(message)),
                    transient,
                }
            }
            OciDistributionError::RequestError(error) => {
                let is_connect = error.is_connect();
                Self::of_connection(host, doing, is_connect, &chain(error))
            }
            OciDistributionError::IoError(error) => Self::Registry {
                host,
                doing: doing.into(),
                detail: chain(error),
                transient: true,
            },
            OciDistributionError::DigestError(error) => Self::Content {
                host,
                what: doing.into(),
                property: "digest",
                found: shortened(&error.to_string()),
                expected: "the one asked for".into(),
            },
            other => Self::Registry {
                host,
                doing: doing.into(),
                detail: shortened(&other.to_string()),
                transient: false,
            },
        }
    }

    /// Tells causes apart by the words of the libraries below, as they give no types for them.
    fn of_connection(host: String, doing: &str, is_connect: bool, detail: &str) -> Self {
        let lower = detail.to_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let detail = shortened(detail);
        if says(&["dns error", "failed to lookup address"]) {
            if says(&["temporary failure"]) {
                return Self::Registry {
                    host,
                    doing: doing.into(),
                    detail,
                    transient: true,
                };
            }
            return Self::UnknownHost { host, detail };
        }
        if is_connect
            && says(&[
                "certificate",
                "tls",
                "invalidcontenttype",
                "corrupt message",
                "handshake",
            ])
        {
            return Self::Tls { host, detail };
        }
        if is_connect && says(&["refused", "unreachable", "no route", "permission denied"]) {
            return Self::Unreachable { host, detail };
        }
        Self::Registry {
            host,
            doing: doing.into(),
            detail,
            transient: true,
        }
    }
}

/// An error with its sources, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// What a registry says may be a whole web page.
fn shortened(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(400).collect()
}
