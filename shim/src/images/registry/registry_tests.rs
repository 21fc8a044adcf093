//! Pulls from a real registry: Debian's `docker-registry`, started for each test on a loopback port of its own.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oci_client::Client;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use serde_json::json;

use super::super::archive_fixture::{LayerTar, Packing, TestImage};
use super::super::{
    CredentialSource, Digest, Event, Image, Mirror, Progress, PullCause, PullError, PullOptions,
    PullPolicy, Reference, Silent, Store,
};
use super::fetch::provide_cryptography;

/// bcrypt of "secret word", cost 5, as htpasswd writes it.
const HTPASSWD: &str = "tester:$2y$05$abcdefghijklmnopqrstuu1C7yeI3ZG3Jm.nHdnKkGJg1xTYKP9Oy\n";

struct Registry {
    process: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Taken by asking for any free port; whoever takes it in between makes the test fail loudly below.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: \"{address}\"\n{extra}",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need the registry of Debian's package docker-registry; `cargo xtask test` installs it, or: apt-get install docker-registry");
        let mut registry = Self {
            process,
            dir,
            address,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            let ended = registry.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "docker-registry did not start: {ended:?}\n{}",
                std::fs::read_to_string(registry.dir.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    async fn push(&self, image: &TestImage, name: &str, auth: &RegistryAuth) {
        let client = plain_client();
        let reference = self.name(name);
        let reference = reference.as_client();
        client
            .store_auth_if_needed(reference.resolve_registry(), auth)
            .await;
        for blob in image.blobs().into_iter().skip(1) {
            let digest = Digest::of(&blob).to_string();
            client.push_blob(reference, blob, &digest).await.unwrap();
        }
        push_manifest(
            &client,
            reference,
            &image.manifest,
            "application/vnd.oci.image.manifest.v1+json",
        )
        .await;
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join(format!(
            "data/docker/registry/v2/blobs/sha256/{}/{}/data",
            &digest.hex()[..2],
            digest.hex()
        ))
    }
}

fn plain_client() -> Client {
    provide_cryptography();
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    })
}

async fn push_manifest(
    client: &Client,
    reference: &oci_client::Reference,
    bytes: &[u8],
    kind: &'static str,
) {
    client
        .push_manifest_raw(reference, bytes.to_vec(), kind.parse().unwrap())
        .await
        .unwrap();
}

fn layers() -> Vec<Vec<u8>> {
    (0..5)
        .map(|at| {
            LayerTar::default()
                .dir("d", 0o755)
                .file(&format!("d/{at}"), &vec![at; 300_000])
                .file(&format!("d/.wh.{}", at.wrapping_sub(1)), b"")
                .finish()
        })
        .collect()
}

struct Host {
    _dir: tempfile::TempDir,
    store: Store,
}

fn host() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Host { _dir: dir, store }
}

impl Host {
    async fn pull(&self, name: &Reference, options: &PullOptions) -> Result<Image, PullError> {
        self.store.pull(name, options, &Silent).await
    }

    fn entries(&self, folder: &str) -> usize {
        std::fs::read_dir(self.store.path().join(folder))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "lock")
            .count()
    }
}

fn anonymous() -> PullOptions {
    PullOptions {
        credentials: CredentialSource::Anonymous,
        ..PullOptions::default()
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn event(&self, event: Event<'_>) {
        let text = match event {
            Event::LayerBytes { done, total, .. } if done == total => "downloaded".to_owned(),
            Event::LayerDone { .. } => "unpacked".to_owned(),
            Event::LayerPresent { .. } => "present".to_owned(),
            Event::Retrying { reason, .. } => format!("retry: {reason}"),
            Event::Done { name, .. } => format!("done {name}"),
            _ => return,
        };
        self.0.lock().unwrap().push(text);
    }
}

impl Heard {
    fn count(&self, start: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|text| text.starts_with(start))
            .count()
    }
}

#[tokio::test]
async fn pull_of_a_pushed_image_unpacks_it_and_tells_of_it() {
    for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
        let registry = Registry::start();
        let image = TestImage::new(&layers(), packing);
        registry
            .push(&image, "some/app:1", &RegistryAuth::Anonymous)
            .await;
        let (host, heard) = (host(), Heard::default());
        let name = registry.name("some/app:1");
        let pulled = host.store.pull(&name, &anonymous(), &heard).await.unwrap();
        assert_eq!(
            (pulled.digest.clone(), pulled.layers.len()),
            (image.digest(), 5)
        );
        assert_eq!(
            std::fs::read(pulled.layers[0].join("d/4")).unwrap(),
            vec![4; 300_000]
        );
        assert_eq!(
            (
                heard.count("downloaded"),
                heard.count("unpacked"),
                heard.count("done"),
                heard.count("retry")
            ),
            (5, 5, 1, 0)
        );
        assert_eq!((host.entries("layers"), host.entries("tmp")), (5, 0));
        // Present now: no registry is needed any more, unless the policy says so.
        drop(registry);
        assert_eq!(
            host.pull(&name, &anonymous()).await.unwrap().digest,
            image.digest()
        );
        let always = PullOptions {
            policy: PullPolicy::Always,
            ..anonymous()
        };
        assert!(host.pull(&name, &always).await.is_err());
    }
}

#[tokio::test]
async fn pull_always_of_an_unchanged_image_fetches_no_layer_and_of_a_moved_tag_only_new_ones() {
    let registry = Registry::start();
    let old = TestImage::new(&layers()[..4], Packing::Gzip);
    registry.push(&old, "app:1", &RegistryAuth::Anonymous).await;
    let host = host();
    let name = registry.name("app:1");
    host.pull(&name, &anonymous()).await.unwrap();
    let always = PullOptions {
        policy: PullPolicy::Always,
        ..anonymous()
    };
    let heard = Heard::default();
    host.store.pull(&name, &always, &heard).await.unwrap();
    assert_eq!((heard.count("present"), heard.count("downloaded")), (4, 0));
    let new = TestImage::new(&layers(), Packing::Gzip);
    registry.push(&new, "app:1", &RegistryAuth::Anonymous).await;
    let heard = Heard::default();
    assert_eq!(
        host.store
            .pull(&name, &always, &heard)
            .await
            .unwrap()
            .digest,
        new.digest()
    );
    assert_eq!((heard.count("present"), heard.count("downloaded")), (4, 1));
    // The old manifest has no name any more, but all its layers are still of use.
    assert_eq!(
        host.store.gc_unreferenced(&BTreeSet::new()).unwrap().layers,
        0
    );
    let by_digest = Reference::parse(&format!("{}@{}", name.name(), old.digest())).unwrap();
    assert_eq!(
        host.pull(&by_digest, &anonymous()).await.unwrap().digest,
        old.digest()
    );
}

#[tokio::test]
async fn pull_of_an_index_takes_the_image_for_amd64() {
    let registry = Registry::start();
    let (arm, amd) = (
        TestImage::for_architecture(&layers()[..1], Packing::Gzip, "arm64"),
        TestImage::new(&layers()[..2], Packing::Gzip),
    );
    registry
        .push(&arm, "multi:arm", &RegistryAuth::Anonymous)
        .await;
    registry
        .push(&amd, "multi:amd", &RegistryAuth::Anonymous)
        .await;
    let entry = |image: &TestImage, arch: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest().to_string(), "size": image.manifest.len(),
               "platform": {"os": "linux", "architecture": arch}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry(&arm, "arm64"), entry(&amd, "amd64")]});
    let index = serde_json::to_vec(&index).unwrap();
    let client = plain_client();
    push_manifest(
        &client,
        registry.name("multi:1").as_client(),
        &index,
        "application/vnd.oci.image.index.v1+json",
    )
    .await;
    let host = host();
    let pulled = host
        .pull(&registry.name("multi:1"), &anonymous())
        .await
        .unwrap();
    assert_eq!(
        (pulled.digest, pulled.index_digest),
        (amd.digest(), Some(Digest::of(&index)))
    );
    let error = host
        .pull(&registry.name("multi:arm"), &anonymous())
        .await
        .unwrap_err()
        .cause
        .to_string();
    assert!(
        error.contains("linux/amd64") && error.contains("linux/arm64"),
        "{error}"
    );
}

#[tokio::test]
async fn pull_of_a_private_image_needs_the_right_credentials() {
    let registry = Registry::start_with("auth: {htpasswd: {realm: test, path: DIR/htpasswd}}\n");
    let image = TestImage::new(&layers()[..2], Packing::Gzip);
    registry
        .push(
            &image,
            "private:1",
            &RegistryAuth::Basic("tester".into(), "secret word".into()),
        )
        .await;
    let (host, name) = (host(), registry.name("private:1"));
    let refused = host.pull(&name, &anonymous()).await.unwrap_err();
    assert!(
        matches!(refused.cause, PullCause::Unauthorized { .. })
            && refused.cause.to_string().contains("docker login"),
        "{refused:?}"
    );
    let wrong = CredentialSource::Basic {
        user: "tester".into(),
        password: "wrong".into(),
    };
    let refused = host
        .pull(
            &name,
            &PullOptions {
                credentials: wrong,
                ..PullOptions::default()
            },
        )
        .await
        .unwrap_err();
    assert!(
        refused.cause.to_string().contains("not accepted"),
        "{refused:?}"
    );
    let config = registry.dir.path().join("config.json");
    // base64 of "tester:secret word"
    std::fs::write(
        &config,
        format!(
            r#"{{"auths":{{"{}":{{"auth":"dGVzdGVyOnNlY3JldCB3b3Jk"}}}}}}"#,
            registry.address
        ),
    )
    .unwrap();
    let options = PullOptions {
        credentials: CredentialSource::File(config),
        ..PullOptions::default()
    };
    assert_eq!(
        host.pull(&name, &options).await.unwrap().digest,
        image.digest()
    );
}

#[tokio::test]
async fn pull_through_a_mirror_needs_no_origin_and_falls_back_to_the_next() {
    let (mirror, empty) = (Registry::start(), Registry::start());
    let image = TestImage::new(&layers()[..2], Packing::Gzip);
    mirror
        .push(&image, "library/app:1", &RegistryAuth::Anonymous)
        .await;
    let via = |address: SocketAddr| Mirror {
        registry: "registry.invalid".into(),
        host: address.to_string(),
    };
    let name = Reference::parse("registry.invalid/library/app:1").unwrap();
    let options = PullOptions {
        mirrors: vec![via(empty.address), via(mirror.address)],
        ..anonymous()
    };
    let host = host();
    let pulled = host.pull(&name, &options).await.unwrap();
    assert_eq!(
        (pulled.digest, pulled.name.as_str()),
        (image.digest(), "registry.invalid/library/app:1")
    );
    // Without that mirror both the empty one and the registry itself are blamed.
    let name = empty.name("library/app:1");
    let mirrors = vec![Mirror {
        registry: "*".into(),
        host: "127.0.0.1:1".into(),
    }];
    let error = host
        .pull(
            &name,
            &PullOptions {
                mirrors,
                ..anonymous()
            },
        )
        .await
        .unwrap_err()
        .cause
        .to_string();
    assert!(
        error.contains("127.0.0.1:1")
            && error.contains(&empty.address.to_string())
            && error.contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn pull_of_a_blob_corrupted_on_the_registry_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    let image = TestImage::new(&layers()[..2], Packing::Gzip);
    registry
        .push(&image, "bad:1", &RegistryAuth::Anonymous)
        .await;
    let blob = Digest::of(&image.layers[1].1);
    let path = registry.blob_path(&blob);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let (host, name) = (host(), registry.name("bad:1"));
    for (content, property) in [
        (bad, "digest"),
        (good[..good.len() - 5].to_vec(), "size"),
        ([&good[..], b"more"].concat(), "size"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = host.pull(&name, &anonymous()).await.unwrap_err();
        assert!(
            matches!(&error.cause, PullCause::Content { what, property: found, .. } if what.contains(blob.hex()) && found.contains(property)),
            "{error:?}"
        );
        assert_eq!(host.entries("tmp"), 0);
        assert!(host.store.list().unwrap().is_empty());
    }
    // And the manifest, which is found by its tag.
    std::fs::write(&path, good).unwrap();
    let manifest = registry.blob_path(&image.digest());
    let changed =
        String::from_utf8(image.manifest.clone())
            .unwrap()
            .replacen("\"size\":", "\"size\": ", 1);
    std::fs::write(manifest, changed).unwrap();
    assert!(host.pull(&name, &anonymous()).await.is_err());
    assert_eq!((host.entries("tmp"), host.entries("blobs/sha256")), (0, 0));
}

#[tokio::test]
async fn pull_of_what_is_not_there_says_what_and_where() {
    let registry = Registry::start();
    registry
        .push(
            &TestImage::new(&layers()[..1], Packing::Gzip),
            "app:1",
            &RegistryAuth::Anonymous,
        )
        .await;
    let host = host();
    for name in ["app:2", "nothing:1", "deep/er/nothing"] {
        let name = registry.name(name);
        let error = host.pull(&name, &anonymous()).await.unwrap_err();
        assert!(error.to_string().contains(&name.to_string()), "{error}");
        let cause = error.cause.to_string();
        assert!(
            matches!(error.cause, PullCause::NotFound { .. })
                && cause.contains("no such image")
                && cause.contains(&registry.address.to_string()),
            "{cause}"
        );
    }
    let never = PullOptions {
        policy: PullPolicy::Never,
        ..anonymous()
    };
    assert!(matches!(
        host.pull(&registry.name("app:1"), &never)
            .await
            .unwrap_err()
            .cause,
        PullCause::NotPresent
    ));
}

#[tokio::test]
async fn pull_over_tls_trusts_the_certificate_of_the_host_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = |name: &str| {
        let file = |kind: &str| directory.path().join(format!("{name}.{kind}"));
        let output = Command::new("openssl")
            .args("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry".split(' '))
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(file("key"))
            .arg("-out")
            .arg(file("crt"))
            .output()
            .expect("these tests need openssl; `cargo xtask test` installs it");
        assert!(output.status.success(), "{output:?}");
        file("crt")
    };
    let (own, other) = (certificate("own"), certificate("other"));
    let image = TestImage::new(&layers(), Packing::Gzip);
    let plain = Registry::start();
    plain
        .push(&image, "some/app:1", &RegistryAuth::Anonymous)
        .await;
    // The same content again, behind TLS.
    let secure = Registry::start_with(&format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        own.display(),
        own.with_extension("key").display()
    ));
    let data = plain.dir.path().join("data");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&data, secure.dir.path()])
        .status();
    assert!(copied.unwrap().success());
    let trust = directory.path().join("certs.d");
    let folder = trust.join(secure.address.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let options = PullOptions {
        certificates: trust,
        ..anonymous()
    };
    let host = host();
    let name = secure.name("some/app:1");
    std::fs::copy(&other, folder.join("ca.crt")).unwrap();
    let error = host.pull(&name, &options).await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("certificate"), "{text}");
    std::fs::copy(&own, folder.join("ca.crt")).unwrap();
    let pulled = host.pull(&name, &options).await.unwrap();
    assert_eq!(pulled.digest, image.digest());
}

#[tokio::test]
async fn pull_from_a_host_that_is_not_there_says_so_soon() {
    let host = host();
    let start = Instant::now();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = host
        .pull(
            &Reference::parse(&format!("{free}/a:1")).unwrap(),
            &anonymous(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error.cause, PullCause::Unreachable { .. }),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    // A machine without DNS calls this temporary, so one attempt is enough here.
    let options = PullOptions {
        attempts: 1,
        ..anonymous()
    };
    let error = host
        .pull(
            &Reference::parse("no-such-registry.invalid/a:1").unwrap(),
            &options,
        )
        .await
        .unwrap_err();
    let text = error.cause.to_string();
    assert!(
        text.contains("no-such-registry.invalid")
            && (text.contains("does not resolve") || text.contains("lookup")),
        "{text}"
    );
}

/// Answers the first connections with 503 or cuts them after some bytes, then passes all on to the registry.
async fn flaky_front(to: SocketAddr, refusals: usize, cuts: usize) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = AtomicUsize::new(0);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let at = served.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                if at < refusals {
                    let _ = client.read(&mut [0; 4096]).await;
                    let _ = client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                    return;
                }
                let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                if at < refusals + cuts {
                    let (mut from_server, mut to_server) = server.split();
                    let (mut from_client, mut to_client) = client.split();
                    let up = tokio::io::copy(&mut from_client, &mut to_server);
                    let down = async {
                        tokio::io::copy(&mut (&mut from_server).take(2000), &mut to_client).await
                    };
                    tokio::select! { _ = up => {}, _ = down => {} }
                    return;
                }
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn pull_over_a_flaky_connection_is_tried_again() {
    let registry = Registry::start();
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let image = TestImage::new(
        &[LayerTar::default().file("noise", &noise).finish()],
        Packing::Plain,
    );
    registry
        .push(&image, "app:1", &RegistryAuth::Anonymous)
        .await;
    let front = flaky_front(registry.address, 2, 1).await;
    let (host, heard) = (host(), Heard::default());
    let name = Reference::parse(&format!("{front}/app:1")).unwrap();
    let pulled = host.store.pull(&name, &anonymous(), &heard).await.unwrap();
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(
        std::fs::read(pulled.layers[0].join("noise")).unwrap(),
        noise
    );
    assert!(
        heard.count("retry: ") >= 2
            && heard
                .0
                .lock()
                .unwrap()
                .iter()
                .any(|text| text.contains("503")),
        "{:?}",
        heard.0
    );
}

#[tokio::test]
async fn pulls_at_once_of_one_name_fetch_it_once() {
    let registry = Registry::start();
    registry
        .push(
            &TestImage::new(&layers(), Packing::Gzip),
            "app:1",
            &RegistryAuth::Anonymous,
        )
        .await;
    let (host, name, options, heard) = (
        host(),
        registry.name("app:1"),
        anonymous(),
        Heard::default(),
    );
    let pull = || host.store.pull(&name, &options, &heard);
    let (one, two, three) = tokio::join!(pull(), pull(), pull());
    assert_eq!(one.unwrap().digest, two.unwrap().digest);
    three.unwrap();
    assert_eq!((heard.count("downloaded"), heard.count("done")), (5, 1));
    assert!(Path::new(host.store.path()).join("index.json").is_file());
}
