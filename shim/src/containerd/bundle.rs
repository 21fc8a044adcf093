//! An OCI bundle as containerd leaves it: a directory with `config.json`, whose annotations say what the container is to
//! its pod. Reads; changes nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Bytes of a `config.json`; those of privileged containers on large hosts have some hundred kilobytes.
const CONFIG_BYTES: u64 = 4 << 20;

/// What CRI implementations call the kind of a container, and its pod: containerd's names, then those of CRI-O.
const KIND: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];
const SANDBOX: [&str; 2] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// A bundle that is none.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no configuration.
    #[error("bundle {} has no config.json", path.display())]
    Missing {
        /// The bundle.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is too long.
    #[error("{} exceeds the limit of {CONFIG_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not an OCI configuration.
    #[error("{} is not an OCI runtime configuration", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A container of a pod does not say of which.
    #[error("{} has the annotation {kind:?}: \"container\", but none that names its sandbox", path.display())]
    NoSandbox {
        /// The file.
        path: PathBuf,
        /// The annotation.
        kind: &'static str,
    },
}

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The pod itself: the container that holds the namespaces elsewhere, and is the machine here.
    Sandbox,
    /// A container of the pod whose sandbox has this id.
    Member(String),
    /// A container without a pod (`ctr run`): it gets a machine of its own.
    Single,
}

/// A bundle that was read.
#[derive(Clone, Debug)]
pub struct OciBundle {
    /// Its directory.
    pub path: PathBuf,
    /// `config.json`, an object.
    pub config: Map<String, Value>,
    /// What the container is to its pod.
    pub role: Role,
}

impl OciBundle {
    /// Reads the bundle at `path`.
    ///
    /// # Errors
    /// When there is no configuration, or one that is not to be understood.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let file = path.join("config.json");
        let failed = |source| BundleError::Read {
            path: file.clone(),
            source,
        };
        let mut bytes = Vec::new();
        match File::open(&file) {
            Ok(opened) => opened
                .take(CONFIG_BYTES + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BundleError::Missing {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed(error)),
        };
        if bytes.len() as u64 > CONFIG_BYTES {
            return Err(BundleError::TooLong { path: file });
        }
        let config: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|source| BundleError::Invalid {
                path: file.clone(),
                source,
            })?;
        let role = role(&config, &file)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            role,
        })
    }

    /// Annotation `name`.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        annotation(&self.config, name)
    }
}

fn annotation<'a>(config: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    config.get("annotations")?.get(name)?.as_str()
}

fn role(config: &Map<String, Value>, file: &Path) -> Result<Role, BundleError> {
    for (kind, sandbox) in KIND.into_iter().zip(SANDBOX) {
        match annotation(config, kind) {
            Some("sandbox") => return Ok(Role::Sandbox),
            Some("container") => {
                return match annotation(config, sandbox) {
                    Some(id) if !id.is_empty() => Ok(Role::Member(id.to_owned())),
                    _ => Err(BundleError::NoSandbox {
                        path: file.to_owned(),
                        kind,
                    }),
                };
            }
            _ => {}
        }
    }
    Ok(Role::Single)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> Result<OciBundle, BundleError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        OciBundle::read(dir.path())
    }

    #[test]
    fn role_is_what_the_annotations_say() {
        let of = |annotations: &str| bundle(&format!("{{\"annotations\":{annotations}}}"));
        let kind = KIND[0];
        let sandbox = SANDBOX[0];
        assert_eq!(of("{}").unwrap().role, Role::Single);
        assert_eq!(
            of(&format!("{{{kind:?}:\"sandbox\"}}")).unwrap().role,
            Role::Sandbox
        );
        assert_eq!(
            of(&format!("{{{kind:?}:\"container\",{sandbox:?}:\"p\"}}"))
                .unwrap()
                .role,
            Role::Member("p".into())
        );
        assert!(matches!(
            of(&format!("{{{kind:?}:\"container\"}}")),
            Err(BundleError::NoSandbox { .. })
        ));
        assert_eq!(
            of(&format!(
                "{{{:?}:\"container\",{:?}:\"q\"}}",
                KIND[1], SANDBOX[1]
            ))
            .unwrap()
            .role,
            Role::Member("q".into())
        );
    }

    #[test]
    fn bundle_without_configuration_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = OciBundle::read(dir.path()).unwrap_err();
        assert!(
            error.to_string().ends_with("has no config.json"),
            "{error:?}"
        );
        assert!(matches!(bundle("[]"), Err(BundleError::Invalid { .. })));
        assert!(matches!(bundle("{"), Err(BundleError::Invalid { .. })));
    }
}
