//! A file of records that starts anew when it has reached its bound; the part before is kept once, as `<file>.1`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file being written; for its owner alone to read.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    length: u64,
    bound: u64,
}

impl RotatingFile {
    /// Opens the file at `path`, which starts anew before it would hold more than `bound` bytes.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            bound,
        })
    }

    /// Makes room for a record of `bytes`: starts the file anew when it would grow beyond its bound. A single record
    /// may be longer than that.
    pub fn make_room(&mut self, bytes: usize) {
        if self.length == 0 || self.length + bytes as u64 <= self.bound {
            return;
        }
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        if fs::rename(&self.path, before).is_ok()
            && let Ok(file) = open(&self.path)
        {
            self.file = file;
            self.length = 0;
        }
    }

    /// Appends `record`, without a look at the bound.
    ///
    /// # Errors
    /// When it cannot be written, such as on a full disk.
    pub fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.file.write_all(record)?;
        self.length += record.len() as u64;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_at_its_bound_starts_anew_and_keeps_the_part_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut file = RotatingFile::open(&path, 8).unwrap();
        for record in ["longer than that", "abcd", "efgh", "ijkl"] {
            file.make_room(record.len());
            file.append(record.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "ijkl");
        assert_eq!(read(&directory.path().join("log.1")), "abcdefgh");
        // What is there already counts.
        let mut file = RotatingFile::open(&path, 8).unwrap();
        file.make_room(5);
        file.append(b"12345").unwrap();
        assert_eq!(read(&path), "12345");
    }
}
