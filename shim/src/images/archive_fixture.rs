//! Archives made for tests: layers entry by entry (also such as no honest tool writes), OCI layouts, docker archives.

use std::io::Write;

use tar::{EntryType, Header};

use super::digest::Digest;

/// A layer's tar stream under construction.
#[derive(Default)]
pub(super) struct LayerTar {
    bytes: Vec<u8>,
}

/// A header with the given fields and a right checksum; `path` and `link` are written as they are.
pub(super) fn header(kind: EntryType, path: &[u8], link: &[u8], size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    let bytes = header.as_mut_bytes();
    bytes[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    bytes[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_cksum();
    header
}

impl LayerTar {
    pub(super) fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// A PAX header for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(
            &header(EntryType::XHeader, b"pax", b"", data.len() as u64, 0o644),
            &data,
        )
    }

    pub(super) fn file(self, path: &str, content: &[u8]) -> Self {
        self.file_mode(path, content, 0o644)
    }

    pub(super) fn file_mode(self, path: &str, content: &[u8], mode: u32) -> Self {
        self.raw(
            &header(
                EntryType::Regular,
                path.as_bytes(),
                b"",
                content.len() as u64,
                mode,
            ),
            content,
        )
    }

    pub(super) fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(
            &header(EntryType::Directory, path.as_bytes(), b"", 0, mode),
            b"",
        )
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(
            &header(
                EntryType::Symlink,
                path.as_bytes(),
                target.as_bytes(),
                0,
                0o777,
            ),
            b"",
        )
    }

    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(
            &header(
                EntryType::Link,
                path.as_bytes(),
                target.as_bytes(),
                0,
                0o644,
            ),
            b"",
        )
    }

    pub(super) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// How a layer is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image in parts: whoever writes it to an archive or a registry adds the rest.
pub(super) struct TestImage {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    /// Media type, stored bytes and uncompressed bytes; bottom-most first.
    pub(super) layers: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
}

impl TestImage {
    pub(super) fn new(layers: &[Vec<u8>], packing: Packing) -> Self {
        Self::for_architecture(layers, packing, "amd64")
    }

    pub(super) fn for_architecture(
        layers: &[Vec<u8>],
        packing: Packing,
        architecture: &str,
    ) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::of(layer).to_string())
            .collect();
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/hello"], "User": "web"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}
        }))
        .unwrap();
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| match packing {
                Packing::Plain => (
                    "application/vnd.oci.image.layer.v1.tar",
                    layer.clone(),
                    layer.clone(),
                ),
                Packing::Gzip => (
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    gzip(layer),
                    layer.clone(),
                ),
                Packing::Zstd => (
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                    zstd::encode_all(&layer[..], 1).unwrap(),
                    layer.clone(),
                ),
            })
            .collect();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(kind, stored, _)| serde_json::json!({"mediaType": kind, "digest": Digest::of(stored).to_string(), "size": stored.len()}))
            .collect();
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config).to_string(), "size": config.len()},
            "layers": descriptors
        }))
        .unwrap();
        Self {
            config,
            manifest,
            layers,
        }
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The blobs: manifest, configuration, layers.
    pub(super) fn blobs(&self) -> Vec<Vec<u8>> {
        let mut blobs = vec![self.manifest.clone(), self.config.clone()];
        blobs.extend(self.layers.iter().map(|(_, stored, _)| stored.clone()));
        blobs
    }

    /// Files of an OCI layout; `annotations` go on the image's entry in `index.json`.
    pub(super) fn layout(&self, annotations: &serde_json::Value) -> Vec<(String, Vec<u8>)> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.digest().to_string(),
            "size": self.manifest.len(), "annotations": annotations
        }]});
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
        ];
        files.extend(
            self.blobs()
                .into_iter()
                .map(|blob| (format!("blobs/sha256/{}", Digest::of(&blob).hex()), blob)),
        );
        files
    }

    /// Members of what `docker save` wrote before version 25.
    pub(super) fn docker_archive(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let config = format!("{}.json", Digest::of(&self.config).hex());
        let paths: Vec<String> = (0..self.layers.len())
            .map(|at| format!("layer{at}/layer.tar"))
            .collect();
        let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": paths}]);
        let mut files: Vec<_> = paths
            .iter()
            .zip(&self.layers)
            .map(|(path, (_, stored, _))| (path.clone(), stored.clone()))
            .collect();
        files.push((config, self.config.clone()));
        files.push((
            "manifest.json".to_owned(),
            serde_json::to_vec(&manifest).unwrap(),
        ));
        files
    }
}

/// A tar of plain files.
pub(super) fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files
        .iter()
        .fold(LayerTar::default(), |tar, (path, content)| {
            tar.file(path, content)
        })
        .finish()
}
