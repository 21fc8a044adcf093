//! What a kernel build says about itself while it runs.
//!
//! Owned by the thread that called [`crate::KernelBuild::build`], which also runs the callback.
//! Counting only: nothing here is drawn.

use std::fmt;

/// Lines that kbuild prints for one build of `kernel.config`, rounded up.
///
/// An estimate for a progress bar, taken from a build; it drifts with the configuration and
/// nothing depends on it: a count that passes it becomes its own total.
const EXPECTED_STEPS: u64 = 1_900;

/// The part of a kernel build that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Another process builds the same kernel in the same cache; waiting for it.
    Waiting,
    /// Unpacking the source; counted in bytes of the tarball.
    Unpacking,
    /// Applying `patches/*.patch`; counted in patches.
    Patching,
    /// Making `.config` and checking that it has what `kernel.config` asks for.
    Configuring,
    /// Compiling and linking; counted in kbuild's steps, the total being an estimate.
    Compiling,
    /// Stripping, hashing and moving the result into the cache.
    Publishing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting for another build of the same kernel",
            Self::Unpacking => "unpacking kernel source",
            Self::Patching => "patching kernel source",
            Self::Configuring => "configuring kernel",
            Self::Compiling => "compiling kernel",
            Self::Publishing => "storing kernel",
        })
    }
}

/// One report of a running build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    /// Units done in this phase; what a unit is, the phase says.
    pub done: u64,
    /// Units of this phase, 0 where there is nothing to count.
    pub total: u64,
    /// What is worked on, such as `CC kernel/fork.o`; may be empty.
    pub detail: String,
}

impl Progress {
    pub(crate) fn entering(phase: Phase, total: u64) -> Self {
        Self {
            phase,
            done: 0,
            total,
            detail: String::new(),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.phase)?;
        if self.total > 0 {
            write!(f, " {}/{}", self.done, self.total)?;
        }
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
}

/// Counts kbuild's output lines.
#[derive(Debug)]
pub(crate) struct StepCounter {
    done: u64,
}

impl StepCounter {
    pub(crate) fn new() -> Self {
        Self { done: 0 }
    }

    /// A report for a line such as `  CC      kernel/fork.o`, `None` for any other line.
    pub(crate) fn line(&mut self, line: &str) -> Option<Progress> {
        let step = line.strip_prefix("  ")?;
        let (tool, object) = step.split_once(char::is_whitespace)?;
        let is_tool = !tool.is_empty()
            && tool
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        if !is_tool {
            return None;
        }
        self.done += 1;
        Some(Progress {
            phase: Phase::Compiling,
            done: self.done,
            total: EXPECTED_STEPS.max(self.done),
            detail: format!("{tool} {}", object.trim()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_counter_kbuild_line_counts_and_names_the_object() {
        let mut counter = StepCounter::new();
        counter
            .line("  HOSTCC  scripts/basic/fixdep")
            .expect("a step");
        let report = counter.line("  CC      kernel/fork.o").expect("a step");
        assert_eq!((report.done, report.total), (2, EXPECTED_STEPS));
        assert_eq!(
            report.to_string(),
            format!("compiling kernel 2/{EXPECTED_STEPS} CC kernel/fork.o")
        );
    }

    #[test]
    fn step_counter_other_line_is_not_counted() {
        let mut counter = StepCounter::new();
        for line in [
            "",
            "make[1]: Entering directory",
            "kernel/fork.c:1: warning: x",
            "  ^~~~ note",
        ] {
            assert_eq!(counter.line(line), None, "{line}");
        }
    }

    #[test]
    fn step_counter_more_steps_than_expected_never_passes_the_total() {
        let mut counter = StepCounter {
            done: EXPECTED_STEPS + 5,
        };
        let report = counter.line("  LD      vmlinux").expect("a step");
        assert_eq!(report.done, report.total);
    }
}
