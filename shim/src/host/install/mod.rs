//! `vmpod install`: puts vmpod on a host whose containerd shall use it, and takes it away again. Idempotent: what is as it
//! should be is left alone, and said so.
//!
//! ```text
//! <prefix>/bin, <prefix>/lib/vmpod                  the programs and the guest
//! /usr/local/bin/{vmpod,containerd-shim-vmpod-v2}   links, where containerd and people find them
//! /etc/containerd/config.toml                       the runtime `vmpod` (containerd 1.x), or an import (2.x) of
//! /etc/containerd/conf.d/vmpod.toml                 the runtime `vmpod` (2.x)
//! ```

mod containerd;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use containerd::{Version, VersionError};

use super::bundle::{Bundle, PartMissing};

/// The program by which containerd knows the runtime.
const SHIM: &str = "containerd-shim-vmpod-v2";

/// Directory of the links.
const LINKS: &str = "/usr/local/bin";

/// Where to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host's root directory: `/`, or where it is mounted.
    pub host: PathBuf,
    /// Directory for programs and guest, as the host sees it.
    pub prefix: PathBuf,
    /// containerd's configuration, as the host sees it.
    pub config: PathBuf,
    /// containerd's version, where it cannot be asked.
    pub version: Option<Version>,
}

/// Something on the host resists.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A part of vmpod is missing.
    #[error(transparent)]
    Part(#[from] PartMissing),
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// containerd's configuration is not TOML.
    #[error("{} is not valid; nothing was changed in it", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        #[source]
        source: toml_edit::TomlError,
    },
    /// It is not as it should be.
    #[error("{}: {why}; nothing was changed in it", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The version.
    #[error(transparent)]
    Version(#[from] VersionError),
}

fn failing<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

impl Target {
    /// `path` of the host, from here.
    /// A program of the host, executed in the host's root: this process may be in an image that has no libraries and no
    /// shell for it.
    #[must_use]
    pub fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        if self.host != Path::new("/") {
            let host = self.host.clone();
            // SAFETY: between fork and exec nothing is done but chroot(2) and chdir(2).
            unsafe {
                command.pre_exec(move || {
                    std::os::unix::fs::chroot(&host)?;
                    std::env::set_current_dir("/")
                });
            }
        }
        command
    }

    fn on_host(&self, path: &Path) -> PathBuf {
        self.host.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Each file of `bundle` with its place below the prefix.
fn files(bundle: &Bundle) -> Vec<(PathBuf, PathBuf)> {
    let beside = bundle.vmm.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<_> = ["vmpod", SHIM]
        .map(|name| (beside.join(name), Path::new("bin").join(name)))
        .into();
    files.push((bundle.supervisor.clone(), "bin/vmpod-supervise".into()));
    files.push((bundle.vmm.clone(), "bin/vmpod-vmm".into()));
    files.push((bundle.vmlinux.clone(), "lib/vmpod/vmlinux".into()));
    files.push((bundle.initramfs.clone(), "lib/vmpod/initramfs.cpio".into()));
    files
}

/// Installs `bundle`. Returns what was done, a line each.
///
/// # Errors
/// The first thing that resists; doing it again goes on from there.
pub fn install(bundle: &Bundle, target: &Target) -> Result<Vec<String>, InstallError> {
    bundle.check()?;
    let version = containerd::version(target)?;
    let mut done = Vec::new();
    for (from, below) in files(bundle) {
        let place = target.prefix.join(below);
        if copy(&from, &target.on_host(&place))? {
            done.push(format!("wrote {}", place.display()));
        }
    }
    for name in ["vmpod", SHIM] {
        let link = Path::new(LINKS).join(name);
        let to = target.prefix.join("bin").join(name);
        if point(&target.on_host(&link), &to)? {
            done.push(format!("linked {} to {}", link.display(), to.display()));
        }
    }
    match version {
        Some(version) => done.extend(containerd::add(target, version)?),
        None => done.push(
            "found no containerd: `vmpod run` works; install again when there is one".to_owned(),
        ),
    }
    Ok(done)
}

/// Takes everything away again. Returns what was done, a line each.
///
/// # Errors
/// The first thing that resists; doing it again goes on from there.
pub fn uninstall(bundle: &Bundle, target: &Target) -> Result<Vec<String>, InstallError> {
    // First, so that nobody is led to a program that is gone.
    let mut done = containerd::remove(target)?;
    for name in ["vmpod", SHIM] {
        let link = Path::new(LINKS).join(name);
        let place = target.on_host(&link);
        let to = target.prefix.join("bin").join(name);
        if fs::read_link(&place).is_ok_and(|found| found == to) {
            fs::remove_file(&place).map_err(failing("remove", &place))?;
            done.push(format!("removed {}", link.display()));
        }
    }
    for (_, below) in files(bundle) {
        let place = target.on_host(&target.prefix.join(&below));
        match fs::remove_file(&place) {
            Ok(()) => done.push(format!("removed {}", target.prefix.join(below).display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failing("remove", &place)(error)),
        }
    }
    for below in ["bin", "lib/vmpod", "lib", ""] {
        // What others have put there stays, and its directory with it.
        let _ = fs::remove_dir(target.on_host(&target.prefix.join(below)));
    }
    Ok(done)
}

/// Makes `to` the same as `from`. Returns whether that changed anything. A program that runs keeps the old file.
fn copy(from: &Path, to: &Path) -> Result<bool, InstallError> {
    let bytes = fs::read(from).map_err(failing("read", from))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let program = to.parent().is_some_and(|parent| parent.ends_with("bin"));
    write(to, &bytes, if program { 0o755 } else { 0o644 })?;
    Ok(true)
}

/// Writes a file that appears as a whole.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(failing("make directory", parent))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = parent.join(name);
    let _ = fs::remove_file(&new);
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(failing("write", path))
}

/// Makes `link` point to `to`. Returns whether that changed anything. A file that is no link is somebody else's.
fn point(link: &Path, to: &Path) -> Result<bool, InstallError> {
    match fs::read_link(link) {
        Ok(found) if found == to => return Ok(false),
        Ok(_) => fs::remove_file(link).map_err(failing("replace", link))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failing("replace by a link", link)(error)),
    }
    let parent = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(failing("make directory", parent))?;
    symlink(to, link).map_err(failing("make the link", link))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(directory: &Path) -> Bundle {
        for name in [
            "vmpod",
            SHIM,
            "vmpod-supervise",
            "vmpod-vmm",
            "vmlinux",
            "initramfs.cpio",
        ] {
            fs::write(directory.join(name), name).unwrap();
        }
        Bundle {
            supervisor: directory.join("vmpod-supervise"),
            vmm: directory.join("vmpod-vmm"),
            vmlinux: directory.join("vmlinux"),
            initramfs: directory.join("initramfs.cpio"),
        }
    }

    fn target(host: &Path, version: &str) -> Target {
        Target {
            host: host.to_owned(),
            prefix: "/opt/vmpod".into(),
            config: "/etc/containerd/config.toml".into(),
            version: Some(version.parse().unwrap()),
        }
    }

    fn everything(host: &Path) -> Vec<String> {
        let listed = std::process::Command::new("find")
            .args(["-printf", "%P %l\n"])
            .current_dir(host)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn install_twice_is_done_once_and_uninstall_leaves_what_was_there() {
        for version in ["1.6.20", "2.1.0"] {
            let (source, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let config = host.path().join("etc/containerd/config.toml");
            fs::create_dir_all(config.parent().unwrap()).unwrap();
            fs::create_dir_all(host.path().join("usr/local/bin")).unwrap();
            fs::create_dir_all(host.path().join("opt")).unwrap();
            let text = "# mine\nversion = 2\n\n[grpc]\n  address = \"/x\" # here\n";
            fs::write(&config, text).unwrap();
            let before = everything(host.path());
            let bundle = bundle(source.path());
            let target = target(host.path(), version);
            let done = install(&bundle, &target).unwrap();
            assert_eq!(
                done.len(),
                6 + 2 + if version.starts_with('1') { 1 } else { 2 },
                "{done:?}"
            );
            assert_eq!(install(&bundle, &target).unwrap(), Vec::<String>::new());
            let link = host.path().join("usr/local/bin").join(SHIM);
            assert_eq!(
                fs::read_link(link).unwrap(),
                Path::new("/opt/vmpod/bin").join(SHIM)
            );
            let changed = fs::read_to_string(&config).unwrap();
            assert!(
                changed.contains("# mine") && changed.contains("# here"),
                "{changed}"
            );
            uninstall(&bundle, &target).unwrap();
            assert_eq!(fs::read_to_string(&config).unwrap(), text, "{version}");
            let mut after = everything(host.path());
            after.retain(|line| !line.starts_with("etc/containerd/conf.d"));
            assert_eq!(after, before, "{version}");
            assert_eq!(uninstall(&bundle, &target).unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn install_over_somebody_elses_file_is_refused_by_its_name() {
        let (source, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = host.path().join("usr/local/bin/vmpod");
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, "another").unwrap();
        let error = install(&bundle(source.path()), &target(host.path(), "1.7.0")).unwrap_err();
        assert!(error.to_string().contains("usr/local/bin/vmpod"), "{error}");
        assert_eq!(fs::read_to_string(place).unwrap(), "another");
    }

    #[test]
    fn manifests_for_clusters_are_valid_and_the_overhead_is_that_of_a_machine() {
        use k8s_openapi::api::apps::v1::DaemonSet;
        use k8s_openapi::api::node::v1::RuntimeClass;

        use crate::manifest::quantity;
        use crate::manifest::sizing::{GUEST_OVERHEAD_BYTES, HOST_OVERHEAD_BYTES};

        let class: RuntimeClass =
            serde_saphyr::from_str(include_str!("../../../deploy/runtimeclass.yaml")).unwrap();
        assert_eq!(class.handler, "vmpod");
        let fixed = class.overhead.unwrap().pod_fixed.unwrap();
        assert_eq!(
            quantity::units(&fixed["memory"].0).unwrap(),
            GUEST_OVERHEAD_BYTES + HOST_OVERHEAD_BYTES
        );
        let installer: DaemonSet =
            serde_saphyr::from_str(include_str!("../../../deploy/installer.yaml")).unwrap();
        assert!(
            installer
                .spec
                .unwrap()
                .template
                .spec
                .unwrap()
                .host_pid
                .unwrap()
        );
    }
}
