//! The items of a check.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Item, bounded_output, kvm_probe};
use crate::host::bundle::Bundle;
use crate::host::capacity::meminfo;
use crate::host::disk_room;
use crate::network;
use crate::pod::cgroup;
use crate::pod::journal::chain;
use crate::pod::roots::Roots;
use crate::pod::tree;

/// Oldest kernel with everything that is used without an alternative: openat2, pidfd_open, fsopen (5.6), nftables'
/// concatenated maps with intervals (5.6), close_range (5.9).
const KERNEL: (u32, u32) = (5, 10);

/// Memory that a small pod takes, and that two of them take, in bytes.
const MEMORY_MISSING: u64 = 192 << 20;
const MEMORY_WEAK: u64 = 384 << 20;

/// Free space for logs and writable layers, in bytes.
const DISK_MISSING: u64 = 64 << 20;
const DISK_WEAK: u64 = 1 << 30;

/// Bound of each command that is run.
const COMMAND_LIMIT: Duration = Duration::from_millis(250);

pub(super) fn privileges() -> Item {
    if rustix::process::geteuid().is_root() {
        Item::good("privileges", "root")
    } else {
        Item::missing(
            "privileges",
            format!("user id {}", rustix::process::geteuid().as_raw()),
            "run vmpod as root: it makes mounts, taps and cgroups",
        )
    }
}

pub(super) fn kernel() -> Item {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= KERNEL => Item::good("kernel", release),
        _ => Item::missing(
            "kernel",
            format!("version {release:?}"),
            format!(
                "install a kernel of version {}.{} or later",
                KERNEL.0, KERNEL.1
            ),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The device, and when it is there, what it is worth.
pub(super) fn kvm() -> Vec<Item> {
    const NAME: &str = "KVM device";
    let path = Path::new("/dev/kvm");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path);
    let flag = ["svm", "vmx"].into_iter().find(|flag| has_cpu_flag(flag));
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = match flag {
                Some("svm") => "load the module: modprobe kvm_amd",
                Some(_) => "load the module: modprobe kvm_intel",
                None => {
                    "this processor shows no svm or vmx flag: enable virtualisation in the firmware, or nested \
                     virtualisation in the hypervisor above; without either, `cargo xtask node up` gives an emulated host"
                }
            };
            vec![Item::missing(NAME, "/dev/kvm is not there", remedy)]
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => vec![Item::missing(
            NAME,
            "/dev/kvm cannot be opened for reading and writing: permission denied",
            "run vmpod as root, or add the user to the group that owns /dev/kvm",
        )],
        Err(error) => vec![Item::missing(
            NAME,
            format!("/dev/kvm cannot be opened: {error}"),
            "load kvm_amd or kvm_intel; `dmesg` says what the module has against this machine",
        )],
        Ok(file) => {
            // Asked by descriptor: the device that was opened is the one that is judged.
            let version = kvm_probe::api_version(&file);
            if version == kvm_probe::API_VERSION {
                vec![
                    Item::good(NAME, format!("/dev/kvm, API version {version}")),
                    speed(flag),
                ]
            } else {
                vec![Item::missing(
                    NAME,
                    format!("/dev/kvm speaks API version {version}"),
                    format!(
                        "a kernel with KVM API version {} is needed",
                        kvm_probe::API_VERSION
                    ),
                )]
            }
        }
    }
}

fn speed(flag: Option<&str>) -> Item {
    const NAME: &str = "KVM guest kernel code";
    const REMEDY: &str = "no ordinary guest kernel boots on such a KVM in useful time: use a host whose processor flags \
        (/proc/cpuinfo) show svm or vmx, or `cargo xtask node up` for an emulated one";
    let kind = if flag.is_none() {
        " (a software KVM such as kvm-pvm: the processor shows neither svm nor vmx)"
    } else {
        ""
    };
    match kvm_probe::measure() {
        kvm_probe::Outcome::Ran {
            instructions,
            nanoseconds,
        } => {
            let rate = instructions.saturating_mul(1_000_000_000) / nanoseconds.max(1);
            let found = format!("{} million instructions a second", rate / 1_000_000);
            if rate < kvm_probe::EMULATED_BELOW {
                Item::missing(
                    NAME,
                    format!(
                        "this KVM emulates guest kernel code, at about {:.1} million instructions a second{kind}",
                        rate_in_millions(rate)
                    ),
                    REMEDY,
                )
            } else {
                Item::good(NAME, found)
            }
        }
        kvm_probe::Outcome::Unemulated { what } => Item::missing(
            NAME,
            format!("this KVM emulates guest kernel code, and not all of it: {what}{kind}"),
            REMEDY,
        ),
        kvm_probe::Outcome::Slow { limit_ms } => Item::missing(
            NAME,
            format!(
                "a guest did not finish {} instructions within {limit_ms} ms: this KVM emulates guest kernel code{kind}",
                kvm_probe::INSTRUCTIONS
            ),
            REMEDY,
        ),
        kvm_probe::Outcome::Failed { message } => Item::missing(
            NAME,
            format!("a small guest could not be run: {message}"),
            "`dmesg` says more; another hypervisor that uses the processor's virtualisation must not be running",
        ),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn rate_in_millions(rate: u64) -> f64 {
    rate as f64 / 1e6
}

fn has_cpu_flag(flag: &str) -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    })
}

pub(super) fn tun() -> Item {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => Item::good("tap devices", "/dev/net/tun"),
        Err(error) => Item::missing(
            "tap devices",
            format!("/dev/net/tun cannot be opened: {error}"),
            "load the module: modprobe tun; in a container, pass the device in",
        ),
    }
}

pub(super) fn packet_filter() -> Item {
    match network::probe_packet_filter() {
        Ok(()) => filter(),
        Err(error) => Item::missing(
            "nftables",
            chain(&error),
            "load the module: modprobe nf_tables; vmpod must run as root",
        ),
    }
}

/// Another program's filter that drops what is forwarded drops pods' packets as well: an accept of ours does not help.
/// Without the program nft, which pods do not need, there is no looking.
fn filter() -> Item {
    const NAME: &str = "nftables";
    let mut command = Command::new("nft");
    command.args(["list", "chain", "ip", "filter", "FORWARD"]);
    let dropping = bounded_output(command, COMMAND_LIMIT).is_ok_and(|output| {
        output.is_some_and(|output| {
            output.status.success()
                && String::from_utf8_lossy(&output.stdout).contains("policy drop")
        })
    });
    if dropping {
        Item::weak(
            NAME,
            "another program's chain `ip filter FORWARD` drops what it does not know",
            "let pods through: iptables -I FORWARD -i vmpod0 -j ACCEPT; iptables -I FORWARD -o vmpod0 -j ACCEPT",
        )
    } else {
        Item::good(NAME, "the kernel takes rules")
    }
}

pub(super) fn forwarding() -> Item {
    const NAME: &str = "IP forwarding";
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    let on = fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    if on {
        Item::good(NAME, "on")
    } else if OpenOptions::new().write(true).open(path).is_ok() {
        Item::good(NAME, "off; the first pod turns it on")
    } else {
        Item::missing(
            NAME,
            "off, and it cannot be turned on from here",
            "sysctl -w net.ipv4.ip_forward=1 where /proc/sys may be written",
        )
    }
}

pub(super) fn overlay(roots: &Roots) -> Item {
    const NAME: &str = "overlayfs";
    match tree::try_overlay(&roots.state) {
        Ok(()) => Item::good(NAME, format!("works below {}", roots.state.display())),
        Err(message) => Item::missing(
            NAME,
            message,
            "modprobe overlay; put --state on ext4, xfs, btrfs or tmpfs",
        ),
    }
}

pub(super) fn cgroup() -> Item {
    const NAME: &str = "cgroup v2";
    match cgroup::path_of("check") {
        Some(_) => Item::good(NAME, "/sys/fs/cgroup"),
        None => Item::weak(
            NAME,
            "not mounted at /sys/fs/cgroup: machines are not bounded in memory and tasks on the host",
            "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

pub(super) fn bundle(bundle: &Bundle) -> Vec<Item> {
    bundle
        .parts()
        .into_iter()
        .map(|(what, path, variable)| {
            if path.is_file() {
                Item::good(what, path.display().to_string())
            } else {
                Item::missing(
                    what,
                    format!("not at {}", path.display()),
                    format!("`cargo xtask bundle` puts it there; {variable} names another place"),
                )
            }
        })
        .collect()
}

pub(super) fn memory() -> Item {
    const NAME: &str = "memory";
    let available = meminfo("MemAvailable").unwrap_or(0);
    let found = format!("{} MiB available", available >> 20);
    if available < MEMORY_MISSING {
        Item::missing(NAME, found, "free some memory: a small pod takes 192 MiB")
    } else if available < MEMORY_WEAK {
        Item::weak(NAME, found, "enough for one small pod")
    } else {
        Item::good(NAME, found)
    }
}

pub(super) fn disk(roots: &Roots) -> Item {
    const NAME: &str = "disk";
    let place = existing(&roots.state);
    let Ok(free) = disk_room::free_bytes(&place) else {
        return Item::weak(NAME, format!("unknown at {}", place.display()), "");
    };
    let words = format!("{} MiB free at {}", free >> 20, place.display());
    let remedy = "free some space, or choose another place with --state";
    if free < DISK_MISSING {
        Item::missing(NAME, words, remedy)
    } else if free < DISK_WEAK {
        Item::weak(NAME, words, remedy)
    } else {
        Item::good(NAME, words)
    }
}

/// `path` or the nearest directory above it that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_a_release_is_its_first_two_numbers() {
        assert_eq!(version("6.12.43+deb12-amd64"), Some((6, 12)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("x"), None);
    }
}
