//! The end of a guest's console, for messages: what a machine that is gone said last. Hostile input, made harmless.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::status::bounded;

/// Lines and bytes of the console that go into a message.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 8192;

/// Whether a kernel's line is part of a call trace without names, which the guest's kernel does not carry: after a panic
/// they are most of what there is, and its reason stands before them.
fn is_bare_trace(line: &str) -> bool {
    let message = line.split_once("] ").map_or(line, |(_, message)| message);
    let message = message.trim_start().trim_start_matches("? ");
    message.starts_with("0xffffffff") || matches!(message, "Call Trace:" | "<TASK>" | "</TASK>")
}

/// The last lines of the console at `path` with a heading; empty when there are none.
#[must_use]
pub fn console_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        // The VMM writes in that directory: what it puts there is not followed anywhere else.
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    // A line that begins before what was read says nothing.
    let cut = usize::from(bytes.len() as u64 == TAIL_BYTES);
    let lines: Vec<&str> = text
        .lines()
        .skip(cut)
        .filter(|line| !line.is_empty() && !is_bare_trace(line))
        .collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if tail.is_empty() {
        String::new()
    } else {
        format!(
            "; the guest's console ends with:\n{}",
            bounded(&tail.join("\n"))
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn console_tail_is_the_last_lines_made_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        assert_eq!(console_tail(&path), "");
        let mut text = String::new();
        for number in 0..100 {
            text.push_str(&format!("line {number}\u{1b}[0m\r\n"));
        }
        fs::write(&path, text).unwrap();
        let tail = console_tail(&path);
        assert!(tail.ends_with("line 99\u{fffd}[0m"), "{tail}");
        assert_eq!(tail.lines().count(), TAIL_LINES + 1);
    }

    #[test]
    fn console_tail_of_a_panic_is_its_words_without_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut text = String::from(
            "[    2.18] Kernel panic - not syncing: why\n[    2.22] Call Trace:\n[    2.22]  <TASK>\n",
        );
        for _ in 0..TAIL_LINES {
            text.push_str("[    2.23]  ? 0xffffffff8104e60b\n[    2.23]  0xffffffff8104e60b\n");
        }
        text.push_str("[    2.26]  </TASK>\n[    2.27] Kernel Offset: disabled\n");
        fs::write(&path, text).unwrap();
        let tail = console_tail(&path);
        assert!(
            tail.ends_with("with:\n[    2.18] Kernel panic - not syncing: why\n[    2.27] Kernel Offset: disabled"),
            "{tail}"
        );
    }
}
