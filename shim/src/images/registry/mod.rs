//! Pulling images from OCI registries.
//!
//! `pull` is the whole of it, from a name to an image in the store; `endpoint` decides which hosts are asked and how,
//! `fetch` gets documents and layers with checks and retries, `fault` makes causes of failures readable,
//! `config` reads the host's settings, `certificates` those that it trusts, `credentials` reads Docker's configuration and runs its credential helpers.
//! Pushing is not done here.

mod certificates;
mod config;
mod credentials;
mod endpoint;
mod fault;
mod fetch;
mod pull;

#[cfg(test)]
mod registry_tests;

pub use config::{REGISTRIES_PATH, RegistryConfigError};
pub use credentials::{CredentialError, CredentialSource};
pub use endpoint::Mirror;
pub use fault::{PullCause, PullError};
pub use pull::{PullOptions, PullPolicy};
