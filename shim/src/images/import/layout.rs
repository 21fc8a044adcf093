//! OCI image layouts (image-spec, "image-layout"): `oci-layout`, `index.json`, `blobs/sha256/<hex>`.

use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use super::super::digest::Digest;
use super::super::manifest::{self, Content, Document, ManifestError, Platform};
use super::super::reference::Reference;
use super::docker;
use super::source::Source;
use super::{Found, ImportCause};

/// The full name, as containerd and Docker write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The specification's annotation: a tag by some writers, a full name by others.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a document and checks its digest.
fn document(source: &Source, content: &Content, limit: u64) -> Result<Vec<u8>, ImportCause> {
    let bytes = source.read_member(&blob_member(&content.digest), limit)?;
    let found = Digest::of(&bytes);
    if found != content.digest {
        return Err(ImportCause::Digest {
            expected: content.digest.clone(),
            found,
        });
    }
    Ok(bytes)
}

/// All images that `index.json` names, for one platform each.
pub(super) fn images(source: &Source, platform: &Platform) -> Result<Vec<Found>, ImportCause> {
    let index = source.read_member("index.json", manifest::MANIFEST_LIMIT)?;
    let Document::Index(index) = manifest::parse(&index)? else {
        return Err(ManifestError::Kind("index.json is not an image index".into()).into());
    };
    let tops = tops(&index, platform)?;
    let mut images: Vec<Found> = Vec::new();
    for descriptor in tops {
        let digest = Digest::parse(descriptor.digest().as_ref()).map_err(|source| {
            ManifestError::Digest {
                what: "image index",
                source,
            }
        })?;
        let mut content = Content {
            digest,
            size: descriptor.size(),
        };
        let mut bytes = document(source, &content, manifest::MANIFEST_LIMIT)?;
        let mut from_index = None;
        if let Document::Index(nested) = manifest::parse(&bytes)? {
            from_index = Some((content.digest.clone(), bytes));
            content = manifest::choose(&nested, platform)?;
            bytes = document(source, &content, manifest::MANIFEST_LIMIT)?;
        }
        let Document::Manifest(parsed) = manifest::parse(&bytes)? else {
            return Err(ManifestError::Kind("an index in an index in an index".into()).into());
        };
        let names = names(source, descriptor, &parsed.config.digest)?;
        if let Some(known) = images.iter_mut().find(|image| image.manifest == bytes) {
            known.names.extend(names);
            continue;
        }
        let config = document(source, &parsed.config, manifest::CONFIG_LIMIT)?;
        let layers = parsed
            .layers
            .into_iter()
            .map(|layer| {
                let member = blob_member(&layer.digest);
                (layer, member)
            })
            .collect();
        images.push(Found {
            names,
            manifest: bytes,
            index: from_index,
            config,
            layers,
        });
    }
    Ok(images)
}

/// The descriptors to import. An index that lists one image per platform directly means one image.
fn tops<'a>(
    index: &'a ImageIndex,
    platform: &Platform,
) -> Result<Vec<&'a Descriptor>, ImportCause> {
    let all: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|descriptor| is_image(descriptor))
        .collect();
    let mine = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_none_or(|found| {
            found.os() == &platform.os && found.architecture() == &platform.architecture
        })
    };
    let chosen: Vec<&Descriptor> = all.iter().copied().filter(mine).collect();
    if chosen.is_empty() && !all.is_empty() {
        // For its error, which lists the platforms that there are.
        manifest::choose(index, platform)?;
    }
    Ok(chosen)
}

fn is_image(descriptor: &Descriptor) -> bool {
    let attached = descriptor
        .annotations()
        .as_ref()
        .is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"));
    let known = match descriptor.media_type() {
        MediaType::ImageManifest | MediaType::ImageIndex => true,
        MediaType::Other(other) => manifest::ACCEPTED.contains(&other.as_str()),
        _ => false,
    };
    known && !attached
}

/// What the archive calls an image: annotations first, then Docker's `manifest.json` beside the index.
fn names(
    source: &Source,
    descriptor: &Descriptor,
    config: &Digest,
) -> Result<Vec<String>, ImportCause> {
    let note = |key| {
        descriptor
            .annotations()
            .as_ref()
            .and_then(|notes| notes.get(key))
    };
    if let Some(name) = note(CONTAINERD_NAME) {
        return Ok(vec![name.clone()]);
    }
    if let Some(name) = note(REF_NAME)
        // `latest` alone is a tag, though it would also be a repository's name.
        && name.contains(['/', ':'])
        && Reference::parse(name).is_ok()
    {
        return Ok(vec![name.clone()]);
    }
    if !source.has("manifest.json") {
        return Ok(Vec::new());
    }
    let mine = docker::entries(source)?
        .into_iter()
        .filter(|entry| entry.config.contains(config.hex()));
    Ok(mine
        .flat_map(|entry| entry.repo_tags.unwrap_or_default())
        .collect())
}
