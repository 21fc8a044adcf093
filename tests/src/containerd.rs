//! A real containerd of the tests' own: its configuration, its process, its `ctr`. One for all cases of a test program.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{LIMIT, SmallImage, Vmpod, eventually, processes_with, program};

/// On a file system that snapshots can lie on, unless the environment names another place.
const ROOT: &str = "/var/lib/vmpod/test-containerd";

/// Environment variable with another place than [`ROOT`].
const ROOT_VARIABLE: &str = "VMPOD_TEST_CONTAINERD_ROOT";

fn root() -> PathBuf {
    std::env::var_os(ROOT_VARIABLE).map_or_else(|| ROOT.into(), PathBuf::from)
}

/// What does not outlive a boot.
const STATE: &str = "/run/vmpod-test-containerd";

/// The cgroup that the pods' own are in, below the root of the hierarchy. The kubelet makes its own before any pod.
pub(crate) const CGROUP_PARENT: &str = "/vmpod-test";

/// Name of the image that sandboxes run under runtimes that need one.
const PAUSE: &str = "vmpod.test/pause:1";

/// The handler of pods whose streams containerd opens to the shim instead of fifos. There from 2.1 on.
pub const STREAMING: &str = "vmpod-streaming";

const SUBNETS: [&str; 2] = [
    r#"[{"subnet": "10.77.0.0/24"}]"#,
    r#"[{"subnet": "fd77::/64"}]"#,
];

/// Environment variable: pods have IPv4 addresses alone. A bench sets it, because an IPv6 address is waited for, for a
/// random time (RFC 4862, section 5.4.2).
const IPV4_VARIABLE: &str = "VMPOD_TEST_IPV4_ONLY";

fn subnets() -> String {
    let ipv4_only = std::env::var_os(IPV4_VARIABLE).is_some();
    let count = if ipv4_only { 1 } else { SUBNETS.len() };
    format!("[{}]", SUBNETS[..count].join(", "))
}

/// The running containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Mutex<Option<Child>>,
    root: PathBuf,
    state: PathBuf,
    version: (u32, u32),
    cgroups: Cgroups,
}

/// What containerd and its shims find at `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cgroups {
    /// The host's.
    Hosts,
    /// A hierarchy of version 1 without a controller, in a mount namespace of their own.
    V1,
}

/// Makes [`Cgroups::V1`], and executes its arguments.
const WITH_CGROUP_V1: &str = "mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup \
    && mkdir /sys/fs/cgroup/systemd \
    && mount -t cgroup -o none,name=vmpod-test cgroup /sys/fs/cgroup/systemd \
    && exec \"$@\"";

/// The containerd of this test program, started with the first use.
///
/// # Panics
/// When it does not come.
pub fn containerd() -> &'static Containerd {
    static ONE: OnceLock<Containerd> = OnceLock::new();
    ONE.get_or_init(|| Containerd::start(root(), STATE.into(), Cgroups::Hosts))
}

fn write(path: &Path, text: &str) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("make a directory");
    }
    fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

impl Containerd {
    /// One more, on a host with cgroups of version 1, as far as it and its shims see. Killed when it is dropped.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn with_cgroup_v1() -> Self {
        let root = root().with_extension("v1");
        Self::start(root, format!("{STATE}-v1").into(), Cgroups::V1)
    }

    fn start(root: PathBuf, state: PathBuf, cgroups: Cgroups) -> Self {
        stop_former(&state);
        let _ = fs::remove_dir_all(&root);
        let containerd = Self {
            process: Mutex::new(None),
            root,
            state,
            version: version(),
            cgroups,
        };
        write(&containerd.state.join("config.toml"), &containerd.config());
        write(
            &containerd.state.join("cni/10-test.conflist"),
            &format!(
                r#"{{"cniVersion": "0.4.0", "name": "test", "plugins": [
  {{"type": "bridge", "bridge": "cni-test0", "isGateway": true, "ipMasq": true, "mtu": 1420,
   "ipam": {{"type": "host-local", "dataDir": "{state}/ipam", "ranges": {ranges},
    "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
                state = containerd.state.display(),
                ranges = subnets(),
            ),
        );
        fs::create_dir_all(format!("/sys/fs/cgroup{CGROUP_PARENT}"))
            .expect("make the pods' cgroup");
        containerd.launch();
        containerd.image("busybox");
        let pause = SmallImage::pause();
        containerd.import(&pause.archive(PAUSE));
        containerd
    }

    fn config(&self) -> String {
        format!(
            r#"version = 2
root = "{root}"
state = "{state}/state"
[grpc]
  address = "{socket}"
[debug]
  level = "debug"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    pod_annotations = ["test.*"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vmpod]
    runtime_type = "io.containerd.vmpod.v2"
    pod_annotations = ["test.*"]
    privileged_without_host_devices = false
{sandboxer}{streaming}"#,
            root = self.root.display(),
            state = self.state.display(),
            socket = self.socket().display(),
            // From 2.0 on the runtime makes the pod itself.
            sandboxer = if self.version >= (2, 0) {
                "    sandboxer = \"shim\"\n"
            } else {
                ""
            },
            streaming = if self.version >= (2, 1) {
                format!(
                    r#"  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{STREAMING}]
    runtime_type = "io.containerd.vmpod.v2"
    sandboxer = "shim"
    io_type = "streaming"
"#
                )
            } else {
                String::new()
            },
        )
    }

    /// Its version, major and minor.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Its socket, which the CRI is on as well.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.state.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self) {
        let binary = PathBuf::from(
            std::env::var_os("VMPOD_BIN").expect("VMPOD_BIN is set by cargo xtask test"),
        );
        let beside = binary.parent().expect("a directory").display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.state.join("log"))
            .expect("open containerd's log");
        let mut command = match self.cgroups {
            Cgroups::Hosts => Command::new("containerd"),
            Cgroups::V1 => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", WITH_CGROUP_V1, "sh", "containerd"]);
                command
            }
        };
        let child = command
            .arg("--config")
            .arg(self.state.join("config.toml"))
            // Shims are found in the path.
            .env("PATH", format!("{beside}:{path}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("copy a descriptor"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("run containerd, which cargo xtask test installs");
        write(&self.state.join("pid"), &child.id().to_string());
        *self.process() = Some(child);
        eventually("an answer of containerd", || {
            let asked = self.ctr(["plugins", "ls"]).run();
            (asked.code == 0 && asked.out.contains("cri")).then_some(())
        });
    }

    /// Kills it, and starts it again.
    ///
    /// # Panics
    /// When it does not come.
    pub fn restart(&self) {
        self.kill();
        self.launch();
    }

    /// Kills it.
    pub fn kill(&self) {
        if let Some(mut child) = self.process().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again after [`Self::kill`].
    ///
    /// # Panics
    /// When it does not come.
    pub fn revive(&self) {
        self.launch();
    }

    /// Brings the image of an archive to containerd.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn import(&self, archive: &Path) {
        // Unpacked when a container wants it.
        self.ctr(["-n", "k8s.io", "image", "import", "--no-unpack"])
            .arg(archive)
            .within(4 * LIMIT)
            .ok();
    }

    /// Brings an image of `cargo xtask images`, whose archive's name begins with `name`, to containerd. Returns its name.
    ///
    /// # Panics
    /// When there is none.
    pub fn image(&self, name: &str) -> String {
        let listed =
            std::env::var("VMPOD_IMAGES").expect("VMPOD_IMAGES is set by cargo xtask test");
        let archive = listed
            .split(':')
            .map(PathBuf::from)
            .find(|path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                file.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
            .unwrap_or_else(|| panic!("no archive of {name} among {listed}"));
        self.import(&archive);
        // The archive's file is named after the image: geektime-sample-v2 is geektime/sample:v2.
        match name.split('-').collect::<Vec<_>>().as_slice() {
            [user, image, tag] => format!("docker.io/{user}/{image}:{tag}"),
            _ => format!("docker.io/library/{name}:latest"),
        }
    }

    /// `ctr` with these words.
    #[must_use]
    pub fn ctr<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Vmpod {
        program(Path::new("ctr"), ["--address"])
            .arg(self.socket())
            .args(words)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.root);
        let _ = fs::remove_dir_all(&self.state);
    }
}

/// Version of the containerd that is found in the path: `containerd github.com/containerd/containerd 1.6.20~ds1 ...`.
fn version() -> (u32, u32) {
    let said = program(Path::new("containerd"), ["--version"]).ok();
    let numbers = said.split_whitespace().nth(2).and_then(|version| {
        let mut parts = version.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    numbers.unwrap_or_else(|| panic!("containerd says {said:?}"))
}

/// Kills the containerd of a test program that ended without doing so.
fn stop_former(state: &Path) {
    let here = format!("{}/", state.display());
    let pid = fs::read_to_string(state.join("pid")).unwrap_or_default();
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.starts_with("containerd") {
        let _ = Command::new("kill").args(["-9", &pid]).status();
    }
    // What its shims served is gone with it.
    for (pid, command) in processes_with("containerd-shim") {
        if command.contains(&here) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
    let _ = fs::remove_dir_all(state);
}
