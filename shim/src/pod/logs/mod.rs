//! Container logs in the format of the CRI (`<time> <stream> <tag> <text>`): written by the supervisor, read by whoever
//! wants to, without a process in between.

mod reader;
mod writer;

pub use reader::{Line, LogReader, all_attempts, latest_attempt};
pub use writer::{LogWriter, ROTATE_BYTES, StreamWriter};

/// Which of a container's streams a line is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, or a terminal's output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The word in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}
