//! The writing side: bytes of a stream become lines with time and tag; the file is bounded.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::LogStream;
use crate::pod::clock;
use crate::pod::rotating_file::RotatingFile;

/// Longest text of one log line; a longer line of the container is cut into partial ones (tag `P`).
const LINE_BYTES: usize = 16 * 1024;

/// Bytes after which a log starts anew; the one before is kept once, as `<file>.1`.
pub const ROTATE_BYTES: u64 = 10 << 20;

/// The log file of one attempt of a container.
#[derive(Debug)]
pub struct LogWriter {
    file: RotatingFile,
    /// Bytes that could not be written, since the last that could.
    lost: u64,
}

impl LogWriter {
    /// Opens the log at `path` and makes its directory.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)?;
        }
        let file = RotatingFile::open(path, bound)?;
        Ok(Self { file, lost: 0 })
    }

    /// Appends `record`. A disk that is full loses lines rather than stopping the pod; how much was lost is said as soon
    /// as there is room.
    fn append(&mut self, record: &[u8]) {
        self.file.make_room(record.len());
        if self.lost > 0 {
            let note = format!(
                "{} stderr F vmpod: {} bytes of log were lost: the disk was full\n",
                clock::rfc3339_ns(clock::now_ns()),
                self.lost
            );
            if self.file.append(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if let Err(error) = self.file.append(record) {
            if self.lost == 0 {
                tracing::error!(%error, "a container's output is being lost");
            }
            self.lost += record.len() as u64;
        }
    }
}

/// Turns the bytes of one stream into records of a log that its other stream shares.
#[derive(Debug)]
pub struct StreamWriter {
    /// Shared by the tasks that read a container's two streams.
    log: Arc<Mutex<LogWriter>>,
    stream: LogStream,
    pending: Vec<u8>,
}

impl StreamWriter {
    /// The writer of `stream` into `log`.
    #[must_use]
    pub fn new(log: Arc<Mutex<LogWriter>>, stream: LogStream) -> Self {
        Self {
            log,
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes in what the stream said. Whole lines are written, in one write for all of them; the rest waits.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let mut records = Vec::with_capacity(bytes.len() + 128);
        let now = clock::rfc3339_ns(clock::now_ns());
        while !bytes.is_empty() {
            let room = LINE_BYTES - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.pending.extend_from_slice(&window[..end]);
                self.finish(&mut records, &now, 'F');
                bytes = &bytes[end + 1..];
            } else {
                self.pending.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                if self.pending.len() == LINE_BYTES {
                    self.finish(&mut records, &now, 'P');
                }
            }
        }
        self.write(&records);
    }

    /// Writes what waits for the end of its line, as a partial line.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut records = Vec::new();
        self.finish(&mut records, &clock::rfc3339_ns(clock::now_ns()), 'P');
        self.write(&records);
    }

    /// Whether a line waits for its end.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn finish(&mut self, records: &mut Vec<u8>, now: &str, tag: char) {
        let _ = write!(records, "{now} {} {tag} ", self.stream.name());
        records.append(&mut self.pending);
        records.push(b'\n');
    }

    fn write(&self, records: &[u8]) {
        if !records.is_empty() {
            self.log
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(records);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::pod::logs::LogReader;

    fn texts(path: &Path) -> Vec<String> {
        let mut reader = LogReader::new(path);
        reader
            .read()
            .unwrap()
            .into_iter()
            .map(|line| {
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&line.text),
                    if line.partial { "…" } else { "" }
                )
            })
            .collect()
    }

    #[test]
    fn line_in_pieces_is_one_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let log = Arc::new(Mutex::new(LogWriter::open(&path, ROTATE_BYTES).unwrap()));
        let mut out = StreamWriter::new(log, LogStream::Stdout);
        out.push(b"he");
        out.push(b"llo\n\nrest");
        assert_eq!(texts(&path), ["hello", ""]);
        out.flush();
        out.flush();
        assert_eq!(texts(&path), ["hello", "", "rest…"]);
    }

    #[test]
    fn line_over_the_bound_is_cut_into_partial_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Arc::new(Mutex::new(LogWriter::open(&path, ROTATE_BYTES).unwrap()));
        let mut out = StreamWriter::new(log, LogStream::Stderr);
        let mut bytes = vec![b'x'; LINE_BYTES * 2 + 5];
        bytes.push(b'\n');
        out.push(&bytes);
        let lines = texts(&path);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with('…') && lines[2] == "xxxxx");
    }

    #[test]
    fn log_over_its_bound_keeps_the_part_before_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Arc::new(Mutex::new(LogWriter::open(&path, 4096).unwrap()));
        let mut out = StreamWriter::new(log, LogStream::Stdout);
        let mut reader = LogReader::new(&path);
        let mut seen = 0;
        for number in 0..400 {
            out.push(format!("line {number}\n").as_bytes());
            if number % 20 == 0 {
                seen += reader.read().unwrap().len();
            }
        }
        seen += reader.read().unwrap().len();
        assert_eq!(seen, 400, "a reader that follows lost lines at a rotation");
        assert!(fs::metadata(&path).unwrap().len() <= 4096);
        assert!(dir.path().join("0.log.1").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
