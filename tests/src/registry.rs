//! A real image registry (Debian's docker-registry) on loopback, and a small image to put there.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::eventually;

/// An image of one layer: what a Containerfile says, or else busybox under its own name and as the shell, and a user `u` (1000)
/// who is in group `extra` (4000).
#[derive(Debug)]
pub struct SmallImage {
    directory: TempDir,
}

impl SmallImage {
    /// Makes it.
    ///
    /// # Panics
    /// When tar or busybox is missing.
    #[must_use]
    pub fn make() -> Self {
        Self::with(&json!({"Cmd": ["/bin/sh", "-c", "read line < /name; echo image $line"]}))
    }

    /// Makes one that only waits, as sandbox images do.
    ///
    /// # Panics
    /// When tar or busybox is missing.
    #[must_use]
    pub fn pause() -> Self {
        Self::with(&json!({
            "Entrypoint": ["/bin/busybox", "sleep", "1000000000"],
            // With a configuration of its own it is no other image's namesake.
            "Env": ["PAUSE=yes"],
        }))
    }

    /// Makes what a Containerfile says whose base is `scratch`, with `COPY FROM TO` and an `ENTRYPOINT` in JSON alone.
    ///
    /// # Panics
    /// When the file has other instructions, or what it copies is not in `context`.
    #[must_use]
    pub fn of_containerfile(file: &Path, context: &Path) -> Self {
        let text = std::fs::read_to_string(file).expect("read the Containerfile");
        let mut script = String::from("mkdir root");
        let mut config = json!({});
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').expect("an instruction");
            match instruction {
                "FROM" => assert_eq!(rest, "scratch"),
                "COPY" => {
                    let (from, to) = rest.split_once(' ').expect("from and to");
                    let from = context.join(from);
                    let _ = write!(
                        script,
                        " && mkdir -p root{to} && cp -r {}/. root{to}",
                        from.display()
                    );
                }
                "ENTRYPOINT" => {
                    config["Entrypoint"] = serde_json::from_str(rest).expect("a list of words");
                }
                _ => panic!("{line}: another instruction"),
            }
        }
        Self::packed(&script, &config)
    }

    fn with(config: &Value) -> Self {
        Self::packed(
            "mkdir -p root/bin && cp /bin/busybox root/bin/ && ln -s busybox root/bin/sh && echo small > root/name \
             && mkdir root/etc && echo u:x:1000:1000::/:/bin/sh > root/etc/passwd \
             && printf 'u:x:1000:\\nextra:x:4000:u\\n' > root/etc/group",
            config,
        )
    }

    /// An image of what `script` leaves in the directory `root`.
    fn packed(script: &str, config: &Value) -> Self {
        let directory = tempfile::tempdir().expect("make a directory for the image");
        let path = directory.path();
        shell(path, script);
        shell(
            path,
            "tar -C root --numeric-owner -cf layer.tar . && rm -r root",
        );
        let image = Self { directory };
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [image.digest("layer.tar")]},
        });
        image.write("config.json", &config);
        image
    }

    fn write(&self, file: &str, content: &Value) {
        std::fs::write(self.directory.path().join(file), content.to_string())
            .expect("write a file of the image");
    }

    fn size(&self, file: &str) -> u64 {
        let path = self.directory.path().join(file);
        std::fs::metadata(path).expect("a file of the image").len()
    }

    fn digest(&self, file: &str) -> String {
        let line = shell(self.directory.path(), &format!("sha256sum {file}"));
        format!(
            "sha256:{}",
            line.split(' ').next().expect("a line of sha256sum")
        )
    }

    /// Packs it as `docker save` does, under the name `name`.
    #[must_use]
    pub fn archive(&self, name: &str) -> PathBuf {
        self.write(
            "manifest.json",
            &json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]),
        );
        shell(
            self.directory.path(),
            "tar -cf image.tar manifest.json config.json layer.tar",
        );
        self.directory.path().join("image.tar")
    }
}

/// The running registry.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    /// Holds its configuration and content.
    _directory: TempDir,
    /// Where it listens, e.g. `127.0.0.1:5005`.
    pub address: String,
    /// Option of curl that logs in.
    login: &'static str,
}

/// User `team`, password `hush` (bcrypt).
const PASSWORDS: &str = "team:$2b$05$KmDtIrIWWRhUhJMChvrHK.Qracdu42TImLY0Q4Q.gL7bGQgvSm8JO\n";

impl Registry {
    /// Starts it on `port` and waits until it answers.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn start(port: u16) -> Self {
        Self::start_with(port, false)
    }

    /// Starts one that wants user `team` and password `hush`.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn start_private(port: u16) -> Self {
        Self::start_with(port, true)
    }

    fn start_with(port: u16, private: bool) -> Self {
        let directory = tempfile::tempdir().expect("make a directory for the registry");
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            directory.path().join("data").display()
        );
        if private {
            let passwords = directory.path().join("passwords");
            std::fs::write(&passwords, PASSWORDS).expect("write the registry's passwords");
            text.push_str(&format!(
                "auth: {{htpasswd: {{realm: team, path: {}}}}}\n",
                passwords.display()
            ));
        }
        std::fs::write(&config, text).expect("write the registry's configuration");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run docker-registry, which cargo xtask test installs");
        let login = if private { "-u team:hush" } else { "" };
        let user = if private { "team:hush@" } else { "" };
        let registry = Self {
            process,
            _directory: directory,
            address,
            login,
        };
        eventually("an answer of the registry", || {
            crate::get(&format!("http://{user}{}/v2/", registry.address))
        });
        registry
    }

    /// Puts an image there as `repository:tag` and returns its digest.
    ///
    /// # Panics
    /// When the registry refuses it.
    #[must_use]
    pub fn push(&self, image: &SmallImage, repository: &str, tag: &str) -> String {
        let base = format!("http://{}/v2/{repository}", self.address);
        let login = self.login;
        let directory = image.directory.path();
        let mut descriptors = Vec::new();
        for (file, kind) in [
            ("config.json", "application/vnd.oci.image.config.v1+json"),
            ("layer.tar", "application/vnd.oci.image.layer.v1.tar"),
        ] {
            let digest = image.digest(file);
            shell(
                directory,
                &format!(
                    "to=$(curl -s -f {login} -D - -o /dev/null -X POST {base}/blobs/uploads/ | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p') \
                     && curl -s -f {login} -X PUT -H 'Content-Type: application/octet-stream' --data-binary @{file} \"$to&digest={digest}\""
                ),
            );
            descriptors
                .push(json!({"mediaType": kind, "digest": digest, "size": image.size(file)}));
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        image.write(
            "pushed.json",
            &json!({"schemaVersion": 2, "mediaType": kind, "config": descriptors[0], "layers": [descriptors[1]]}),
        );
        shell(
            directory,
            &format!(
                "curl -s -f {login} -X PUT -H 'Content-Type: {kind}' --data-binary @pushed.json {base}/manifests/{tag}"
            ),
        );
        image.digest("pushed.json")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn shell(directory: &Path, line: &str) -> String {
    let output = Command::new("sh")
        .args(["-e", "-c", line])
        .current_dir(directory)
        .output()
        .expect("run a shell");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
