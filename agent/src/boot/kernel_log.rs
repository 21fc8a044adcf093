//! The agent's only log: lines in the kernel's ring buffer, which reach the console that the VMM keeps.
//!
//! Console writes are slow (an exit per byte on some consoles), so that only failures that nobody could be told in a
//! reply are written.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Longest line, in bytes; the kernel cuts records at about 1000.
const LINE_BYTES: usize = 900;

/// Writes one line. Its severity is the highest one: the VMM boots guests with a console that shows nothing else.
/// Newlines become spaces; a failure to log is ignored, there is nowhere to
/// report it.
pub fn report(text: &str) {
    let mut line = format!("<0>vmpod-agent: {}", text.replace('\n', " "));
    let mut end = LINE_BYTES.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    match OpenOptions::new().write(true).open("/dev/kmsg") {
        Ok(mut log) if std::process::id() == 1 => {
            let _ = log.write_all(line.as_bytes());
        }
        _ => eprintln!("{line}"),
    }
}
