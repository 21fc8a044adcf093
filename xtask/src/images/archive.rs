//! OCI image archives (image-spec, "image-layout"), written by hand: a manifest, a configuration, layers, an index.
//! The same layers and configuration give the same bytes.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::layer::{Layer, digest_of, file_name_of, key_of};

/// Counts the changes of how an archive is written.
const FORM: &str = "1";

/// An image archive in the cache.
#[derive(Debug)]
pub struct Archive {
    /// The recipe's name.
    pub name: &'static str,
    /// `sha256:` digest of its manifest.
    pub digest: String,
    /// The tar file.
    pub path: PathBuf,
}

/// Writes the archive of an image with these layers (bottom-most first) unless the cache has it.
///
/// # Errors
/// When files cannot be read or written.
pub fn write(
    name: &'static str,
    layers: &[Layer],
    config: &Value,
    cache: &Path,
) -> Result<Archive> {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| json!({"created_by": "cargo xtask images"})).collect::<Vec<_>>(),
    });
    let config = serde_json::to_vec(&config)?;
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": layer.digest, "size": layer.size}))
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(&config), "size": config.len()},
        "layers": descriptors,
    }))?;
    let digest = digest_of(&manifest);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": manifest.len(),
            "platform": {"os": "linux", "architecture": "amd64"},
            "annotations": {"io.containerd.image.name": super::normalised(name)},
        }],
    }))?;
    let folder = cache.join(key_of(&[FORM, name, &digest]));
    let path = folder.join(format!("{}.oci.tar", file_name_of(name)));
    let archive = Archive { name, digest, path };
    if archive.path.exists() {
        return Ok(archive);
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let partial = archive.path.with_extension("partial");
    let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut builder = Builder::new(BufWriter::with_capacity(1 << 20, file));
    put(
        &mut builder,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    put(&mut builder, "index.json", &index)?;
    put(&mut builder, &blob(&archive.digest), &manifest)?;
    put(&mut builder, &blob(&digest_of(&config)), &config)?;
    for layer in layers {
        let mut header = header(layer.size);
        let content =
            File::open(&layer.path).with_context(|| format!("reading {}", layer.path.display()))?;
        builder
            .append_data(&mut header, blob(&layer.digest), content)
            .context("writing the archive")?;
    }
    let written = builder.into_inner().and_then(|mut out| out.flush());
    written.context("writing the archive")?;
    fs::rename(&partial, &archive.path)
        .with_context(|| format!("renaming to {}", archive.path.display()))?;
    Ok(archive)
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn put<W: Write>(builder: &mut Builder<W>, path: &str, content: &[u8]) -> Result<()> {
    builder
        .append_data(&mut header(content.len() as u64), path, content)
        .context("writing the archive")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn archive_written_twice_is_the_same_and_every_blob_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let content = b"not really zstd";
        let path = dir.path().join("layer.tar.zst");
        fs::write(&path, content).unwrap();
        let layer = Layer {
            diff_id: digest_of(b"plain"),
            digest: digest_of(content),
            size: content.len() as u64,
            path,
        };
        let config = json!({"Cmd": ["sh"]});
        let archive = write("busybox", std::slice::from_ref(&layer), &config, dir.path()).unwrap();
        let first = fs::read(&archive.path).unwrap();
        fs::remove_file(&archive.path).unwrap();
        let again = write("busybox", std::slice::from_ref(&layer), &config, dir.path()).unwrap();
        assert_eq!(
            (fs::read(&again.path).unwrap(), &again.path),
            (first.clone(), &archive.path)
        );
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&first[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), bytes);
        }
        assert_eq!(files.len(), 5);
        for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(path, &blob(&digest_of(bytes)));
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "docker.io/library/busybox:latest"
        );
    }
}
