//! Small JSON files that are either the old or the new content, never half of one.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process;

/// Bytes of the largest file that [`read_json`] takes: a pod's config with its OCI configurations.
pub const FILE_BYTES: u64 = 64 << 20;

/// A record file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The content is not what this version writes.
    #[error("{} does not hold what vmpod writes there", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl DurableError {
    /// Whether the file was simply not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Writes `value` as JSON to `path` by way of a file beside it and a rename.
///
/// # Errors
/// When the file cannot be written; the old content is then still there.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DurableError> {
    let bytes = serde_json::to_vec(value).map_err(|source| DurableError::Content {
        path: path.to_owned(),
        source,
    })?;
    write_bytes(path, &bytes, 0o600)
}

/// Removes what processes that were killed while they wrote files of `directory` left beside them.
pub fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let writer = name
            .to_str()
            .and_then(|name| name.strip_suffix(".new")?.rsplit_once('.'))
            .and_then(|(_, pid)| pid.parse().ok());
        if writer.is_some_and(|pid| !process::is_running(pid)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes `bytes` to `path` with `mode` by way of a file beside it and a rename.
///
/// # Errors
/// As [`write_json`].
pub fn write_bytes(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let attempt = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&beside, path)
    };
    attempt().map_err(|source| {
        // The rename did not happen, so that only our own file can be there.
        let _ = fs::remove_file(&beside);
        DurableError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

/// Reads JSON from `path`.
///
/// # Errors
/// When the file is not there, is too large or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, DurableError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(FILE_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| DurableError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| DurableError::Content {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_written_twice_holds_the_second_and_nothing_is_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &1).unwrap();
        write_json(&path, &2).unwrap();
        assert_eq!(read_json::<i32>(&path).unwrap(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweep_takes_what_dead_writers_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!("a.json.{}.new", std::process::id());
        // No process has the largest number there is.
        for name in ["a.json", "a.json.4194304.new", "b.new", &own] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = vec!["a.json".to_owned(), own, "b.new".to_owned()];
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn file_missing_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            read_json::<i32>(&dir.path().join("x"))
                .unwrap_err()
                .is_absent()
        );
    }
}
