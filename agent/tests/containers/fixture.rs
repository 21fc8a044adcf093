//! What a case works with: an engine, a root file system of busybox, specifications, and ways to look at the outcome.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use vmpod_agent::container::{
    ContainerError, Containers as _, CreateContainer, CreateExec, Engine, EngineConfig, ProcessName,
};
use vmpod_agent::event_log::EventLog;
use vmpod_agent::process::Reaper;
use vmpod_agent_protocol::messages::{ExitStatus, Stdio};

/// Exit code of a case that cannot run here.
pub const SKIPPED: i32 = 77;

const BUSYBOX: &str = "/bin/busybox";
const LIMIT: Duration = Duration::from_secs(120);

pub type CaseFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A case's tools.
pub struct Fixture {
    pub engine: Engine,
    /// Scratch directory of the case, on a file system of its own.
    pub scratch: PathBuf,
    /// Parent of the containers' control groups.
    pub groups: PathBuf,
}

fn hierarchy() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
}

fn group(pid: i32) -> Option<PathBuf> {
    hierarchy().map(|hierarchy| hierarchy.join(format!("vmpod-test-{pid}")))
}

/// Waits until `condition` holds, for as long as a slow machine may take.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "waited 60 s until {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends what a case has left behind.
pub fn clean_up(pid: i32) {
    let Some(group) = group(pid) else {
        return;
    };
    let _ = fs::write(group.join("cgroup.kill"), "1");
    for _ in 0..50 {
        let children = fs::read_dir(&group).into_iter().flatten().flatten();
        for child in children.filter(|entry| entry.path().is_dir()) {
            let _ = fs::remove_dir(child.path());
        }
        if fs::remove_dir(&group).is_ok() || !group.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn skip(reason: &str) -> ! {
    println!("skipped ({reason})");
    std::process::exit(SKIPPED);
}

impl Fixture {
    /// Sets the surroundings up and runs a case in them; gives the exit code.
    pub fn run(case: fn(Fixture) -> CaseFuture) -> i32 {
        if !nix::unistd::geteuid().is_root() {
            skip("needs root");
        }
        if !Path::new(BUSYBOX).exists() {
            skip("needs /bin/busybox of the package busybox-static");
        }
        let Some(hierarchy) = hierarchy() else {
            skip("needs a version 2 control group hierarchy");
        };
        unshare(
            CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET,
        )
        .unwrap();
        let nothing: Option<&str> = None;
        let recursive = MsFlags::MS_REC;
        mount(
            nothing,
            "/",
            nothing,
            recursive | MsFlags::MS_PRIVATE,
            nothing,
        )
        .unwrap();
        // As in the guest: the tree is shared, so that propagation can be asked for.
        mount(
            nothing,
            "/",
            nothing,
            recursive | MsFlags::MS_SHARED,
            nothing,
        )
        .unwrap();
        mount(
            Some("case"),
            "/mnt",
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .unwrap();
        let scratch = PathBuf::from("/mnt");
        fs::create_dir(scratch.join("attach")).unwrap();
        mount(
            Some("attach"),
            &scratch.join("attach"),
            Some("tmpfs"),
            MsFlags::empty(),
            nothing,
        )
        .unwrap();
        let attach = scratch.join("attach");
        mount(nothing, &attach, nothing, MsFlags::MS_PRIVATE, nothing).unwrap();
        let groups = group(nix::unistd::getpid().as_raw()).unwrap();
        fs::create_dir(&groups).unwrap();
        let _ = vmpod_agent::cgroup::delegate(&hierarchy);
        vmpod_agent::cgroup::delegate(&groups).unwrap();
        // SAFETY: prctl with integers only.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        let outcome = local.block_on(&runtime, async move {
            let engine = Engine::new(
                EngineConfig {
                    hierarchy,
                    groups: groups.clone(),
                    mount_point: attach,
                },
                Reaper::start().unwrap(),
                EventLog::new(),
            )
            .unwrap();
            let fixture = Fixture {
                engine: engine.clone(),
                scratch,
                groups,
            };
            let outcome =
                tokio::time::timeout(LIMIT, tokio::task::spawn_local(case(fixture))).await;
            engine.kill_all(Duration::from_secs(2)).await;
            outcome
        });
        match outcome {
            Ok(Ok(())) => 0,
            Ok(Err(panic)) if panic.is_panic() => 101,
            Ok(Err(_)) => 102,
            Err(_) => {
                println!("still running after {} s", LIMIT.as_secs());
                103
            }
        }
    }

    /// Ends the case as skipped when control groups lack `controller`.
    pub fn need_controller(&self, controller: &str) {
        let there = fs::read_to_string(self.groups.join("cgroup.subtree_control"))
            .unwrap_or_default()
            .split_whitespace()
            .any(|name| name == controller);
        if !there {
            skip(&format!(
                "needs the version 2 control group controller {controller}"
            ));
        }
    }

    /// A root file system with busybox under all its names.
    pub fn rootfs(&self, name: &str) -> PathBuf {
        let root = self.scratch.join(name);
        for directory in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
        )
        .unwrap();
        root
    }

    /// A specification as container engines make them, that runs `script` in the shell.
    pub fn spec(&self, id: &str, script: &str) -> Value {
        let root = self.scratch.join(id);
        let root = if root.exists() { root } else { self.rootfs(id) };
        json!({
            "ociVersion": "1.1.0",
            "root": {"path": root, "readonly": false},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {
                    "bounding": DEFAULT_CAPABILITIES,
                    "effective": DEFAULT_CAPABILITIES,
                    "permitted": DEFAULT_CAPABILITIES,
                },
                "noNewPrivileges": true,
            },
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "uts"}, {"type": "ipc"}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/kcore", "/proc/version", "/sys/firmware", "/no/such/path"],
                "readonlyPaths": ["/proc/sys", "/proc/bus"],
            },
        })
    }

    /// Creates a container with standard output and error to be collected.
    pub async fn create(&self, id: &str, spec: &Value) -> Result<u32, ContainerError> {
        self.create_with(
            id,
            spec,
            Stdio {
                stdout: true,
                stderr: true,
                ..Default::default()
            },
        )
        .await
    }

    pub async fn create_with(
        &self,
        id: &str,
        spec: &Value,
        stdio: Stdio,
    ) -> Result<u32, ContainerError> {
        self.engine
            .create(CreateContainer {
                id: id.into(),
                spec: serde_json::to_vec(spec).unwrap(),
                stdio,
                ..Default::default()
            })
            .await
    }

    /// Creates and starts.
    pub async fn launch(&self, id: &str, spec: &Value) -> ProcessName {
        self.create(id, spec).await.unwrap();
        let name = ProcessName::container(id);
        self.engine.start(&name).await.unwrap();
        name
    }

    /// Runs a container to its end, deletes it, and gives how it ended and all its output.
    pub async fn complete(&self, id: &str, spec: &Value) -> (ExitStatus, String) {
        let name = self.launch(id, spec).await;
        self.finish(&name).await
    }

    /// Collects the output of a started process to the end, and deletes it.
    pub async fn finish(&self, name: &ProcessName) -> (ExitStatus, String) {
        let output = self.output(name).await;
        let status = self.engine.wait(name).await.unwrap();
        self.engine.delete(name).await.unwrap();
        (status, output)
    }

    pub async fn output(&self, name: &ProcessName) -> String {
        let collected = std::sync::Mutex::new(Vec::new());
        for stream in self.engine.streams(name).unwrap().outputs() {
            stream.collect(1 << 20, &collected).await;
        }
        String::from_utf8_lossy(&collected.into_inner().unwrap()).into_owned()
    }

    /// Runs a shell command in a container and gives its exit status and output.
    pub async fn exec(&self, id: &str, exec: &str, process: Value) -> (ExitStatus, String) {
        self.engine
            .create_exec(CreateExec {
                container: id.into(),
                exec: exec.into(),
                process: serde_json::to_vec(&process).unwrap(),
                stdio: Stdio {
                    stdout: true,
                    stderr: true,
                    ..Default::default()
                },
            })
            .await
            .unwrap();
        let name = ProcessName::exec(id, exec);
        self.engine.start(&name).await.unwrap();
        self.finish(&name).await
    }
}

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "id", "sleep", "mount", "hostname", "touch", "mkdir", "stat",
    "grep", "head", "tail", "wc", "true", "false", "env", "pwd", "kill", "ps", "dd", "mknod",
    "readlink", "tty", "stty", "tr", "printf", "test", "ulimit", "umask", "ln", "rm", "chmod",
    "chown", "seq", "yes", "awk", "cut", "sort", "date", "sync", "od", "tar", "nc", "setsid",
];

pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
