//! The hash of everything that decides a kernel's bytes.
//!
//! Reads files and asks tools for their version; builds nothing. The tarball is hashed once and
//! remembered by device, inode, size and time stamps, because 150 MB a run would be felt.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{self, CacheError};

/// Changed by hand whenever the way of building changes what comes out.
const BUILDER_VERSION: &str = "vmpod kernel builder 1";

/// Why an input hash could not be had.
#[derive(Debug, Error)]
pub enum FingerprintError {
    #[error(
        "the kernel source {path} is missing: apt-get install linux-source-6.12, or name another \
         tarball"
    )]
    NoSource { path: PathBuf },
    #[error("cannot read {path}, an input of the kernel build")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {tool} --version: apt-get install {}", crate::PACKAGES.join(" "))]
    Tool {
        tool: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{tool} --version ended with {status} and no version")]
    NoVersion {
        tool: &'static str,
        status: std::process::ExitStatus,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Inputs of one kernel build, read.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// SHA-256 over the inputs, in hexadecimal.
    pub(crate) hash: String,
    pub(crate) fragment: String,
    /// In the order of application.
    pub(crate) patches: Vec<PathBuf>,
}

/// Reads the inputs of a build; `memory` is where the tarball's hash is remembered.
pub(crate) fn inputs(
    source: &Path,
    fragment: &Path,
    patches: &Path,
    memory: &Path,
) -> Result<Inputs, FingerprintError> {
    let fragment = fs::read_to_string(fragment).map_err(|source| FingerprintError::Read {
        path: fragment.to_owned(),
        source,
    })?;
    let patches = patch_files(patches)?;
    let mut sum = Sha256::new();
    let mut part = |name: &str, value: &[u8]| {
        // Lengths keep two inputs from passing for two others with the border moved.
        sum.update(format!("{name} {}\n", value.len()));
        sum.update(value);
    };
    part("builder", BUILDER_VERSION.as_bytes());
    part("source", source_hash(source, memory)?.as_bytes());
    part("fragment", fragment.as_bytes());
    for path in &patches {
        let text = fs::read(path).map_err(|source| FingerprintError::Read {
            path: path.clone(),
            source,
        })?;
        part("patch", &text);
    }
    for tool in ["gcc", "ld"] {
        part(tool, tool_version(tool)?.as_bytes());
    }
    Ok(Inputs {
        hash: hex(&sum.finalize()),
        fragment,
        patches,
    })
}

/// `*.patch` of a folder in the order of their names; none where the folder is absent.
fn patch_files(folder: &Path) -> Result<Vec<PathBuf>, FingerprintError> {
    let failed = |source| FingerprintError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut patches = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "patch")
        {
            patches.push(path);
        }
    }
    patches.sort();
    Ok(patches)
}

fn tool_version(tool: &'static str) -> Result<String, FingerprintError> {
    let output = Command::new(tool)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| FingerprintError::Tool { tool, source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(FingerprintError::NoVersion {
            tool,
            status: output.status,
        }),
    }
}

/// The tarball's SHA-256, from `memory` where it was hashed before and has not been touched since.
fn source_hash(source: &Path, memory: &Path) -> Result<String, FingerprintError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FingerprintError::NoSource {
            path: source.to_owned(),
        },
        _ => FingerprintError::Read {
            path: source.to_owned(),
            source: error,
        },
    };
    let mut file = File::open(source).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let identity = format!(
        "{}:{}:{}:{}.{:09}:{}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    // An unreadable memory is an empty one.
    let remembered = fs::read_to_string(memory).unwrap_or_default();
    if let Some((known, hash)) = remembered.trim_end().split_once(' ')
        && known == identity
    {
        return Ok(hash.to_owned());
    }
    let mut sum = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            count => sum.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    let hash = hex(&sum.finalize());
    cache::publish(memory, |file| {
        io::Write::write_all(file, format!("{identity} {hash}\n").as_bytes())
    })?;
    Ok(hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        root: tempfile::TempDir,
    }

    impl Folder {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("folder");
            fs::write(root.path().join("source"), "tarball").expect("source");
            fs::write(root.path().join("config"), "CONFIG_A=y\n").expect("config");
            Self { root }
        }

        fn hash(&self) -> String {
            let at = |name: &str| self.root.path().join(name);
            inputs(&at("source"), &at("config"), &at("patches"), &at("memory"))
                .expect("inputs")
                .hash
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.root.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("file");
        }
    }

    #[test]
    fn inputs_unchanged_files_give_the_same_hash() {
        let folder = Folder::new();
        let first = folder.hash();
        assert_eq!(first.len(), 64);
        assert_eq!(folder.hash(), first);
        assert_eq!(Folder::new().hash(), first, "paths and times are no inputs");
    }

    #[test]
    fn inputs_each_changed_input_changes_the_hash() {
        let folder = Folder::new();
        let mut seen = vec![folder.hash()];
        for (name, text) in [
            ("source", "another tarball"),
            ("config", "CONFIG_A=n\n"),
            ("patches/02.patch", "b"),
            ("patches/01.patch", "a"),
            ("patches/01.patch", "c"),
        ] {
            folder.write(name, text);
            let hash = folder.hash();
            assert!(!seen.contains(&hash), "{name} = {text:?} changed nothing");
            seen.push(hash);
        }
        folder.write("patches/README", "not a patch");
        assert_eq!(Some(&folder.hash()), seen.last());
    }

    #[test]
    fn inputs_patches_are_in_name_order() {
        let folder = Folder::new();
        for name in [
            "patches/10-b.patch",
            "patches/02-a.patch",
            "patches/11-c.patch",
        ] {
            folder.write(name, name);
        }
        let patches = patch_files(&folder.root.path().join("patches")).expect("patches");
        let names: Vec<_> = patches.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["02-a.patch", "10-b.patch", "11-c.patch"]);
    }

    #[test]
    fn source_hash_untouched_tarball_is_answered_from_memory() {
        let folder = Folder::new();
        let (source, memory) = (
            folder.root.path().join("source"),
            folder.root.path().join("memory"),
        );
        source_hash(&source, &memory).expect("hash");
        let line = fs::read_to_string(&memory).expect("memory");
        let (identity, _) = line.split_once(' ').expect("identity");
        fs::write(&memory, format!("{identity} remembered\n")).expect("memory");
        assert_eq!(source_hash(&source, &memory).expect("hash"), "remembered");
    }

    #[test]
    fn source_hash_missing_tarball_names_the_package() {
        let folder = Folder::new();
        let error = source_hash(
            &folder.root.path().join("absent"),
            &folder.root.path().join("memory"),
        )
        .expect_err("no source");
        assert!(
            error
                .to_string()
                .contains("apt-get install linux-source-6.12"),
            "{error}"
        );
    }
}
