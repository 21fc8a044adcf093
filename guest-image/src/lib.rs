//! The guest's kernel and initramfs: what they are made of, and their reproducible build.
//!
//! A pod's machine boots two files. `vmlinux` is Debian's `linux-source-6.12` built with
//! `kernel.config` of this folder (and `patches/*.patch` in name order, where there are any); the
//! initramfs is an archive with the static agent as `/init`. Same inputs give the same bytes, so
//! both are named by the hash of their inputs and built once per cache.
//!
//! ```no_run
//! use std::path::Path;
//! use vmpod_guest_image::{KernelBuild, initramfs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // apt-get install vmpod_guest_image::packages() first.
//! let build = KernelBuild::new(Path::new("guest-image"), Path::new("/var/cache/vmpod"));
//! println!("kernel {}", build.input_hash()?);
//! let vmlinux = build.build(&mut |progress| eprintln!("{progress}"))?;
//! initramfs::write(Path::new("target/agent"), Path::new("/var/cache/vmpod/initramfs"))?;
//! # drop(vmlinux);
//! # Ok(())
//! # }
//! ```
//!
//! This crate runs on the machine that builds, is driven by `xtask`, and is not linked into
//! anything that runs pods. It installs nothing and prints nothing: packages are named, progress
//! is reported to the caller.

#![forbid(unsafe_code)]

mod cache;
mod elf;
mod fingerprint;
pub mod fragment;
pub mod initramfs;
mod kernel;
mod progress;

pub use cache::CacheError;
pub use elf::ElfError;
pub use fingerprint::FingerprintError;
pub use kernel::{BuildError, DEFAULT_SOURCE, KernelBuild};
pub use progress::{Phase, Progress};

/// Debian packages that [`KernelBuild::build`] needs, by name.
///
/// `bc` computes the kernel's time constants, `flex` and `bison` build its configuration parser,
/// and `libelf-dev` is for the pass over the object files that makes return thunks patchable.
pub const PACKAGES: &[&str] = &[
    "linux-source-6.12",
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "patch",
    "tar",
    "xz-utils",
];

/// The same list as [`PACKAGES`].
pub fn packages() -> &'static [&'static str] {
    PACKAGES
}
