//! The node's initramfs: busybox, the kernel modules in loading order, an ssh server and the script
//! that builds the root. Cached under a name made from everything that goes into it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::ssh::Keys;
use crate::process;
use crate::progress::Step;
use crate::workspace;

const INIT: &str = include_str!("init.sh");

/// Modules loaded at boot, with all that they depend on. First what the root needs, then what pods
/// and their networks need. Others load on demand from `/lib/modules`, where the machine has kmod.
const MODULES: &[&str] = &[
    // The machine itself.
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "ext4",
    "overlay",
    "crc32c_generic",
    "crc32c-intel",
    // Virtual machines.
    "kvm",
    "kvm-amd",
    "vhost_vsock",
    "vhost_net",
    "vsock_loopback",
    "tun",
    // Pod networks.
    "bridge",
    "br_netfilter",
    "veth",
    "macvlan",
    "dummy",
    "ifb",
    "sch_ingress",
    "act_mirred",
    "cls_u32",
    "cls_matchall",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_fib",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib_inet",
    "nft_reject_inet",
    "nft_log",
    "nft_limit",
    "nft_compat",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_addrtype",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_REDIRECT",
    "xt_tcpudp",
    "sctp",
    // File systems of images and shares.
    "erofs",
    "loop",
    "fuse",
    "virtiofs",
];

/// The applets of busybox that the script calls by name.
const APPLETS: &[&str] = &[
    "cat",
    "chmod",
    "cp",
    "date",
    "grep",
    "hostname",
    "insmod",
    "ip",
    "ln",
    "mkdir",
    "mount",
    "poweroff",
    "rm",
    "sed",
    "sh",
    "switch_root",
    "sync",
    "uname",
];

const SSHD_CONFIG: &str = "\
Port 22
HostKey /run/vmpod-node/sshd/host_key
AuthorizedKeysFile /run/vmpod-node/sshd/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
LoginGraceTime 0
MaxSessions 1000
MaxStartups 200
TCPKeepAlive no
PrintMotd no
PrintLastLog no
PidFile none
Subsystem sftp internal-sftp
";

/// Starts the server; the library directory is for the packages unpacked beside it.
const SSHD_RUN: &str = "\
#!/run/vmpod-node/busybox sh
ulimit -Hn 1048576
ulimit -Sn 1024
export LD_LIBRARY_PATH=/run/vmpod-node/sshd
exec /run/vmpod-node/sshd/sshd -D -e -f /run/vmpod-node/sshd/config 2> /run/vmpod-node/sshd/log
";

/// The initramfs for `kernel`, built on first use.
///
/// # Errors
/// When a module is missing or a file cannot be read or written.
pub fn ensure(cache: &Path, kernel: &Kernel, tools: &Path, keys: &Keys) -> Result<PathBuf> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let busybox = read(&first_of(tools, &["bin/busybox", "usr/bin/busybox"])?)?;
    let sshd = read(&tools.join("usr/sbin/sshd"))?;
    let libwrap = read(&first_of(
        tools,
        &[
            "lib/x86_64-linux-gnu/libwrap.so.0",
            "usr/lib/x86_64-linux-gnu/libwrap.so.0",
        ],
    )?)?;
    let host_key = read(&keys.host)?;
    let authorized = read(&keys.identity.with_extension("pub"))?;

    let mut hash = Sha256::new();
    let lists = [MODULES.join(" "), APPLETS.join(" ")];
    for part in [
        kernel.release.as_bytes(),
        INIT.as_bytes(),
        SSHD_CONFIG.as_bytes(),
        SSHD_RUN.as_bytes(),
        lists[0].as_bytes(),
        lists[1].as_bytes(),
        &busybox,
        &sshd,
        &libwrap,
        &host_key,
        &authorized,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let key: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = cache.join(format!("initramfs-{key}.cpio"));
    if place.is_file() {
        return Ok(place);
    }

    let mut step = Step::begin("building the node's initramfs");
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "sshd"] {
        archive.directory(directory);
    }
    // The kernel gives PID 1 this file as its standard streams before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("sshd/sshd", 0o755, &sshd);
    archive.file("sshd/libwrap.so.0", 0o644, &libwrap);
    archive.file("sshd/config", 0o600, SSHD_CONFIG.as_bytes());
    archive.file("sshd/run", 0o755, SSHD_RUN.as_bytes());
    archive.file("sshd/host_key", 0o600, &host_key);
    archive.file("sshd/authorized_keys", 0o600, &authorized);

    let listing = process::output(
        Command::new("modprobe")
            .args([
                "--config",
                "/dev/null",
                "--all",
                "--show-depends",
                "-S",
                &kernel.release,
            ])
            .arg("-d")
            .arg(&kernel.root)
            .args(MODULES),
    )?;
    let busybox_path = first_of(tools, &["bin/busybox", "usr/bin/busybox"])?;
    let mut order = String::new();
    for path in loading_order(&listing) {
        let (name, content) = module(&busybox_path, &path)?;
        step.note(&name);
        archive.file(&format!("modules/{name}"), 0o644, &content);
        order.push_str(&format!("{name} {}\n", options_of(&name)));
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    workspace::write_atomically(&place, &archive.finish())?;
    // It holds the server's private key.
    fs::set_permissions(&place, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restricting {}", place.display()))?;
    step.done();
    Ok(place)
}

/// Options of a module, given its file name: no device that nobody asked for.
fn options_of(file: &str) -> &'static str {
    match file {
        "dummy.ko" => "numdummies=0",
        "ifb.ko" => "numifbs=0",
        _ => "",
    }
}

fn first_of(root: &Path, candidates: &[&str]) -> Result<PathBuf> {
    let found = candidates
        .iter()
        .map(|candidate| root.join(candidate))
        .find(|path| path.is_file());
    found.with_context(|| format!("none of {} is in {}", candidates.join(", "), root.display()))
}

/// The files to load, each once, in the order in which `modprobe --show-depends` names them.
fn loading_order(listing: &str) -> Vec<PathBuf> {
    let mut order: Vec<PathBuf> = Vec::new();
    for line in listing.lines() {
        let Some(rest) = line.strip_prefix("insmod ") else {
            continue;
        };
        // Options of the module may follow the path.
        let Some(path) = rest.split_whitespace().next() else {
            continue;
        };
        let path = PathBuf::from(path);
        if !order.contains(&path) {
            order.push(path);
        }
    }
    order
}

/// A module's plain name and content; unpacked here because the node is much slower at it.
fn module(busybox: &Path, path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if let Some(plain) = name.strip_suffix(".xz") {
        let output = Command::new(busybox)
            .args(["xzcat"])
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("unpacking {}", path.display()))?;
        if !output.status.success() {
            bail!("unpacking {} failed ({})", path.display(), output.status);
        }
        return Ok((plain.to_owned(), output.stdout));
    }
    if !name.ends_with(".ko") {
        bail!(
            "{} is compressed in a way that is not known here (.ko or .ko.xz)",
            path.display()
        );
    }
    let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok((name.to_owned(), content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_order_with_shared_dependency_names_it_once_and_first() {
        let listing = "insmod /m/nf.ko.xz \ninsmod /m/a.ko.xz \nbuiltin unix\n\
            insmod /m/nf.ko.xz \ninsmod /m/b.ko opt=1\n";
        let order = loading_order(listing);
        let names: Vec<_> = order
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(names, ["/m/nf.ko.xz", "/m/a.ko.xz", "/m/b.ko"]);
    }

    #[test]
    fn applets_cover_every_program_of_the_script() {
        // Each command of the script is a builtin of the shell, an applet linked here, or a
        // function of its own.
        let known = [
            "echo",
            "[",
            "printf",
            "exec",
            "read",
            "fail",
            ".",
            "PATH=/bin",
            "{",
        ];
        for line in INIT.lines().map(str::trim) {
            let Some(word) = line.split_whitespace().next() else {
                continue;
            };
            let is_command = word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                && ![
                    "if", "then", "else", "fi", "for", "do", "done", "while", "case", "esac",
                ]
                .contains(&word);
            if is_command && !known.contains(&word) {
                assert!(
                    APPLETS.contains(&word),
                    "`{word}` of init.sh is not linked: {line}"
                );
            }
        }
    }
}
