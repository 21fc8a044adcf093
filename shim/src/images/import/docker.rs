//! What `docker save` has always written: `manifest.json` with a configuration and layer tars by path.
//!
//! Such an archive has no image manifest, so one is made from it: the same archive always gives the same digest.

use std::io;

use serde::{Deserialize, Serialize};

use super::super::digest::{Digest, HashingReader};
use super::super::manifest::{self, Content, ManifestError};
use super::source::Source;
use super::{Found, ImportCause};

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    /// Path of the configuration in the archive.
    pub(super) config: String,
    /// Names; archives also say `null`.
    pub(super) repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The manifest that is made, with its keys in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest {
    schema_version: u32,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

/// Reads `manifest.json`.
pub(super) fn entries(source: &Source) -> Result<Vec<Entry>, ImportCause> {
    let bytes = source.read_member("manifest.json", manifest::MANIFEST_LIMIT)?;
    let entries = serde_json::from_slice(&bytes).map_err(|error| ManifestError::Json {
        what: "manifest.json",
        source: error.into(),
    })?;
    Ok(entries)
}

/// All images of `manifest.json`.
pub(super) fn images(source: &Source) -> Result<Vec<Found>, ImportCause> {
    entries(source)?
        .into_iter()
        .map(|entry| image(source, entry))
        .collect()
}

fn image(source: &Source, entry: Entry) -> Result<Found, ImportCause> {
    let config = source.read_member(&entry.config, manifest::CONFIG_LIMIT)?;
    let (_, diff_ids) = manifest::parse_config(&config, entry.layers.len())?;
    let mut layers = Vec::new();
    for (member, diff_id) in entry.layers.into_iter().zip(diff_ids) {
        let size = source.size(&member)?;
        let mut start = HashingReader::new(source.open_member(&member)?);
        // Layers in these archives are plain tars, whose digest is the diff ID. Some tools compress them: then the
        // digest of what is there has to be found by reading it.
        let digest = if is_plain(&mut start)? {
            diff_id
        } else {
            io::copy(&mut start, &mut io::sink()).map_err(|error| ImportCause::Io {
                doing: "reading a layer",
                source: error,
            })?;
            start.digest()
        };
        layers.push((Content { digest, size }, member));
    }
    let made = MadeManifest {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json",
        config: MadeDescriptor {
            media_type: "application/vnd.oci.image.config.v1+json",
            digest: Digest::of(&config),
            size: config.len() as u64,
        },
        // A layer's compression is recognised by its bytes, so the type says no more than "tar".
        layers: layers
            .iter()
            .map(|(layer, _)| MadeDescriptor {
                media_type: "application/vnd.oci.image.layer.v1.tar",
                digest: layer.digest.clone(),
                size: layer.size,
            })
            .collect(),
    };
    let manifest = serde_json::to_vec(&made).map_err(|error| ManifestError::Json {
        what: "manifest made from manifest.json",
        source: error.into(),
    })?;
    Ok(Found {
        names: entry.repo_tags.unwrap_or_default(),
        manifest,
        index: None,
        config,
        layers,
    })
}

fn is_plain(reader: &mut impl io::Read) -> Result<bool, ImportCause> {
    use super::super::layer::compression::Compression;
    let mut start = [0; 4];
    let mut filled = 0;
    while let Some(rest) = start.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(source) => {
                return Err(ImportCause::Io {
                    doing: "reading a layer",
                    source,
                });
            }
        }
    }
    Ok(Compression::sniff(start.get(..filled).unwrap_or_default()) == Compression::None)
}
