//! Files of the host in containers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use k8s_cri::v1;
use vmpod_tests::{Container, Footprint, Sandbox, containerd, eventually, on_both};

use crate::accidents::{kill, pids_of};
use crate::security::{security, sleeping};

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
        let beside = tempfile::tempdir().unwrap();
        let link = beside.path().join("link");
        std::os::unix::fs::symlink(host.path(), &link).unwrap();
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            config.command = ["sleep", "1000"].map(str::to_owned).to_vec();
            let mut protected = mount(host.path(), "/protected");
            protected.readonly = true;
            config.mounts = vec![
                mount(host.path(), "/volume"),
                protected,
                mount(&file, "/etc/single"),
                mount(&link, "/linked"),
            ];
        });
        assert_eq!(container.sh("cat /linked/given"), "from the host\n");
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
fn image_is_a_volume_that_cannot_be_written() {
    let image = containerd().image("busybox");
    if containerd().version() < (2, 1) {
        eprintln!("containerd before 2.1 has no image volumes");
        return;
    }
    on_both(|handler| {
        let pod = Sandbox::run(handler);
        let container = pod.start(|config| {
            sleeping(config);
            config.mounts = vec![v1::Mount {
                container_path: "/files".into(),
                readonly: true,
                image: Some(v1::ImageSpec {
                    image: image.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            }];
        });
        assert_eq!(container.sh("/files/bin/busybox echo run"), "run\n");
        let ran = container.exec(&["touch", "/files/x"], 60).unwrap();
        assert!(ran.code != 0 && ran.err.contains("Read-only"), "{ran:?}");
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

fn host_sh(line: &str) {
    let done = std::process::Command::new("sh")
        .args(["-e", "-c", line])
        .status()
        .unwrap();
    assert!(done.success(), "{line}");
}

/// Directories of the host that share their mounts, as Kubernetes wants it of what is mounted with propagation. Their mounts
/// go when it is dropped.
struct SharedDirectories(tempfile::TempDir);

impl SharedDirectories {
    fn new(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        host_sh(&format!(
            "mount --bind {path} {path}; mount --make-rshared {path}"
        ));
        for name in names {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Names of what is in a directory.
    fn list(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path().join(name)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Mounts below it.
    fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = format!("{}/", self.path().display());
        // What is mounted in a bind mount is so in its peer beneath as well, at the same path.
        let places: BTreeSet<&str> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|place| place.starts_with(&below))
            .collect();
        places.len()
    }
}

impl Drop for SharedDirectories {
    fn drop(&mut self) {
        // With everything that is mounted in it.
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}

const BOTH_WAYS: v1::MountPropagation = v1::MountPropagation::PropagationBidirectional;
const DOWN: v1::MountPropagation = v1::MountPropagation::PropagationHostToContainer;
const PRIVATE: v1::MountPropagation = v1::MountPropagation::PropagationPrivate;

fn privileged_pod(handler: &str) -> Sandbox {
    Sandbox::run_with(handler, |config| {
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().privileged = true;
    })
}

/// A privileged container with directories of the host at paths of the same names.
fn with_volumes<'a>(
    pod: &'a Sandbox,
    host: &SharedDirectories,
    volumes: &[(&str, v1::MountPropagation)],
) -> Container<'a> {
    pod.start(|config| {
        sleeping(config);
        security(config).privileged = true;
        config.mounts = volumes
            .iter()
            .map(|&(name, propagation)| {
                let mut mount = mount(&host.path().join(name), &format!("/{name}"));
                mount.propagation = propagation.into();
                mount
            })
            .collect();
    })
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn mounts_of_a_container_are_on_the_host_when_its_command_has_ended() {
    containerd();
    on_both(|handler| {
        let host = SharedDirectories::new(&["both", "down", "own"]);
        let pod = privileged_pod(handler);
        let volumes = [("both", BOTH_WAYS), ("down", DOWN), ("own", PRIVATE)];
        let container = with_volumes(&pod, &host, &volumes);
        let neighbour = with_volumes(&pod, &host, &[("both", DOWN)]);
        for volume in ["both", "down", "own"] {
            let made = format!("/{volume}/made");
            assert_eq!(
                container.sh(&format!("mkdir {made}; mount --bind /etc {made}")),
                ""
            );
            let seen = host.list(&format!("{volume}/made"));
            assert_eq!(
                seen.iter().any(|name| name == "passwd"),
                volume == "both",
                "{handler}: {volume}: {seen:?}"
            );
            // The container itself goes on to see it.
            assert_eq!(
                container.sh(&format!("ls {made} | grep -c '^passwd$'")),
                "1\n"
            );
        }
        assert_eq!(
            neighbour.sh("ls /both/made | grep -c '^passwd$'"),
            "1\n",
            "{handler}"
        );
        // A mount in a mount, of a single file, in one go.
        let line = "touch /etc/place; mount --bind /bin/busybox /both/made/place; echo back > /both/made/written";
        assert_eq!(container.sh(line), "");
        let size = |path: &str| fs::metadata(host.path().join(path)).unwrap().len();
        assert!(size("both/made/place") > 100_000, "{handler}");
        assert_eq!(container.sh("cat /etc/written"), "back\n");
        // The host's mounts still come in.
        host_sh(&format!(
            "mkdir {path}/later; mount -t tmpfs none {path}/later; touch {path}/later/file",
            path = host.path().join("both").display()
        ));
        assert_eq!(
            container.sh("ls /both/later /both"),
            "/both:\nlater\nmade\n\n/both/later:\nfile\n"
        );
        // What is unmounted is so on the host, and the mount point is free.
        assert_eq!(container.sh("umount /both/made/place"), "");
        assert_eq!(size("both/made/place"), 0, "{handler}");
        assert_eq!(container.sh("umount /both/made"), "");
        assert_eq!(container.sh("rmdir /both/made"), "");
        assert_eq!(host.list("both"), ["later"], "{handler}");
        if handler == "vmpod" {
            // What lies in the guest's memory stays there.
            let line =
                "mkdir /both/memory; mount -t tmpfs none /both/memory; touch /both/memory/file";
            assert_eq!(container.sh(line), "");
            assert!(host.list("both/memory").is_empty());
        }
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn mounts_of_a_container_on_the_host_go_with_it_its_pod_and_a_killed_shim() {
    containerd();
    let before = Footprint::now();
    {
        let host = SharedDirectories::new(&["both"]);
        let mounted = |pod: &Sandbox| {
            let container = with_volumes(pod, &host, &[("both", BOTH_WAYS)]);
            let line = "mkdir -p /both/a /etc/network; mount --bind /etc /both/a; mount --bind /bin /both/a/network";
            assert_eq!(container.sh(line), "");
            assert_eq!(host.mounts(), 2);
        };
        let pod = privileged_pod("vmpod");
        let container = with_volumes(&pod, &host, &[("both", BOTH_WAYS)]);
        assert_eq!(
            container.sh("mkdir /both/a; mount --bind /etc /both/a; mkdir -p /etc/network"),
            ""
        );
        assert_eq!(host.mounts(), 1);
        container.stop(0);
        eventually("a host without a container's mount", || {
            (host.mounts() == 0).then_some(())
        });
        mounted(&pod);
        drop(pod);
        assert_eq!(host.mounts(), 0);
        let others = pids_of("containerd-shim-vmpod-v2");
        let pod = privileged_pod("vmpod");
        mounted(&pod);
        let pids = pids_of("containerd-shim-vmpod-v2");
        kill(*pids.iter().find(|pid| !others.contains(pid)).unwrap());
        eventually("a host without a killed pod's mounts", || {
            (host.mounts() == 0).then_some(())
        });
    }
    before.assert_restored();
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
