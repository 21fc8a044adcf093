//! A `vmpod-vmm` process under test, spoken to over its inherited control socket.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmpod_vmm_api::{
    Event, ExitReason, JailConfig, KernelConfig, MachineConfig, Message, Metrics, NetConfig, Reply,
    Request, ShareConfig, VsockConfig,
};

use crate::guest_init;

/// Longest time for anything the machine is waited for: the emulated node is slow.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Whom a confined process becomes.
pub const USER: u32 = 0x7000_0001;

/// The process, and its files.
pub struct VmmProcess {
    pub child: Child,
    stream: BufReader<UnixStream>,
    pub dir: tempfile::TempDir,
    /// Where the console log is.
    pub console: PathBuf,
    /// A tap that the process has inherited under the same number.
    pub tap: Option<OwnedFd>,
}

impl VmmProcess {
    pub fn start() -> Self {
        Self::spawn(None)
    }

    /// With a tap of this name, which goes away with the test.
    pub fn start_with_tap(name: &str) -> Self {
        Self::spawn(Some(open_tap(name)))
    }

    fn spawn(tap: Option<OwnedFd>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let fd = theirs.as_raw_fd();
        let tap_fd = tap.as_ref().map(AsRawFd::as_raw_fd);
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmpod-vmm"));
        command
            .args(["--control-fd", &fd.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: fcntl is async-signal-safe, and the descriptors stay open until spawn returns.
        unsafe {
            command.pre_exec(move || {
                libc::fcntl(fd, libc::F_SETFD, 0);
                if let Some(tap) = tap_fd {
                    libc::fcntl(tap, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self {
            child,
            stream: BufReader::new(ours),
            console: dir.path().join("console.log"),
            dir,
            tap,
        }
    }

    /// A machine that boots the guest kernel with the test's init, which then does `action`.
    pub fn config(&self, vcpus: u8, memory_mib: u64, action: &str) -> MachineConfig {
        let kernel = kernel();
        let initramfs = self.dir.path().join("initramfs");
        guest_init::write_initramfs(&initramfs);
        MachineConfig {
            id: "test".into(),
            vcpus,
            memory_mib,
            kernel: KernelConfig {
                vmlinux: kernel,
                initramfs: Some(initramfs),
                extra_cmdline: format!("-- {action}"),
            },
            console_log: self.console.clone(),
            console_log_bytes: 1 << 20,
            shares: vec![],
            nets: vec![],
            blocks: vec![],
            vsock: None,
            balloon: false,
            snapshot_to: None,
            restore: None,
            jail: None,
        }
    }

    /// The same, confined, with every device that can be saved; their directories lie below the process's own. Wants a
    /// tap.
    pub fn confined(&mut self, vcpus: u8, memory_mib: u64, action: &str) -> MachineConfig {
        let dir = self.dir.path().to_owned();
        for name in ["share", "run", "jail"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        std::os::unix::fs::chown(dir.join("run"), Some(USER), Some(USER)).unwrap();
        // As the pod host has it: nobody else comes in, so that those within need no further rights.
        std::fs::set_permissions(dir.join("run"), Permissions::from_mode(0o700)).unwrap();
        self.console = dir.join("run/console.log");
        let mut config = self.config(vcpus, memory_mib, action);
        config.vsock = Some(VsockConfig {
            guest_cid: 3,
            uds_path: dir.join("run/vsock"),
        });
        config.shares.push(ShareConfig {
            tag: "pod".into(),
            path: dir.join("share"),
            queues: 1,
            read_only: false,
        });
        config.nets.push(NetConfig {
            tap_fd: self.tap.as_ref().unwrap().as_raw_fd(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            sender: None,
            own_network: None,
        });
        config.balloon = true;
        config.jail = Some(JailConfig {
            root: dir.join("jail"),
            open_files: 4096,
            user: Some(USER),
        });
        config
    }

    pub fn console(&self) -> String {
        std::fs::read(&self.console)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the console holds `text`.
    pub fn wait_console(&self, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.console().contains(text) {
            assert!(
                Instant::now() < end,
                "no {text:?} on the console within {LIMIT:?}: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn send(&mut self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).unwrap();
    }

    pub fn receive(&mut self) -> Message {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        if line.is_empty() {
            panic!("the VMM closed its control socket: {:?}", self.wait());
        }
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    pub fn request(&mut self, request: &Request) -> Reply {
        self.send(request);
        match self.receive() {
            Message::Reply(reply) => reply,
            Message::Event(event) => panic!("an event instead of a reply: {event:?}"),
        }
    }

    pub fn create(&mut self, config: MachineConfig) {
        let reply = self.request(&Request::Create(Box::new(config)));
        assert_eq!(reply, Reply::Done);
    }

    pub fn metrics(&mut self) -> Metrics {
        match self.request(&Request::Metrics) {
            Reply::Metrics(metrics) => metrics,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the event of the end.
    pub fn exited(&mut self) -> ExitReason {
        match self.receive() {
            Message::Event(Event::Exited { exit }) => exit,
            other => panic!("not the event of the end: {other:?}"),
        }
    }

    /// Closes the control connection.
    pub fn hang_up(&mut self) {
        self.stream
            .get_ref()
            .shutdown(std::net::Shutdown::Both)
            .unwrap();
    }

    /// Waits for the process; its exit status and messages.
    pub fn wait(&mut self) -> (Option<i32>, String) {
        use std::io::Read;
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut text = String::new();
                if let Some(stderr) = &mut self.child.stderr {
                    stderr.read_to_string(&mut text).unwrap();
                }
                return (status.code(), text);
            }
            assert!(Instant::now() < end, "the VMM did not end within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes of anonymous memory of the process beside guest memory. Guest memory is the run of adjoining mappings of at
    /// least `guest_bytes`: the kernel image is mapped into the middle of it.
    pub fn anonymous_bytes_beside_guest(&self, guest_bytes: u64) -> u64 {
        let path = format!("/proc/{}/smaps", self.child.id());
        let text = std::fs::read_to_string(Path::new(&path)).unwrap();
        // Start, end and anonymous bytes of each run.
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if first == "Anonymous:" {
                let kib: u64 = words.next().unwrap().parse().unwrap();
                runs.last_mut().unwrap().2 += kib * 1024;
            } else if let Some((start, end)) = first.split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).unwrap();
                let (start, end) = (number(start), number(end));
                match runs.last_mut() {
                    Some(run) if run.1 == start => run.1 = end,
                    _ => runs.push((start, end, 0)),
                }
            }
        }
        let (guest, own): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|r| r.1 - r.0 >= guest_bytes);
        assert!(!guest.is_empty(), "no guest memory in {text}");
        own.iter().map(|r| r.2).sum()
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel to boot: VMPOD_KERNEL, or that of the installation whose `vmpod` is VMPOD_BIN (`bin/vmpod` and
/// `lib/vmpod/vmlinux`).
fn kernel() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("VMPOD_KERNEL")
        .or_else(|| {
            let installation = variable("VMPOD_BIN")?;
            Some(installation.parent()?.parent()?.join("lib/vmpod/vmlinux"))
        })
        .expect("VMPOD_KERNEL names the guest kernel (vmlinux) to boot")
}

/// A new tap as the network device wants it.
fn open_tap(name: &str) -> OwnedFd {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: a zeroed ifreq is a valid one; TUNSETIFF reads it and nothing else.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    file.into()
}
