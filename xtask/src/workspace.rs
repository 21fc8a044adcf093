//! Where things lie: the checkout, cargo's target directory, and the cache that outlives both. It
//! answers questions about paths and creates no file.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout that this xtask was built from, as an absolute path.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's target directory, found from where this very program lies (`TARGET/PROFILE/xtask`), so
/// that environment and configuration files agree with it by construction.
pub fn target_dir() -> PathBuf {
    let from_exe = env::current_exe().ok().and_then(|exe| {
        let profile = exe.parent()?;
        profile.parent().map(Path::to_path_buf)
    });
    from_exe.unwrap_or_else(|| root().join("target"))
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn cache_dir_without_variables_is_none() {
        assert_eq!(cache_dir_from(None, None, None), None);
    }
}
