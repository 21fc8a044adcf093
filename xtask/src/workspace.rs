//! Where things lie: the checkout, cargo's target directory, and the cache that outlives both. It
//! answers questions about paths, and writes files so that no reader sees half of one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The root of the checkout that this xtask was built from, as an absolute path.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's target directory, found from where this very program lies (`TARGET/debug/xtask`), so
/// that environment and configuration files agree with it by construction. For a copy that lies
/// elsewhere it is where cargo puts things unless told otherwise.
pub fn target_dir() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|exe| target_dir_of(&exe))
        .or_else(|| env::var_os("CARGO_TARGET_DIR").map(|dir| root().join(dir)))
        .unwrap_or_else(|| root().join("target"))
}

fn target_dir_of(exe: &Path) -> Option<PathBuf> {
    let profile = exe.parent()?;
    let built_there = profile.ends_with("debug") || profile.ends_with("release");
    built_there.then(|| profile.parent().map(Path::to_path_buf))?
}

/// The directory for what is expensive to make and does not belong to one checkout:
/// `$VMPOD_CACHE`, else `$XDG_CACHE_HOME/vmpod`, else `~/.cache/vmpod`.
///
/// # Errors
/// When none of the three variables is set.
pub fn cache_dir() -> Result<PathBuf> {
    cache_dir_from(
        env::var_os("VMPOD_CACHE").map(PathBuf::from),
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from),
        env::var_os("HOME").map(PathBuf::from),
    )
    .context(
        "looking for a cache directory: none of VMPOD_CACHE, XDG_CACHE_HOME and HOME is set to an \
         absolute path; set VMPOD_CACHE",
    )
}

fn cache_dir_from(
    own: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    own.and_then(absolute)
        .or_else(|| xdg.and_then(absolute).map(|path| path.join("vmpod")))
        .or_else(|| {
            home.and_then(absolute)
                .map(|path| path.join(".cache/vmpod"))
        })
}

/// The cargo that runs this program, in the checkout's root. It is not told of this program's own package, which cargo tells
/// to whom it runs: build scripts ask for that, and would be run again whenever this program was started in another way.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo sets a variable of this name for the package that it runs ("Environment variables Cargo sets for crates").
fn describes_package(variable: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ]
    .iter()
    .any(|prefix| variable.starts_with(prefix))
}

/// Writes beside `path` and renames, so that a reader sees the old content or the new.
///
/// # Errors
/// When the file cannot be written or renamed.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, content).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_package_are_told_from_those_of_a_build() {
        for of_package in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_CRATE_NAME"] {
            assert!(describes_package(of_package), "{of_package}");
        }
        for of_build in [
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "PATH",
        ] {
            assert!(!describes_package(of_build), "{of_build}");
        }
    }

    #[test]
    fn cache_dir_with_own_variable_wins() {
        let found = cache_dir_from(Some("/a".into()), Some("/b".into()), Some("/c".into()));
        assert_eq!(found, Some(PathBuf::from("/a")));
    }

    #[test]
    fn cache_dir_with_relative_variable_is_passed_over() {
        let found = cache_dir_from(Some("a".into()), Some("b".into()), Some("/c".into()));
        assert_eq!(found, Some(PathBuf::from("/c/.cache/vmpod")));
    }

    #[test]
    fn target_dir_of_a_copy_elsewhere_is_unknown() {
        assert_eq!(target_dir_of(Path::new("/tmp/xtask")), None);
        let built = target_dir_of(Path::new("/w/target/debug/xtask"));
        assert_eq!(built, Some(PathBuf::from("/w/target")));
    }

    #[test]
    fn cache_dir_without_variables_is_none() {
        assert_eq!(cache_dir_from(None, None, None), None);
    }
}
