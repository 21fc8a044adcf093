//! The reading side: lines of a log from its beginning, and those that come later, across rotations.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::LogStream;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// Bytes of the longest record that the writer makes, with room to spare; a longer one is not the writer's.
const RECORD_BYTES: usize = 64 * 1024;

/// A record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nanoseconds, as written.
    pub time: String,
    /// Stream.
    pub stream: LogStream,
    /// The container's line goes on in the next record.
    pub partial: bool,
    /// Text without a line end.
    pub text: Vec<u8>,
}

impl Line {
    /// Reads `<time> <stream> <tag> <text>`; `None` for anything else.
    fn parse(record: &[u8]) -> Option<Self> {
        let mut parts = record.splitn(4, |&byte| byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.to_owned();
        let stream = match parts.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self {
            time,
            stream,
            partial,
            text: parts.next().unwrap_or_default().to_owned(),
        })
    }
}

/// Reads a log as it grows.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<File>,
    /// The rotated part has been looked for.
    started: bool,
    rest: Vec<u8>,
}

impl LogReader {
    /// A reader at the beginning of the log at `path`, which need not be there yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            started: false,
            rest: Vec::new(),
        }
    }

    /// The lines that have come since the last call; none when there are none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        loop {
            if self.file.is_none() && !self.open_next()? {
                return Ok(lines);
            }
            self.read_file(&mut lines)?;
            // A rotated file gets no more records: the one that took its place goes on.
            if !self.is_rotated() {
                return Ok(lines);
            }
            self.read_file(&mut lines)?;
            self.file = None;
        }
    }

    fn open_next(&mut self) -> io::Result<bool> {
        if !self.started {
            self.started = true;
            let mut before = self.path.clone().into_os_string();
            before.push(".1");
            if let Ok(file) = File::open(before) {
                self.file = Some(file);
                return Ok(true);
            }
        }
        match File::open(&self.path) {
            Ok(file) => {
                self.file = Some(file);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.started = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn is_rotated(&self) -> bool {
        let Some(open) = self.file.as_ref().and_then(|file| file.metadata().ok()) else {
            return false;
        };
        fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) != (open.dev(), open.ino()))
    }

    fn read_file(&mut self, lines: &mut Vec<Line>) -> io::Result<()> {
        let Some(file) = self.file.as_mut() else {
            return Ok(());
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = file.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            for piece in chunk[..length].split_inclusive(|&byte| byte == b'\n') {
                if self.rest.len() + piece.len() <= RECORD_BYTES {
                    self.rest.extend_from_slice(piece);
                }
                if piece.last() == Some(&b'\n') {
                    let record = self.rest.strip_suffix(b"\n").unwrap_or(&self.rest);
                    lines.extend(Line::parse(record));
                    self.rest.clear();
                }
            }
        }
    }
}

/// Numbers of the attempts of which there is a log below `directory`, ascending.
#[must_use]
pub fn all_attempts(directory: &Path) -> Vec<u32> {
    let mut numbers: Vec<u32> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".log")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Number of the last attempt of which there is a log below `directory`.
#[must_use]
pub fn latest_attempt(directory: &Path) -> Option<u32> {
    all_attempts(directory).pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_another_format_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(
            &path,
            "nonsense\n2026-11-21T13:02:00.000000000Z stdout F a b\n2026 stdout X c\n",
        )
        .unwrap();
        let lines = LogReader::new(&path).read().unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].text, b"a b");
    }

    #[test]
    fn log_that_comes_later_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut reader = LogReader::new(&path);
        assert!(reader.read().unwrap().is_empty());
        fs::write(&path, "t stderr F x").unwrap();
        assert!(
            reader.read().unwrap().is_empty(),
            "half a record was taken for one"
        );
        fs::write(&path, "t stderr F x\n").unwrap();
        assert_eq!(reader.read().unwrap()[0].stream, LogStream::Stderr);
    }

    #[test]
    fn attempts_are_sorted_by_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["10.log", "9.log", "9.log.1", "x.log"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(all_attempts(dir.path()), [9, 10]);
        assert_eq!(latest_attempt(dir.path()), Some(10));
    }
}
