//! `cargo xtask bundle`: everything that runs a pod, side by side as an installation has it.
//!
//! ```text
//! TARGET/bundle/bin/vmpod
//! TARGET/bundle/bin/vmpod-supervise
//! TARGET/bundle/bin/containerd-shim-vmpod-v2
//! TARGET/bundle/bin/vmpod-vmm
//! TARGET/bundle/lib/vmpod/vmlinux
//! TARGET/bundle/lib/vmpod/initramfs.cpio
//! TARGET/bundle/stamp                    a hash of them all
//! ```
//!
//! `vmpod` finds the others from where it lies itself. The kernel is built once for each set of
//! inputs and kept in the cache, outside the checkout; the rest is cargo's business.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Args;
use sha2::{Digest, Sha256};
use vmpod_guest_image::{KernelBuild, initramfs};

use crate::packages;
use crate::process;
use crate::progress::Step;
use crate::workspace;

/// The guest's binaries are static, so the target must be named: build scripts and macros would
/// be built static as well otherwise, and those cannot be loaded.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Names a guest kernel to use as it is, for work on the kernel itself.
const KERNEL_VARIABLE: &str = "VMPOD_GUEST_KERNEL";

#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Build unoptimised, into TARGET/bundle-debug: faster to build, slower to run
    #[arg(long)]
    debug: bool,
    /// Take this vmlinux for the guest instead of building one
    #[arg(long, env = KERNEL_VARIABLE)]
    kernel: Option<PathBuf>,
}

/// Where a bundle lies.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    /// The folder that holds `bin` and `lib`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hash of the bundle's content.
    ///
    /// # Errors
    /// When the stamp cannot be read.
    pub fn stamp(&self) -> Result<String> {
        let path = self.dir.join("stamp");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

/// Runs the subcommand.
///
/// # Errors
/// As [`build`].
pub fn run(args: &BundleArgs) -> Result<u8> {
    let bundle = build_with(args.debug, args.kernel.clone())?;
    println!("{}", bundle.dir().display());
    Ok(0)
}

/// Brings the bundle up to date.
///
/// # Errors
/// When a package cannot be installed, or a part does not build.
pub fn build(debug: bool) -> Result<Bundle> {
    build_with(debug, env::var_os(KERNEL_VARIABLE).map(PathBuf::from))
}

fn build_with(debug: bool, kernel: Option<PathBuf>) -> Result<Bundle> {
    let root = workspace::root();
    let target = workspace::target_dir();
    let profile = if debug { "debug" } else { "release" };

    let kernel = match kernel {
        Some(path) => path,
        None => build_kernel(&root)?,
    };

    for (program, care) in [("vmpod-agent", Care::Size), ("vmpod-vmm", Care::Speed)] {
        build_part(debug, &target, program, &[program], care, Place::Any)?;
    }
    build_part(
        debug,
        &target,
        "vmpod-shim",
        &["vmpod", "vmpod-supervise", "containerd-shim-vmpod-v2"],
        Care::Size,
        Place::Fixed,
    )?;
    let output = target.join(TARGET).join(profile);

    let dir = target.join(if debug { "bundle-debug" } else { "bundle" });
    for part in ["bin", "lib/vmpod"] {
        let path = dir.join(part);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    let archive = output.join("initramfs.cpio");
    initramfs::write(&output.join("vmpod-agent"), &archive)
        .context("writing the guest's initramfs")?;
    let parts = [
        (output.join("vmpod"), "bin/vmpod"),
        (output.join("vmpod-supervise"), "bin/vmpod-supervise"),
        (
            output.join("containerd-shim-vmpod-v2"),
            "bin/containerd-shim-vmpod-v2",
        ),
        (output.join("vmpod-vmm"), "bin/vmpod-vmm"),
        (kernel, "lib/vmpod/vmlinux"),
        (archive, "lib/vmpod/initramfs.cpio"),
    ];
    for (source, place) in &parts {
        put(source, &dir.join(place))?;
    }
    let bundle = Bundle { dir };
    // By time and not by what was just copied: a run that was cut off here leaves it to the next.
    let stamped = modified(&bundle.dir.join("stamp"));
    if parts
        .iter()
        .any(|(_, place)| modified(&bundle.dir.join(place)) >= stamped)
    {
        let mut hash = Sha256::new();
        for (_, place) in &parts {
            hash.update(Sha256::digest(read(&bundle.dir.join(place))?));
        }
        let stamp: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        workspace::write_atomically(&bundle.dir.join("stamp"), stamp.as_bytes())?;
    }
    Ok(bundle)
}

/// What an optimised build of a part is to be good at.
#[derive(Clone, Copy)]
enum Care {
    /// What is started for each pod, or loaded with each machine: every page costs a fault, or memory, or a copy.
    Size,
    /// What works for as long as the pod does.
    Speed,
}

/// Where a program lies in its process's memory.
#[derive(Clone, Copy)]
enum Place {
    /// Somewhere else each time: for what guests and containers attack from their side.
    Any,
    /// Where it was linked to, as programs of Go do: nothing has to be relocated at each start, and no page copied for that.
    Fixed,
}

/// Builds programs of a package. They are static: looking for libraries costs more than the rest of their start. With the
/// target named, its flags reach them alone and their output has a folder of its own; build scripts and macros are shared
/// with the other builds.
fn build_part(
    debug: bool,
    target: &Path,
    package: &str,
    programs: &[&str],
    care: Care,
    place: Place,
) -> Result<()> {
    let profile = if debug { "debug" } else { "release" };
    let names = programs.join(" and ");
    let mut step = Step::begin(format!("building {names} ({profile})"));
    let mut command = cargo(debug);
    command.args(["-p", package, "--target", TARGET]);
    for program in programs {
        command.args(["--bin", program]);
    }
    command.arg("--target-dir").arg(target);
    let flags = match place {
        Place::Any => "-C target-feature=+crt-static",
        Place::Fixed => "-C target-feature=+crt-static -C relocation-model=static",
    };
    command
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !debug && matches!(care, Care::Size) {
        command.envs([
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
            ("CARGO_PROFILE_RELEASE_LTO", "fat"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
            ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
        ]);
    }
    process::compile(&mut command, &mut step)?;
    step.done();
    Ok(())
}

fn cargo(debug: bool) -> Command {
    let mut command = workspace::cargo();
    command.args(["build", "--locked"]);
    if !debug {
        command.arg("--release");
    }
    command
}

fn build_kernel(root: &Path) -> Result<PathBuf> {
    packages::ensure(vmpod_guest_image::packages())?;
    let build = KernelBuild::new(&root.join("guest-image"), &workspace::cache_dir()?);
    let mut step: Option<Step> = None;
    let kernel = build
        .build(&mut |progress| {
            let step = step.get_or_insert_with(|| Step::begin("building the guest's kernel"));
            let text = format!("{} {}", progress.phase, progress.detail);
            step.at(progress.done, progress.total, &text);
        })
        .context("building the guest's kernel")?;
    if let Some(step) = step {
        step.done();
    }
    Ok(kernel)
}

/// When the file was last written; `None`, which sorts before every time, when there is none.
fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Copies `source` to `place` unless the same content is there. Never in place, as the old file may
/// be running.
fn put(source: &Path, place: &Path) -> Result<()> {
    let content = read(source)?;
    if fs::read(place).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let partial = place.with_extension("partial");
    fs::copy(source, &partial).with_context(|| format!("copying to {}", partial.display()))?;
    fs::rename(&partial, place).with_context(|| format!("renaming to {}", place.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn put_with_same_content_leaves_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (source, place) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&source, "one").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        put(&source, &place).unwrap();
        let first = fs::metadata(&place).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o755);
        put(&source, &place).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().ino(), first.ino());
        fs::write(&source, "two").unwrap();
        put(&source, &place).unwrap();
        assert_ne!(fs::metadata(&place).unwrap().ino(), first.ino());
    }
}
