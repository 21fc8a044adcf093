//! The error of a step that a container's own process takes before it executes its program.
//!
//! Such a process can hand its parent nothing but bytes, so the error is the finished sentence: the step, what it
//! worked on, and the kernel's reason in the words of errno(3).

use std::fmt::Display;
use std::io;

use nix::errno::Errno;

/// A finished sentence, e.g. `mount volume /data (bind from /x): no such file or directory`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepError(pub String);

impl StepError {
    /// A step that failed for a reason of its own.
    pub fn because(step: impl Display, reason: impl Display) -> Self {
        StepError(format!("{step}: {reason}"))
    }
}

/// Names the step that an operating system error belongs to.
pub trait At<T> {
    /// `step` is built only when there is an error.
    fn at<S: Display>(self, step: impl FnOnce() -> S) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at<S: Display>(self, step: impl FnOnce() -> S) -> Result<T, StepError> {
        self.map_err(|error| StepError::because(step(), reason(&error.into())))
    }
}

/// The text of errno(3) in lower case, as container runtimes print it.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let text = Errno::from_raw(number).desc();
            let mut letters = text.chars();
            match (letters.next(), letters.clone().next()) {
                (Some(first), Some(second)) if second.is_lowercase() => {
                    first.to_lowercase().chain(letters).collect()
                }
                _ => text.to_owned(),
            }
        }
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_error_of_errno_is_a_lower_case_sentence() {
        let result: Result<(), _> = Err(Errno::ENOENT);
        assert_eq!(
            result.at(|| "mount volume /data").unwrap_err().to_string(),
            "mount volume /data: no such file or directory"
        );
        let result: Result<(), _> = Err(Errno::EIO);
        assert_eq!(
            result.at(|| "read").unwrap_err().to_string(),
            "read: I/O error"
        );
    }
}
