//! Finds the kernel's panic message in console output.
//!
//! Fed byte by byte; keeps one bounded line. Whoever controls the guest's console can fake the message, which misleads
//! about that guest alone.

/// Most bytes kept of a line.
const LINE_BYTES: usize = 512;
/// Console bytes after which a message no longer explains a reset: a panic prints its dump and then resets at once.
const FRESH_BYTES: u64 = 64 << 10;
/// How Linux begins its message.
const MARK: &[u8] = b"Kernel panic - not syncing: ";
/// How Linux ends the dump, with the same words.
const END_MARK: &[u8] = b"---[ end ";

/// Watches console output.
#[derive(Debug, Default)]
pub struct PanicWatch {
    line: Vec<u8>,
    message: Option<String>,
    since: u64,
}

impl PanicWatch {
    /// Looks at output.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.since = self.since.saturating_add(1);
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_BYTES {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let found = line.windows(MARK.len()).position(|w| w == MARK);
        if let Some(start) = found
            && !line.windows(END_MARK.len()).any(|w| w == END_MARK)
            && let Some(text) = line.get(start + MARK.len()..)
        {
            self.message = Some(printable(text));
            self.since = 0;
        }
        self.line = line;
        self.line.clear();
    }

    /// The message of the last panic, if it is recent enough to explain a reset now.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        let part = self
            .line
            .windows(MARK.len())
            .position(|w| w == MARK)
            .and_then(|start| self.line.get(start + MARK.len()..))
            .map(printable);
        self.message
            .clone()
            .filter(|_| self.since <= FRESH_BYTES)
            .or(part)
    }
}

/// The text with control characters left out: it goes to logs and terminals of the host.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Option<String> {
        let mut watch = PanicWatch::default();
        watch.feed(text.as_bytes());
        watch.message()
    }

    #[test]
    fn panic_in_a_dump_is_the_text_of_its_first_line() {
        let text = "[    0.1] Kernel panic - not syncing: No working init found.\r\nCPU: 0\r\n\
                    [    0.2] ---[ end Kernel panic - not syncing: No working init found. ]---\r\n";
        assert_eq!(message(text).unwrap(), "No working init found.");
    }

    #[test]
    fn panic_on_an_unfinished_line_is_found() {
        assert_eq!(
            message("Kernel panic - not syncing: Fatal\x1b[0m").unwrap(),
            "Fatal[0m"
        );
    }

    #[test]
    fn console_without_a_panic_or_with_an_old_one_has_no_message() {
        assert_eq!(message("hello\nKernel panic\n"), None);
        let old = format!("Kernel panic - not syncing: x\n{}", "line\n".repeat(20_000));
        assert_eq!(message(&old), None);
    }

    #[test]
    fn console_without_line_ends_is_bounded() {
        let mut watch = PanicWatch::default();
        watch.feed(&vec![b'a'; 1 << 20]);
        assert!(watch.line.capacity() <= 2 * LINE_BYTES);
    }
}
