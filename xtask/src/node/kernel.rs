//! The node's kernel and the programs that its initramfs needs, fetched as Debian packages and
//! unpacked into the cache. Nothing is installed: the machine keeps its own kernel and gets no ssh
//! server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::Apt;
use crate::process;
use crate::progress::Step;

/// The meta package that names the newest 6.12 kernel of the release.
const META_PACKAGE: &str = "linux-image-6.12-amd64";

/// Packages whose programs go into the initramfs: the shell, and the command channel with the one
/// library that a small machine may lack.
const TOOL_PACKAGES: [&str; 3] = ["busybox-static", "openssh-server", "libwrap0"];

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// The directory that holds `release` with the modules in it.
    pub modules: PathBuf,
    /// What `uname -r` says in the node.
    pub release: String,
    /// What `modprobe -d` takes.
    pub root: PathBuf,
}

/// The kernel in `cache`, fetched on first use and kept after that.
///
/// # Errors
/// When apt has no such kernel, or unpacking fails.
pub fn ensure(cache: &Path) -> Result<Kernel> {
    let dir = cache.join("kernel");
    let current = dir.join("current");
    if let Ok(package) = fs::read_to_string(&current)
        && let Ok(kernel) = find(&dir.join(package.trim()))
    {
        return Ok(kernel);
    }
    let mut step = Step::begin(format!(
        "fetching the node's kernel ({META_PACKAGE}, 110 MB)"
    ));
    let apt = Apt::open()?;
    apt.refresh(&mut step)?;
    let package = apt.resolve_meta(META_PACKAGE)?;
    let place = dir.join(&package);
    unpack_at(&apt, &[&package], &place, &mut step)?;
    let kernel = find(&place)?;
    process::run(
        Command::new("depmod")
            .arg("-b")
            .arg(&place)
            .arg(&kernel.release),
        &mut step,
    )?;
    fs::write(&current, &package).with_context(|| format!("writing {}", current.display()))?;
    step.done();
    Ok(kernel)
}

fn find(root: &Path) -> Result<Kernel> {
    let modules = root.join("lib/modules");
    let release = fs::read_dir(&modules)
        .with_context(|| format!("listing {}", modules.display()))?
        .next()
        .with_context(|| format!("{} is empty", modules.display()))?
        .with_context(|| format!("listing {}", modules.display()))?
        .file_name()
        .to_string_lossy()
        .into_owned();
    let image = root.join(format!("boot/vmlinuz-{release}"));
    fs::metadata(&image).with_context(|| format!("looking for {}", image.display()))?;
    Ok(Kernel {
        image,
        modules,
        release,
        root: root.to_path_buf(),
    })
}

/// The directory that [`TOOL_PACKAGES`] are unpacked in.
///
/// # Errors
/// When apt has no such package, or unpacking fails.
pub fn ensure_tools(cache: &Path) -> Result<PathBuf> {
    let place = cache.join("tools");
    if place.is_dir() {
        return Ok(place);
    }
    let mut step = Step::begin(format!(
        "fetching {} for the node",
        TOOL_PACKAGES.join(", ")
    ));
    let apt = Apt::open()?;
    apt.refresh(&mut step)?;
    unpack_at(&apt, &TOOL_PACKAGES, &place, &mut step)?;
    step.done();
    Ok(place)
}

/// Unpacks beside `place` and renames, so that a cut-off download leaves nothing half-done there.
fn unpack_at(apt: &Apt, packages: &[&str], place: &Path, step: &mut Step) -> Result<()> {
    let mut partial = place.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    for leftover in [&partial, &place.to_path_buf()] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)
                .with_context(|| format!("removing {}", leftover.display()))?;
        }
    }
    apt.unpack(packages, &partial, step)?;
    fs::rename(&partial, place).with_context(|| format!("renaming to {}", place.display()))
}
