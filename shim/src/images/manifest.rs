//! Image manifests, indexes and configurations: parsed within limits, checked, and turned into a list of layers.
//!
//! Reads OCI image manifests and Docker schema 2 ones, which differ in media types only. Does no I/O.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};
use serde::Deserialize;
use thiserror::Error;

use super::digest::{Digest, DigestError};

/// Largest manifest or index, as registries limit them (distribution spec, "Pushing Manifests").
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest image configuration.
pub const CONFIG_LIMIT: u64 = 8 << 20;
/// Most layers: overlayfs takes no more than 500 lower directories (fs/overlayfs, OVL_MAX_STACK).
const LAYER_LIMIT: usize = 500;
/// Most entries of an index.
const INDEX_LIMIT: usize = 10_000;

/// Media types of manifests and indexes that are asked of a registry, in order of preference.
pub const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Why a manifest, index or configuration is not usable.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("the {what} is not valid JSON of its kind")]
    Json {
        /// Which document.
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The document is larger than the limit.
    #[error("the {what} is larger than {limit} bytes; refused")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A digest in the document.
    #[error("the {what} names an unusable digest")]
    Digest {
        /// Which document.
        what: &'static str,
        #[source]
        source: DigestError,
    },
    /// An old or foreign kind of document.
    #[error("manifests of the type {0} are not supported; only OCI and Docker schema 2 images are")]
    Kind(String),
    /// The image is for other machines.
    #[error("there is no image for {wanted}; there is one for: {available}")]
    Platform {
        /// The platform asked for.
        wanted: String,
        /// Those of the index.
        available: String,
    },
    /// A layer that is not a tar archive in a known compression.
    #[error("layer {digest} is of the type {media_type}, which is refused: {reason}")]
    Layer {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: String,
        /// Why.
        reason: &'static str,
    },
    /// Not a container image at all.
    #[error("this is not a container image: its configuration is of the type {0}")]
    NotAnImage(String),
    /// Manifest and configuration contradict each other or pass a limit.
    #[error("the image is inconsistent: {0}")]
    Inconsistent(String),
}

/// The machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, e.g. `linux`.
    pub os: Os,
    /// Processor architecture in Go's words, e.g. `amd64`.
    pub architecture: Arch,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            os: Os::Linux,
            architecture: Arch::Amd64,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// A reference to content: digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size: u64,
}

/// What a document turned out to be.
#[derive(Debug)]
pub enum Document {
    /// The manifest of one image.
    Manifest(Manifest),
    /// A choice of images by platform.
    Index(Box<ImageIndex>),
}

/// The manifest of one image, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The configuration.
    pub config: Content,
    /// The layers, bottom-most first (as manifests list them).
    pub layers: Vec<Content>,
}

fn content(what: &'static str, descriptor: &Descriptor) -> Result<Content, ManifestError> {
    let digest = Digest::parse(descriptor.digest().as_ref())
        .map_err(|source| ManifestError::Digest { what, source })?;
    Ok(Content {
        digest,
        size: descriptor.size(),
    })
}

fn json<'de, T: Deserialize<'de>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Json {
        what,
        source: error.into(),
    })
}

fn limited(what: &'static str, bytes: &[u8], limit: u64) -> Result<(), ManifestError> {
    if bytes.len() as u64 > limit {
        Err(ManifestError::TooLarge { what, limit })
    } else {
        Ok(())
    }
}

/// Parses a manifest or an index, telling them apart by their content (a registry's header may be wrong).
///
/// # Errors
/// [`ManifestError`].
pub fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        schema_version: Option<u32>,
        media_type: Option<String>,
        manifests: Option<serde_json::Value>,
        layers: Option<serde_json::Value>,
    }
    limited("manifest", bytes, MANIFEST_LIMIT)?;
    let kind: Kind = json("manifest", bytes)?;
    if kind.schema_version != Some(2) {
        let version = kind.schema_version.map_or_else(
            || "without a schema version".into(),
            |version| format!("schema version {version}"),
        );
        return Err(ManifestError::Kind(version));
    }
    match (kind.manifests, kind.layers) {
        // A document that claims to be both would mean different things to different readers (CVE-2021-41190).
        (Some(_), Some(_)) => Err(ManifestError::Kind("index and manifest at once".into())),
        (Some(_), None) => {
            let index: ImageIndex = json("image index", bytes)?;
            if index.manifests().len() > INDEX_LIMIT {
                return Err(ManifestError::Inconsistent(format!(
                    "the index has more than {INDEX_LIMIT} entries"
                )));
            }
            Ok(Document::Index(Box::new(index)))
        }
        (None, Some(_)) => {
            let manifest: ImageManifest = json("manifest", bytes)?;
            check_manifest(&manifest).map(Document::Manifest)
        }
        (None, None) => Err(ManifestError::Kind(
            kind.media_type.unwrap_or_else(|| "unknown".into()),
        )),
    }
}

fn check_manifest(manifest: &ImageManifest) -> Result<Manifest, ManifestError> {
    match manifest.config().media_type() {
        MediaType::ImageConfig => {}
        MediaType::Other(other) if other == "application/vnd.docker.container.image.v1+json" => {}
        other => return Err(ManifestError::NotAnImage(other.to_string())),
    }
    if manifest.layers().len() > LAYER_LIMIT {
        return Err(ManifestError::Inconsistent(format!(
            "it has {} layers; at most {LAYER_LIMIT} can be mounted",
            manifest.layers().len()
        )));
    }
    let mut layers = Vec::new();
    for layer in manifest.layers() {
        check_layer(layer)?;
        layers.push(content("manifest", layer)?);
    }
    Ok(Manifest {
        config: content("manifest", manifest.config())?,
        layers,
    })
}

fn check_layer(layer: &Descriptor) -> Result<(), ManifestError> {
    let media_type = layer.media_type().to_string();
    let reason = match media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => return Ok(()),
        other if other.contains("foreign") || other.contains("nondistributable") => {
            "foreign layers are fetched from wherever the image says, which is not done here"
        }
        other if other.contains("encrypted") => "encrypted layers are not supported",
        _ => "it is not a file system layer that is known here",
    };
    Err(ManifestError::Layer {
        digest: layer.digest().to_string(),
        media_type,
        reason,
    })
}

/// Chooses the manifest for `platform` from an index.
///
/// # Errors
/// [`ManifestError::Platform`] listing what there is.
pub fn choose(index: &ImageIndex, platform: &Platform) -> Result<Content, ManifestError> {
    let of = |descriptor: &Descriptor| {
        descriptor.platform().as_ref().map(|found| Platform {
            os: found.os().clone(),
            architecture: found.architecture().clone(),
        })
    };
    if let Some(found) = index
        .manifests()
        .iter()
        .find(|descriptor| of(descriptor).as_ref() == Some(platform))
    {
        return content("image index", found);
    }
    // An index with one entry and no platform is how single images are wrapped by some tools.
    if let [only] = index.manifests().as_slice()
        && of(only).is_none()
    {
        return content("image index", only);
    }
    let mut available: Vec<String> = index
        .manifests()
        .iter()
        .filter_map(of)
        .map(|found| found.to_string())
        .collect();
    available.dedup();
    available.truncate(20);
    let available = if available.is_empty() {
        "no platform at all".into()
    } else {
        available.join(", ")
    };
    Err(ManifestError::Platform {
        wanted: platform.to_string(),
        available,
    })
}

/// Parses an image configuration and the diff IDs of its layers, bottom-most first.
///
/// # Errors
/// [`ManifestError`], among others when the number of layers is not that of the manifest.
pub fn parse_config(
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    limited("image configuration", bytes, CONFIG_LIMIT)?;
    let config: ImageConfiguration = json("image configuration", bytes)?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| {
            Digest::parse(text).map_err(|source| ManifestError::Digest {
                what: "image configuration",
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != layers {
        return Err(ManifestError::Inconsistent(format!(
            "the manifest has {layers} layers, the configuration {}",
            diff_ids.len()
        )));
    }
    Ok((config, diff_ids))
}

/// Refuses an image whose configuration names another platform.
///
/// # Errors
/// [`ManifestError::Platform`].
pub fn check_platform(
    config: &ImageConfiguration,
    platform: &Platform,
) -> Result<(), ManifestError> {
    let found = Platform {
        os: config.os().clone(),
        architecture: config.architecture().clone(),
    };
    if &found == platform {
        return Ok(());
    }
    Err(ManifestError::Platform {
        wanted: platform.to_string(),
        available: found.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layer_type: &str, config_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"sha256:{HEX}","size":1}},
            "layers":[{{"mediaType":"{layer_type}","digest":"sha256:{HEX}","size":7}}]}}"#
        )
    }
    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

    #[test]
    fn manifest_of_each_known_kind_is_read() {
        for (layer, config) in [
            ("application/vnd.oci.image.layer.v1.tar+zstd", OCI_CONFIG),
            ("application/vnd.oci.image.layer.v1.tar", OCI_CONFIG),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                DOCKER_CONFIG,
            ),
        ] {
            let Document::Manifest(read) = parse(manifest(layer, config).as_bytes()).unwrap()
            else {
                panic!("not a manifest")
            };
            assert_eq!((read.layers[0].size, read.layers[0].digest.hex()), (7, HEX));
        }
    }

    #[test]
    fn manifest_with_foreign_layer_is_refused() {
        let text = manifest(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            DOCKER_CONFIG,
        );
        assert!(
            parse(text.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("foreign layers")
        );
        let text = manifest(
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.cncf.helm.config.v1+json",
        );
        assert!(
            parse(text.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("not a container image")
        );
    }

    #[test]
    fn manifest_that_is_also_an_index_is_refused() {
        let text = manifest("application/vnd.oci.image.layer.v1.tar", OCI_CONFIG).replacen(
            '{',
            r#"{"manifests":[],"#,
            1,
        );
        assert!(matches!(
            parse(text.as_bytes()),
            Err(ManifestError::Kind(_))
        ));
        assert!(matches!(
            parse(br#"{"schemaVersion":1,"fsLayers":[]}"#),
            Err(ManifestError::Kind(_))
        ));
    }

    #[test]
    fn index_without_the_platform_lists_what_there_is() {
        let entry = |arch: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{HEX}","size":1,"platform":{{"os":"linux","architecture":"{arch}"}}}}"#
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
            entry("arm64"),
            entry("s390x")
        );
        let Document::Index(index) = parse(text.as_bytes()).unwrap() else {
            panic!("not an index")
        };
        let error = choose(&index, &Platform::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("linux/amd64") && error.contains("linux/arm64, linux/s390x"),
            "{error}"
        );
        assert_eq!(
            choose(
                &index,
                &Platform {
                    os: Os::Linux,
                    architecture: Arch::s390x
                }
            )
            .unwrap()
            .size,
            1
        );
    }
}
