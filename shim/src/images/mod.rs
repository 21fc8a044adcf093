//! Container images: references, pull, import, the content-addressed store, unpacked layers.
//!
//! - `reference`: names as people write them, normalised.
//! - `store`, `index`, `scratch`: `<root>/images`, shared by all pods and processes.
//! - `layers`, `collect`: unpacked layers added to the store, and removed when nothing leads to them.
//! - `manifest`: manifests, indexes and configurations, checked.
//! - `layer`: tar streams of strangers, unpacked safely into overlay-ready directories.
//! - `import`: OCI layouts and docker archives.
//! - `registry`: pulling, with mirrors, credentials and retries.
//! - `user`: `User` of an image as numbers.
//! - `progress`: what a pull or an import tells while it works.
//!
//! Nothing here mounts, runs or knows of pods: callers pass which manifests are in use.

mod collect;
mod digest;
mod import;
mod index;
mod layer;
mod layers;
mod manifest;
mod progress;
mod reference;
mod registry;
mod scratch;
mod store;
mod user;

/// What fuzz targets feed by itself.
#[cfg(feature = "fuzzing")]
pub mod fuzzed {
    pub use super::layer::compression::decompress;
    pub use super::layer::unpack::unpack;
    pub use super::manifest::{Document, check_platform, choose, parse, parse_config};
}

#[cfg(test)]
mod archive_fixture;
#[cfg(test)]
mod store_tests;

pub use collect::Collected;
pub use digest::{Digest, DigestError};
pub use import::{ImportCause, ImportError, ImportOptions};
pub use layer::tar_stream::TarError;
pub use layer::unpack::{UnpackError, UnpackLimits};
pub use layers::LayerError;
pub use manifest::{ManifestError, Platform};
pub use progress::{Event, Progress, Silent};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    CredentialError, CredentialSource, Mirror, PullCause, PullError, PullOptions, PullPolicy,
    REGISTRIES_PATH, RegistryConfigError,
};
pub use store::{Image, Lease, Store, StoreError};
pub use user::{User, UserError, groups_of_uid, resolve_user};
