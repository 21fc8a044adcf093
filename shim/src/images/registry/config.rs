//! The host's registry settings: `/etc/vmpod/registries.json`, which need not exist.
//!
//! ```json
//! {"mirrors": {"docker.io": ["mirror.example:5000"], "*": ["cache.example"]}, "insecure": ["registry.lan:5000"]}
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::endpoint::Mirror;
use super::pull::PullOptions;

/// Where the settings are unless the caller says otherwise.
pub const REGISTRIES_PATH: &str = "/etc/vmpod/registries.json";

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum RegistryConfigError {
    /// The file cannot be read.
    #[error("reading the registry settings {} failed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the registry settings {} are not usable", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    mirrors: BTreeMap<String, Vec<String>>,
    insecure: Vec<String>,
}

impl PullOptions {
    /// The default options with the mirrors and insecure hosts of the file at `path`; a missing file sets none.
    /// Mirrors of one registry are asked before those of `*`.
    ///
    /// # Errors
    /// [`RegistryConfigError`].
    pub fn configured(path: &Path) -> Result<Self, RegistryConfigError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(RegistryConfigError::Read {
                    path: path.to_path_buf(),
                    source,
                });
            }
        };
        let settings: Settings =
            serde_json::from_slice(&text).map_err(|source| RegistryConfigError::Form {
                path: path.to_path_buf(),
                source,
            })?;
        let (for_all, for_one): (Vec<_>, Vec<_>) = settings
            .mirrors
            .into_iter()
            .partition(|(registry, _)| registry == "*");
        let mirrors = for_one
            .into_iter()
            .chain(for_all)
            .flat_map(|(registry, hosts)| {
                hosts.into_iter().map(move |host| Mirror {
                    registry: registry.clone(),
                    host,
                })
            });
        Ok(Self {
            mirrors: mirrors.collect(),
            insecure: settings.insecure,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_from_a_file_has_its_mirrors_with_the_general_ones_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.json");
        assert!(PullOptions::configured(&path).unwrap().mirrors.is_empty());
        std::fs::write(
            &path,
            r#"{"mirrors":{"*":["c"],"docker.io":["a","b"]},"insecure":["r:1"]}"#,
        )
        .unwrap();
        let options = PullOptions::configured(&path).unwrap();
        let hosts: Vec<_> = options
            .mirrors
            .iter()
            .map(|mirror| mirror.host.as_str())
            .collect();
        assert_eq!(
            (hosts, options.insecure),
            (vec!["a", "b", "c"], vec!["r:1".to_owned()])
        );
    }

    #[test]
    fn configured_from_a_file_with_an_unknown_key_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.json");
        std::fs::write(&path, r#"{"mirror":{}}"#).unwrap();
        assert!(
            PullOptions::configured(&path)
                .unwrap_err()
                .to_string()
                .contains("registries.json")
        );
    }
}
