//! A host of its own for a test: network namespace, roots, an image, and the look at what is left.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The host of one test.
pub struct Host {
    dir: tempfile::TempDir,
    /// Keeps the network namespace alive.
    anchor: Child,
}

/// What every command on the host is started with.
const LIMIT: &str = "60";

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        for part in ["vmlinux", "initramfs.cpio"] {
            std::fs::write(lib.join(part), "").unwrap();
        }
        let mut anchor = Command::new("unshare")
            .args([
                "-n",
                "sh",
                "-c",
                "ip link set lo up; echo up; exec sleep 600",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there and the test runs as root");
        let mut line = [0; 3];
        std::io::Read::read_exact(anchor.stdout.as_mut().unwrap(), &mut line)
            .expect("a network namespace: the test runs as root");
        let host = Self { dir, anchor };
        let archive = host.dir.path().join("greeter.tar");
        write_image(&archive);
        let imported = host.vmpod("", &["image", "import", archive.to_str().unwrap()], "");
        assert_eq!(imported.code, 0, "{imported:?}");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, mode: &str, arguments: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_vmpod"));
        let fake = program.parent().unwrap().join("examples/fake_machine");
        assert!(
            fake.exists(),
            "{} is not built; `cargo build --package vmpod-shim --examples` builds it",
            fake.display()
        );
        let machine = self.path(&format!("machine-{mode}"));
        if !machine.exists() {
            std::os::unix::fs::symlink(fake, &machine).expect("name the machine after its mode");
        }
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.anchor.id()))
            .args(["timeout", "-k", "1", LIMIT])
            .arg(program)
            // On the command line, so that processes of this host are told from those of others.
            .arg("--root")
            .arg(self.path("run"))
            .arg("--state")
            .arg(self.path("state"))
            .args(arguments)
            .env("VMPOD_LIB", self.path("lib"))
            .env("VMPOD_VMM", machine)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self, mode: &str, arguments: &[&str], input: &str) -> Child {
        let mut child = self.command(mode, arguments).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child
    }

    /// Runs vmpod with a machine that behaves as `mode` says.
    pub fn vmpod(&self, mode: &str, arguments: &[&str], input: &str) -> Outcome {
        let output = self
            .spawn(mode, arguments, input)
            .wait_with_output()
            .unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn inspect(&self, pod: &str) -> serde_json::Value {
        let outcome = self.vmpod("", &["inspect", pod], "");
        serde_json::from_str(&outcome.out).unwrap_or_else(|e| panic!("{e}: {outcome:?}"))
    }

    fn inside(&self, words: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.anchor.id()))
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn rules(&self) -> String {
        self.nft(&["list", "ruleset"])
    }

    /// What the program nft prints.
    pub fn nft(&self, words: &[&str]) -> String {
        self.inside(&[&["nft"], words].concat())
    }

    /// Kills the supervisors of this host's pods, and waits until they and their machines are gone.
    pub fn kill_supervisors(&self) {
        let run = self.path("run");
        eventually("the end of all processes", || {
            let left = processes_naming(run.to_str().unwrap());
            for pid in &left {
                kill(*pid);
            }
            left.is_empty()
        });
    }

    /// Waits until the one pod's machine was told to let out what it sends to other hosts.
    pub fn await_open_uplink(&self) {
        let pods = self.path("run/pods");
        eventually("the opening of the uplink", || {
            let pods = std::fs::read_dir(&pods).unwrap().flatten();
            pods.map(|pod| pod.path().join("machine/uplink-opened"))
                .any(|note| note.exists())
        });
    }

    /// Nothing of any pod is left: no process, link, rule, cgroup, directory or mount.
    pub fn assert_clean(&self, network_too: bool) {
        let run = self.path("run");
        eventually("the end of all processes", || {
            processes_naming(run.to_str().unwrap()).is_empty()
        });
        for root in ["run", "state"] {
            let pods: Vec<_> = std::fs::read_dir(self.path(root).join("pods"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(pods.is_empty(), "{pods:?}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        if network_too {
            let links = self.inside(&["ip", "-br", "link"]);
            assert_eq!(links.lines().count(), 1, "{links}");
            assert_eq!(self.rules(), "");
            let leases: Vec<_> = std::fs::read_dir(self.path("run/network/leases"))
                .into_iter()
                .flatten()
                .collect();
            assert!(leases.is_empty(), "{leases:?}");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let run = self.path("run");
        for pid in processes_naming(run.to_str().unwrap()) {
            kill(pid);
        }
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

/// What nft prints in a network namespace whose rules it has made of `text`.
pub fn nft_elsewhere(text: &str, words: &[&str]) -> String {
    let mut child = Command::new("unshare")
        .args(["-n", "sh", "-ec", "nft -f -; nft \"$@\"", "sh"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft does not take {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Processes with `text` on their command line.
fn processes_naming(text: &str) -> Vec<i64> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(text).then_some(pid)
        })
        .collect()
}

pub fn kill(pid: i64) {
    let _ = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

pub fn runs(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let limit = Duration::from_secs(30);
    let deadline = Instant::now() + limit;
    while !reached() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come within {} s",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A docker archive of an image whose one layer holds a greeting.
fn write_image(path: &Path) {
    let entry = |builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, "greeting", b"hello\n");
    let layer = layer.into_inner().unwrap();
    let digest: String = <sha2::Sha256 as sha2::Digest>::digest(&layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["x"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    let manifest =
        r#"[{"Config":"config.json","RepoTags":["greeter:latest"],"Layers":["layer.tar"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, "layer.tar", &layer);
    entry(&mut archive, "config.json", config.as_bytes());
    entry(&mut archive, "manifest.json", manifest.as_bytes());
    std::fs::write(path, archive.into_inner().unwrap()).unwrap();
}
