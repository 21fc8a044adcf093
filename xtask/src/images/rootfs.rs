//! Trees that become layers: a Debian made by mmdebstrap, packages added to a tree, a busybox with its links.
//!
//! Packages come from the machine's own sources by [`Apt`]; their scripts run in the tree, in namespaces of their own.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::Apt;
use crate::process;
use crate::progress::Step;

/// What nobody reads in a container.
const LEFT_OUT: [&str; 5] = ["doc/*", "man/*", "info/*", "locale/*", "lintian/*"];

/// Makes a minimal Debian of the machine's own release in `tree`.
///
/// # Errors
/// When mmdebstrap fails, with its last lines.
pub fn debian(tree: &Path, apt: &Apt, step: &mut Step) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--aptopt=Acquire::Languages \"none\""]);
    for part in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{part}"));
    }
    command
        .arg(apt.codename())
        .arg(tree)
        .arg(apt.sources_file());
    // What is made should not depend on when it is made.
    command.env("SOURCE_DATE_EPOCH", "1760000000");
    process::run(&mut command, step)?;
    clean(tree)
}

/// Installs packages and what they depend on into the Debian in `tree`.
///
/// # Errors
/// When apt or a package's own script fails, with the last lines.
pub fn install(tree: &Path, packages: &[&str], apt: &Apt, step: &mut Step) -> Result<()> {
    let archives = tree.join("archives");
    apt.download_for(tree, packages, &archives, step)?;
    // Alternatives of Java link their manual pages, although those are left out, and fail without the folder.
    folder_with_mode(&tree.join("usr/share/man/man1"), 0o755)?;
    let policy = tree.join("usr/sbin/policy-rc.d");
    // Nothing is to be started while it is installed (invoke-rc.d's convention).
    fs::write(&policy, "#!/bin/sh\nexit 101\n")
        .with_context(|| format!("writing {}", policy.display()))?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))
        .context("making policy-rc.d executable")?;
    step.note("unpacking and configuring packages");
    // The mounts are in a namespace of this command and end with it.
    let script = "set -e; mount -t proc proc \"$1/proc\"; mount --bind /dev \"$1/dev\"; \
                  exec chroot \"$1\" sh -ec 'dpkg --unpack /archives/*.deb; dpkg --configure -a'";
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(tree);
    command.env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("LC_ALL", "C.UTF-8"),
        ("HOME", "/root"),
    ]);
    process::run(&mut command, step)?;
    fs::remove_file(&policy).context("removing policy-rc.d")?;
    fs::remove_dir_all(&archives).context("removing downloaded packages")?;
    clean(tree)
}

/// Removes what belongs to the machine that built the tree, and caches.
fn clean(tree: &Path) -> Result<()> {
    for file in [
        "etc/apt/sources.list.d/0000vmpod.sources",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/resolv.conf",
        "etc/hostname",
        "etc/machine-id",
        "etc/passwd-",
        "etc/shadow-",
        "etc/group-",
        "etc/gshadow-",
        "var/cache/ldconfig/aux-cache",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/available-old",
    ] {
        absent(fs::remove_file(tree.join(file)), file)?;
    }
    for folder in [
        "dev",
        "var/lib/apt/lists",
        "var/cache/apt",
        "var/log",
        "tmp",
        "run",
        "var/cache/debconf",
    ] {
        empty(&tree.join(folder))?;
    }
    Ok(())
}

/// Empties a folder but keeps folders directly in it, as programs expect theirs in `/var/log`.
fn empty(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("listing {}", folder.display()))?,
    };
    let keep_folders = folder.ends_with("var/log") || folder.ends_with("var/cache/apt");
    for entry in entries {
        let path = entry
            .with_context(|| format!("listing {}", folder.display()))?
            .path();
        let is_dir = fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?
            .is_dir();
        let removed = match (is_dir, keep_folders) {
            (true, true) => {
                empty_all(&path)?;
                Ok(())
            }
            (true, false) => fs::remove_dir_all(&path),
            (false, _) => fs::remove_file(&path),
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn empty_all(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("listing {}", folder.display()))?
            .path();
        if fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?
            .is_dir()
        {
            empty_all(&path)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn absent(removed: io::Result<()>, what: &str) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {what} from the tree"))
        }
        _ => Ok(()),
    }
}

/// A root file system of nothing but Debian's static busybox, with a link for each of its programs.
///
/// # Errors
/// When the package cannot be had, or the tree not be written.
pub fn busybox(tree: &Path, work: &Path, apt: &Apt, step: &mut Step) -> Result<()> {
    let unpacked = work.join("busybox-static");
    apt.unpack(&["busybox-static"], &unpacked, step)?;
    let program = ["usr/bin/busybox", "bin/busybox"]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.exists());
    let program = program.context("the package busybox-static has no busybox")?;
    for folder in [
        "bin",
        "sbin",
        "usr/bin",
        "usr/sbin",
        "etc",
        "dev",
        "proc",
        "sys",
        "home",
        "var/spool",
        "var/log",
        "run",
    ] {
        folder_with_mode(&tree.join(folder), 0o755)?;
    }
    folder_with_mode(&tree.join("root"), 0o700)?;
    folder_with_mode(&tree.join("tmp"), 0o1777)?;
    folder_with_mode(&tree.join("var/tmp"), 0o1777)?;
    let place = tree.join("bin/busybox");
    fs::copy(&program, &place).context("copying busybox")?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))
        .context("making busybox executable")?;
    for path in process::output(Command::new(&place).arg("--list-full"))?.lines() {
        let link = tree.join(path);
        if link != place && link.parent().is_some_and(Path::is_dir) {
            symlink("/bin/busybox", &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
    }
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        ),
        (
            "etc/group",
            "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n",
        ),
        ("etc/shadow", "root:*::0:::::\n"),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
    ] {
        write(
            tree,
            path,
            text.as_bytes(),
            if path == "etc/shadow" { 0o640 } else { 0o644 },
        )?;
    }
    Ok(())
}

fn folder_with_mode(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

/// Writes a file into the tree with its folders.
///
/// # Errors
/// When it cannot be written.
pub fn write(tree: &Path, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let place = tree.join(path);
    let parent: PathBuf = place.parent().map(Path::to_path_buf).unwrap_or_default();
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::write(&place, content).with_context(|| format!("writing {}", place.display()))?;
    fs::set_permissions(&place, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", place.display()))
}

/// Makes a symbolic link in the tree, in the place of whatever file is there.
///
/// # Errors
/// When it cannot be made.
pub fn link(tree: &Path, path: &str, target: &str) -> Result<()> {
    let place = tree.join(path);
    absent(fs::remove_file(&place), path)?;
    symlink(target, &place).with_context(|| format!("linking {}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_of_a_tree_keeps_log_folders_and_empties_dev() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("var/log/nginx/access.log", "x"),
            ("var/log/dpkg.log", "x"),
            ("dev/null", ""),
            ("etc/resolv.conf", "x"),
            ("etc/passwd", "root"),
        ] {
            write(dir.path(), path, text.as_bytes(), 0o644).unwrap();
        }
        clean(dir.path()).unwrap();
        let there = |path: &str| dir.path().join(path).exists();
        assert!(there("var/log/nginx") && there("dev") && there("etc/passwd"));
        assert!(
            !there("var/log/nginx/access.log")
                && !there("var/log/dpkg.log")
                && !there("dev/null")
                && !there("etc/resolv.conf")
        );
    }
}
