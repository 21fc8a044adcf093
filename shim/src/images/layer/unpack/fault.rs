//! Why one entry failed, before it is told which entry it was.

use std::io;

use super::super::tar_stream::TarError;

/// A failed step: what was being done, and the error.
pub(super) struct Step(pub(super) &'static str, pub(super) io::Error);

/// Names the step in which a system call failed.
pub(super) trait During<T> {
    fn during(self, doing: &'static str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, doing: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Step(Step(doing, error.into())))
    }
}

/// Why one entry failed, before its path is added.
pub(super) enum Fault {
    Refused(String),
    TooLarge,
    Step(Step),
    Tar(TarError),
}

pub(super) fn refused<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Refused(reason.into()))
}
