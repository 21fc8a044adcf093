//! The pod's events as a file: one JSON object a line, written by the supervisor, bounded, read by `vmpod events`.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rotating_file::RotatingFile;

/// Bytes after which the file starts anew.
const ROTATE_BYTES: u64 = 1 << 20;

/// Something that happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEvent {
    /// Wall clock, nanoseconds.
    pub at_ns: i64,
    /// Id of the pod.
    pub pod: String,
    /// Name of the pod.
    pub name: String,
    /// What happened, e.g. `ContainerStarted`.
    pub kind: String,
    /// Container; empty when it is about the pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Attempt of the container.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Exit code, where something ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands the field over by reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file being written.
#[derive(Debug)]
pub struct EventLog {
    file: RotatingFile,
}

impl EventLog {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = RotatingFile::open(path, ROTATE_BYTES)?;
        Ok(Self { file })
    }

    /// Appends `event`. Events are for people: one that cannot be written is dropped.
    pub fn append(&mut self, event: &PodEvent) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        self.file.make_room(line.len());
        let _ = self.file.append(&line);
    }
}

/// The events in the file at `path` from byte `offset` on, and the offset behind them. A file that has become shorter
/// was started anew: it is read from its beginning.
#[must_use]
pub fn read_from(path: &Path, offset: u64) -> (Vec<PodEvent>, u64) {
    let Ok(bytes) = fs::read(path) else {
        return (Vec::new(), offset);
    };
    let start = usize::try_from(offset)
        .ok()
        .filter(|start| *start <= bytes.len())
        .unwrap_or(0);
    let Some(end) = bytes[start..].iter().rposition(|&byte| byte == b'\n') else {
        return (Vec::new(), start as u64);
    };
    let whole = &bytes[start..start + end];
    let events = whole
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    (events, (start + end + 1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_appended_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        let event = PodEvent {
            at_ns: 1,
            pod: "id".into(),
            name: "p".into(),
            kind: "PodStarted".into(),
            container: String::new(),
            attempt: 0,
            exit_code: None,
            message: String::new(),
        };
        log.append(&event);
        let (events, offset) = read_from(&path, 0);
        assert_eq!(events, std::slice::from_ref(&event));
        log.append(&event);
        assert_eq!(read_from(&path, offset).0.len(), 1);
        assert!(read_from(&path, read_from(&path, 0).1).0.is_empty());
    }
}
