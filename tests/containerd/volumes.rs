//! Files of the host in containers.

use std::fs;

use k8s_cri::v1;
use vmpod_tests::{Sandbox, containerd, eventually, on_both};

/// Says what inotify(7) tells of /token: a file that was moved there (IN_MOVED_TO).
const WATCHER: &str = r#"
$| = 1;
my ($fd, $path) = (syscall(253), "/token");
syscall(254, $fd, $path, 0x80) > 0 or die "watch: $!";
open(my $queue, "<&=", $fd) or die $!;
print "ready\n";
while (sysread($queue, my $bytes, 65536)) {
  while (length $bytes) {
    my ($watch, $mask, $cookie, $len) = unpack("iIII", $bytes);
    printf "heard of %s\n", unpack("Z*", substr($bytes, 16, $len));
    $bytes = substr($bytes, 16 + $len);
  }
}
"#;

fn mount(host: &std::path::Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn volume_is_written_and_read_from_both_sides_and_held_read_only() {
    containerd();
    on_both(|handler| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("given"), "from the host\n").unwrap();
        let file = host.path().join("single");
        fs::write(&file, "one file\n").unwrap();
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
            let mut protected = mount(host.path(), "/protected");
            protected.readonly = true;
            config.mounts = vec![
                mount(host.path(), "/volume"),
                protected,
                mount(&file, "/etc/single"),
            ];
        });
        assert_eq!(
            container.sh("cat /volume/given /etc/single"),
            "from the host\none file\n"
        );
        assert_eq!(
            container.sh("echo back > /volume/answer; cat /protected/answer"),
            "back\n"
        );
        assert_eq!(
            fs::read_to_string(host.path().join("answer")).unwrap(),
            "back\n"
        );
        let ran = container.exec(&["touch", "/protected/x"], 60).unwrap();
        assert!(ran.code != 0 && ran.err.contains("Read-only"), "{ran:?}");
        fs::write(host.path().join("later"), "seen at once\n").unwrap();
        assert_eq!(container.sh("cat /volume/later"), "seen at once\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn token_that_rotates_is_seen_within_a_second_and_heard_of() {
    containerd();
    on_both(|handler| {
        let host = tempfile::tempdir().unwrap();
        let rotate = |number: u32| {
            // As the kubelet's atomic writer does.
            let directory = host.path().join(format!("..{number}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("token"), format!("token {number}\n")).unwrap();
            let new = host.path().join("..data_tmp");
            std::os::unix::fs::symlink(format!("..{number}"), &new).unwrap();
            fs::rename(&new, host.path().join("..data")).unwrap();
        };
        rotate(1);
        std::os::unix::fs::symlink("..data/token", host.path().join("token")).unwrap();
        let pod = Sandbox::run(handler);
        let image = containerd().image("debian");
        let container = pod.start(|config| {
            config.image.as_mut().unwrap().image = image;
            config.command = ["perl", "-e", WATCHER].map(str::to_owned).to_vec();
            config.mounts = vec![mount(host.path(), "/token")];
        });
        assert_eq!(container.sh("cat /token/token"), "token 1\n");
        container.await_log("ready");
        rotate(2);
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(container.sh("cat /token/token"), "token 2\n");
        container.await_log("heard of ..data\n");
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn mounts_of_the_host_appear_in_a_volume_that_follows_them() {
    containerd();
    on_both(|handler| {
        let host = tempfile::tempdir().unwrap();
        let below = host.path().join("below");
        fs::create_dir(&below).unwrap();
        let sh = |line: &str| {
            let done = std::process::Command::new("sh")
                .args(["-e", "-c", line])
                .status()
                .unwrap();
            assert!(done.success(), "{line}");
        };
        let path = host.path().display();
        sh(&format!(
            "mount --bind {path} {path}; mount --make-rshared {path}"
        ));
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
            let mut follows = mount(host.path(), "/volume");
            follows.propagation = v1::MountPropagation::PropagationHostToContainer.into();
            config.mounts = vec![follows, mount(host.path(), "/private")];
        });
        sh(&format!(
            "mount -t tmpfs none {path}/below; echo mounted > {path}/below/file"
        ));
        eventually("the host's mount in the container", || {
            (container.exec(&["cat", "/volume/below/file"], 60).ok()?.out == "mounted\n")
                .then_some(())
        });
        assert_eq!(container.sh("ls /private/below"), "");
        drop(pod);
        sh(&format!("umount {path}/below; umount {path}"));
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn source_that_is_not_there_is_told_with_its_path() {
    containerd();
    let pod = Sandbox::run("vmpod");
    let made = pod.create(|config| {
        config.command = ["true"].map(str::to_owned).to_vec();
        // A source that containerd would make is a file: a device that vanished.
        config.mounts = vec![mount(std::path::Path::new("/proc/1/no-such-thing"), "/x")];
    });
    let text = match made {
        Ok(container) => container.start().expect_err("a start").message().to_owned(),
        Err(status) => status.message().to_owned(),
    };
    assert!(text.contains("/proc/1/no-such-thing"), "{text}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn shared_memory_is_the_pods_and_has_its_size() {
    containerd();
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let one = pod.shell("sleep 1000");
        let two = pod.shell("sleep 1000");
        assert_eq!(one.sh("df -k /dev/shm | awk 'END {print $2}'"), "65536\n");
        let _ = one.sh("echo shared > /dev/shm/file");
        assert_eq!(two.sh("cat /dev/shm/file"), "shared\n");
    });
}

/// A loop device on a file of so many bytes, until it is dropped.
struct Disk {
    device: String,
    _file: tempfile::NamedTempFile,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let made = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        Self {
            device,
            _file: file,
        }
    }

    /// As `volumeDevices` makes it appear in a container.
    fn at(&self, path: &str, permissions: &str) -> v1::Device {
        v1::Device {
            container_path: path.into(),
            host_path: self.device.clone(),
            permissions: permissions.into(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn block_device_is_read_and_written_as_the_container_may() {
    containerd();
    on_both(|handler| {
        let disk = Disk::new(1 << 20);
        let other = Disk::new(2 << 20);
        let pod = Sandbox::run(handler);
        let with = |devices: Vec<v1::Device>| {
            pod.start(|config| {
                config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
                config.devices = devices;
            })
        };
        let writer = with(vec![
            disk.at("/dev/data", "rwm"),
            other.at("/dev/other", "rw"),
        ]);
        assert_eq!(
            writer.sh("wc -c < /dev/data; wc -c < /dev/other; ls -l /dev/data | cut -c1"),
            "1048576\n2097152\nb\n"
        );
        let write = format!(
            "echo written under {handler} | dd of=/dev/data conv=notrunc,fsync 2>/dev/null"
        );
        assert_eq!(writer.sh(&write), "");
        let host = std::process::Command::new("head")
            .args(["-n1", &disk.device])
            .output()
            .unwrap();
        let expected = format!("written under {handler}\n");
        assert_eq!(String::from_utf8_lossy(&host.stdout), expected);
        // Another container of the pod, which may only read.
        let reader = with(vec![disk.at("/dev/there", "r")]);
        assert_eq!(reader.sh("head -n1 /dev/there"), expected);
        let ran = reader
            .exec(&["sh", "-c", "echo x > /dev/there"], 60)
            .unwrap();
        assert!(
            ran.code != 0 && ran.err.contains("not permitted"),
            "{handler}: {ran:?}"
        );
        // One that was not given any has none.
        let plain = pod.shell("sleep 1000");
        assert_eq!(
            plain.sh("ls /dev | grep -c -e data -e there || true"),
            "0\n"
        );
    });
}
