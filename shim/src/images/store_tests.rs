//! The store and imports, driven as callers do.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use super::archive_fixture::{LayerTar, Packing, TestImage, gzip, tar_of};
use super::*;

fn base_layer() -> Vec<u8> {
    LayerTar::default()
        .dir("etc/", 0o755)
        .file(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
        )
        .dir("bin/", 0o755)
        .file_mode("bin/hello", b"#!/bin/sh\n", 0o4755)
        .hard_link("bin/hi", "bin/hello")
        .file("gone", b"1")
        .finish()
}

fn top_layer() -> Vec<u8> {
    LayerTar::default()
        .file("etc/new", b"2")
        .file(".wh.gone", b"")
        .hard_link("bin/copy", "bin/hello")
        .finish()
}

fn image(packing: Packing) -> TestImage {
    TestImage::new(&[base_layer(), top_layer()], packing)
}

fn write_layout(dir: &Path, image: &TestImage, annotations: &serde_json::Value) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for (name, content) in image.layout(annotations) {
        std::fs::write(dir.join(name), content).unwrap();
    }
}

fn named(name: &str) -> ImportOptions {
    ImportOptions {
        name: Some(Reference::parse(name).unwrap()),
        ..ImportOptions::default()
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    Fixture { dir, store }
}

impl Fixture {
    fn archive(&self, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn entries(&self, folder: &str) -> usize {
        std::fs::read_dir(self.store.path().join(folder))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "lock")
            .count()
    }
}

fn check_layers(image: &Image) {
    let [top, base] = image.layers.as_slice() else {
        panic!("{:?}", image.layers)
    };
    let hello = base.join("bin/hello").metadata().unwrap();
    assert_eq!(hello.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(hello.nlink(), 2);
    assert_eq!(hello.mtime(), 1_000_000_000);
    let gone = top.join("gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(std::fs::read(top.join("bin/copy")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(
        top.join("bin/copy")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o4755
    );
    assert_eq!(std::fs::read(top.join("etc/new")).unwrap(), b"2");
}

#[test]
fn import_of_layout_directory_gives_a_usable_image() {
    let f = fixture();
    let image = image(Packing::Gzip);
    let dir = f.dir.path().join("layout");
    write_layout(
        &dir,
        &image,
        &json!({"org.opencontainers.image.ref.name": "example.com/hello:1"}),
    );
    let imported = f
        .store
        .import(&dir, &ImportOptions::default(), &Silent)
        .unwrap();
    assert_eq!(imported.len(), 1);
    let found = f
        .store
        .resolve(&Reference::parse("example.com/hello:1").unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(found.digest, image.digest());
    assert_eq!(found.id, Digest::of(&image.config));
    assert_eq!(
        found
            .config
            .config()
            .as_ref()
            .unwrap()
            .cmd()
            .as_ref()
            .unwrap(),
        &["/bin/hello"]
    );
    check_layers(&found);
    assert_eq!(f.entries("tmp"), 0);
    assert_eq!(
        f.store.path().metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn import_of_layout_tar_in_each_compression_gives_the_same_image() {
    let image = image(Packing::Zstd);
    let tar =
        tar_of(&image.layout(&json!({"io.containerd.image.name": "docker.io/library/hello:2"})));
    for bytes in [
        tar.clone(),
        gzip(&tar),
        zstd::encode_all(&tar[..], 3).unwrap(),
    ] {
        let f = fixture();
        let imported = f
            .store
            .import(&f.archive(&bytes), &ImportOptions::default(), &Silent)
            .unwrap();
        assert_eq!(imported[0].name, "docker.io/library/hello:2");
        assert_eq!(imported[0].digest, image.digest());
        check_layers(&imported[0]);
        assert_eq!(f.entries("tmp"), 0);
    }
}

#[test]
fn import_of_legacy_docker_archive_names_all_its_tags() {
    let f = fixture();
    let image = image(Packing::Plain);
    let path = f.archive(&tar_of(&image.docker_archive(&["hello:1", "hello:latest"])));
    let imported = f
        .store
        .import(&path, &ImportOptions::default(), &Silent)
        .unwrap();
    let names: Vec<_> = imported.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "docker.io/library/hello:1",
            "docker.io/library/hello:latest"
        ]
    );
    check_layers(&imported[0]);
    // The same content under a digest of its own making, twice the same.
    let again = f.store.import(&path, &named("other:1"), &Silent).unwrap();
    assert_eq!(again[0].digest, imported[0].digest);
}

#[test]
fn import_of_legacy_docker_archive_follows_links_between_layers() {
    let f = fixture();
    let layer = base_layer();
    let image = TestImage::new(&[layer.clone(), layer], Packing::Plain);
    let mut tar = LayerTar::default();
    for (path, content) in image.docker_archive(&["twice:1"]) {
        tar = if path == "layer1/layer.tar" {
            tar.symlink(&path, "../layer0/layer.tar")
        } else {
            tar.file(&path, &content)
        };
    }
    let imported = f
        .store
        .import(
            &f.archive(&tar.finish()),
            &ImportOptions::default(),
            &Silent,
        )
        .unwrap();
    assert_eq!(imported[0].layers.len(), 2);
}

#[test]
fn import_of_new_docker_archive_takes_names_from_its_manifest_json() {
    let f = fixture();
    let image = image(Packing::Plain);
    let mut files = image.layout(&json!({"org.opencontainers.image.ref.name": "latest"}));
    let config = format!("blobs/sha256/{}", Digest::of(&image.config).hex());
    files.push((
        "manifest.json".into(),
        serde_json::to_vec(
            &json!([{"Config": config, "RepoTags": ["hello:latest"], "Layers": []}]),
        )
        .unwrap(),
    ));
    let imported = f
        .store
        .import(
            &f.archive(&tar_of(&files)),
            &ImportOptions::default(),
            &Silent,
        )
        .unwrap();
    assert_eq!(imported[0].name, "docker.io/library/hello:latest");
    assert_eq!(imported[0].digest, image.digest());
}

#[test]
fn import_of_multi_platform_layout_chooses_amd64() {
    let f = fixture();
    let (arm, amd) = (
        TestImage::for_architecture(&[base_layer()], Packing::Gzip, "arm64"),
        image(Packing::Gzip),
    );
    let entry = |image: &TestImage, arch: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest().to_string(),
               "size": image.manifest.len(), "platform": {"os": "linux", "architecture": arch}})
    };
    let nested = serde_json::to_vec(
        &json!({"schemaVersion": 2, "manifests": [entry(&arm, "arm64"), entry(&amd, "amd64")]}),
    )
    .unwrap();
    let mut files = amd.layout(&json!({}));
    let top = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(&nested).to_string(), "size": nested.len(),
        "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"}}]});
    files[1].1 = serde_json::to_vec(&top).unwrap();
    files.push((
        format!("blobs/sha256/{}", Digest::of(&nested).hex()),
        nested.clone(),
    ));
    let imported = f
        .store
        .import(
            &f.archive(&tar_of(&files)),
            &ImportOptions::default(),
            &Silent,
        )
        .unwrap();
    assert_eq!(imported[0].digest, amd.digest());
    assert_eq!(
        imported[0].index_digest.as_ref(),
        Some(&Digest::of(&nested))
    );
    let by_digest = Reference::parse(&format!("multi@{}", Digest::of(&nested))).unwrap();
    assert_eq!(
        f.store.resolve(&by_digest).unwrap().unwrap().digest,
        amd.digest()
    );
}

#[test]
fn import_without_a_name_or_of_something_else_says_what_to_do() {
    let f = fixture();
    let image = image(Packing::Gzip);
    let path = f.archive(&tar_of(&image.layout(&json!({}))));
    let text = |error: ImportError| error.cause.to_string();
    assert!(
        text(
            f.store
                .import(&path, &ImportOptions::default(), &Silent)
                .unwrap_err()
        )
        .contains("--name")
    );
    assert_eq!(
        f.store.import(&path, &named("given"), &Silent).unwrap()[0].name,
        "docker.io/library/given:latest"
    );
    let other = f.archive(&tar_of(&[("readme".into(), b"hello".to_vec())]));
    assert!(
        text(f.store.import(&other, &named("x"), &Silent).unwrap_err())
            .contains("neither an OCI image layout")
    );
    let junk = f.archive(&[b'x'; 2000]);
    assert!(matches!(
        f.store
            .import(&junk, &named("x"), &Silent)
            .unwrap_err()
            .cause,
        ImportCause::Tar(_)
    ));
    let missing = f
        .store
        .import(&f.dir.path().join("nothing"), &named("x"), &Silent)
        .unwrap_err();
    assert!(missing.to_string().contains("nothing"), "{missing}");
}

#[test]
fn import_for_another_architecture_is_refused_by_name() {
    let f = fixture();
    let image = TestImage::for_architecture(&[base_layer()], Packing::Gzip, "arm64");
    let path = f.archive(&tar_of(&image.layout(&json!({}))));
    let error = f
        .store
        .import(&path, &named("arm"), &Silent)
        .unwrap_err()
        .cause
        .to_string();
    assert!(
        error.contains("linux/amd64") && error.contains("linux/arm64"),
        "{error}"
    );
}

#[test]
fn import_with_a_corrupt_layer_is_refused_and_leaves_nothing() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let f = fixture();
        let image = image(packing);
        let mut files = image.layout(&json!({}));
        let layer = &mut files.last_mut().unwrap().1;
        let middle = layer.len() / 2;
        layer[middle] ^= 0x55;
        let error = f
            .store
            .import(&f.archive(&tar_of(&files)), &named("bad"), &Silent)
            .unwrap_err();
        assert!(
            matches!(
                error.cause,
                ImportCause::Layer(LayerError::Mismatch { what: "digest", .. })
            ),
            "{error:?}"
        );
        assert_eq!(f.entries("tmp"), 0);
        assert_eq!(f.store.list().unwrap().len(), 0);
        // The good layer below is all there is, and the collection takes it.
        assert_eq!(f.store.gc_unreferenced(&BTreeSet::new()).unwrap().layers, 1);
        assert_eq!((f.entries("layers"), f.entries("blobs/sha256")), (0, 0));
    }
}

#[test]
fn import_with_a_wrong_diff_id_is_refused() {
    let f = fixture();
    let mut image = image(Packing::Gzip);
    let other = gzip(&LayerTar::default().file("other", b"x").finish());
    let old = Digest::of(&image.layers[0].1).to_string();
    let (new, old_size) = (
        Digest::of(&other).to_string(),
        format!("\"size\":{}", image.layers[0].1.len()),
    );
    let manifest = String::from_utf8(image.manifest)
        .unwrap()
        .replace(&old, &new)
        .replace(&old_size, &format!("\"size\":{}", other.len()));
    image.manifest = manifest.into_bytes();
    image.layers[0].1 = other;
    let error = f
        .store
        .import(
            &f.archive(&tar_of(&image.layout(&json!({})))),
            &named("bad"),
            &Silent,
        )
        .unwrap_err();
    assert!(
        matches!(
            error.cause,
            ImportCause::Layer(LayerError::Mismatch {
                what: "uncompressed digest (diff ID)",
                ..
            })
        ),
        "{error:?}"
    );
}

#[test]
fn import_beyond_the_limit_of_bytes_is_refused() {
    let f = fixture();
    let layer = LayerTar::default()
        .file("zeros", &vec![0; 1 << 20])
        .finish();
    let image = TestImage::new(&[layer], Packing::Gzip);
    let path = f.archive(&tar_of(&image.layout(&json!({}))));
    let mut options = named("bomb");
    options.limits.bytes = 100 << 10;
    let error = f.store.import(&path, &options, &Silent).unwrap_err();
    assert!(
        matches!(
            error.cause,
            ImportCause::Layer(LayerError::Unpack {
                source: UnpackError::TooLarge { .. },
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!((f.entries("tmp"), f.entries("layers")), (0, 0));
}

#[test]
fn remove_of_an_image_in_use_is_refused_unless_forced_and_keeps_its_layers() {
    let f = fixture();
    let image = image(Packing::Gzip);
    f.store
        .import(
            &f.archive(&tar_of(&image.layout(&json!({})))),
            &named("hello"),
            &Silent,
        )
        .unwrap();
    let used = BTreeSet::from([image.digest()]);
    assert!(matches!(
        f.store.remove("hello", &used, false),
        Err(StoreError::InUse { .. })
    ));
    let collected = f.store.remove("hello", &used, true).unwrap();
    assert_eq!(
        (
            collected.layers,
            f.store.list().unwrap().len(),
            f.entries("layers")
        ),
        (0, 0, 2)
    );
    let collected = f.store.gc_unreferenced(&BTreeSet::new()).unwrap();
    assert_eq!((collected.layers, collected.blobs), (2, 2));
    assert_eq!(
        (
            f.entries("layers"),
            f.entries("blobs/sha256"),
            f.entries("tmp")
        ),
        (0, 0, 0)
    );
    assert!(matches!(
        f.store.remove("hello", &used, false),
        Err(StoreError::NotFound { .. })
    ));
}

#[test]
fn remove_of_one_image_keeps_layers_that_another_shares() {
    let f = fixture();
    let (one, two) = (
        TestImage::new(&[base_layer()], Packing::Gzip),
        image(Packing::Gzip),
    );
    f.store
        .import(
            &f.archive(&tar_of(&one.layout(&json!({})))),
            &named("one"),
            &Silent,
        )
        .unwrap();
    f.store
        .import(
            &f.archive(&tar_of(&two.layout(&json!({})))),
            &named("two"),
            &Silent,
        )
        .unwrap();
    assert_eq!(f.entries("layers"), 2);
    assert_eq!(
        f.store
            .remove("two", &BTreeSet::new(), false)
            .unwrap()
            .layers,
        1
    );
    assert!(
        f.store
            .resolve(&Reference::parse("one").unwrap())
            .unwrap()
            .is_some()
    );
    assert!(f.store.find(one.digest().short()).unwrap().is_some());
}

#[test]
fn collection_during_a_lease_is_postponed() {
    let f = fixture();
    let lease = f.store.lease().unwrap();
    assert!(f.store.gc_unreferenced(&BTreeSet::new()).unwrap().postponed);
    drop(lease);
    assert!(!f.store.gc_unreferenced(&BTreeSet::new()).unwrap().postponed);
}

#[test]
fn open_after_a_kill_sweeps_half_unpacked_layers() {
    let f = fixture();
    std::fs::create_dir_all(f.store.path().join("tmp/0123/layer/fs/etc")).unwrap();
    Store::open(&f.dir.path().join("root")).unwrap();
    assert_eq!(f.entries("tmp"), 0);
}

#[test]
fn resolve_with_a_missing_layer_or_a_damaged_manifest_says_so() {
    let f = fixture();
    let image = image(Packing::Gzip);
    let imported = f
        .store
        .import(
            &f.archive(&tar_of(&image.layout(&json!({})))),
            &named("hello"),
            &Silent,
        )
        .unwrap();
    let name = Reference::parse("hello").unwrap();
    let layer = imported[0].layers[0].parent().unwrap();
    std::fs::remove_dir_all(layer).unwrap();
    assert!(
        f.store
            .resolve(&name)
            .unwrap_err()
            .to_string()
            .contains("its layer")
    );
    std::fs::write(
        f.store
            .path()
            .join("blobs/sha256")
            .join(image.digest().hex()),
        b"{}",
    )
    .unwrap();
    assert!(
        f.store
            .resolve(&name)
            .unwrap_err()
            .to_string()
            .contains("its manifest")
    );
}

#[test]
fn remove_of_a_damaged_image_works() {
    let f = fixture();
    let image = image(Packing::Gzip);
    let path = f.archive(&tar_of(&image.layout(&json!({}))));
    f.store.import(&path, &named("hello"), &Silent).unwrap();
    let manifest = f.store.path().join("blobs/sha256");
    std::fs::remove_file(manifest.join(image.digest().hex())).unwrap();
    let collected = f.store.remove("hello", &BTreeSet::new(), false).unwrap();
    assert_eq!((collected.layers, f.entries("layers")), (2, 0));
}

#[test]
fn imports_at_once_of_the_same_image_all_succeed() {
    let f = fixture();
    let image = image(Packing::Gzip);
    let path = f.archive(&tar_of(&image.layout(&json!({}))));
    std::thread::scope(|scope| {
        for at in 0..4 {
            let (store, path) = (f.store.clone(), &path);
            scope.spawn(move || {
                store
                    .import(path, &named(&format!("hello:{at}")), &Silent)
                    .unwrap()
            });
        }
    });
    assert_eq!(f.store.list().unwrap().len(), 4);
    assert_eq!((f.entries("layers"), f.entries("tmp")), (2, 0));
}
