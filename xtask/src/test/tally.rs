//! Counts tests from what Rust's test programs print, the only report that they give on stable
//! Rust. Reads lines; runs nothing.

use std::fmt;

/// What the test programs have reported so far.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    reasons: Vec<String>,
    unsteady: Vec<String>,
}

impl Tally {
    /// Takes one line of a test program's output.
    ///
    /// Two kinds count: `test NAME ... RESULT` for names, and the closing `test result:` line for
    /// numbers, because a test that prints may break the former apart.
    pub fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.passed += number_before(summary, " passed");
            self.failed += number_before(summary, " failed");
            self.skipped += number_before(summary, " ignored");
            return;
        }
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        if result == "FAILED" {
            self.failures.push(name.to_owned());
        } else if let Some(rest) = result.strip_prefix("ignored") {
            let reason = rest.trim_start_matches([',', ' ']);
            let reason = if reason.is_empty() {
                "no reason given"
            } else {
                reason
            };
            self.reasons.push(format!("{name}: {reason}"));
        }
    }

    /// Takes in what another has counted.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.reasons.extend(other.reasons);
        self.unsteady.extend(other.unsteady);
    }

    /// Tests that failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Their names, as far as they could be read.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Takes what a second run of the failed tests `names` found: those that passed in it count as passed, and as
    /// unsteady.
    pub fn run_again(&mut self, names: &[String], second: &Tally) {
        // A name that could not be read from the output may be any of them.
        if second.failed != second.failures.len() as u64 || second.seen() != names.len() as u64 {
            return;
        }
        for name in names.iter().filter(|name| !second.failures.contains(name)) {
            let Some(at) = self.failures.iter().rposition(|failed| failed == name) else {
                continue;
            };
            self.failures.remove(at);
            self.failed = self.failed.saturating_sub(1);
            self.passed += 1;
            self.unsteady.push(name.clone());
        }
    }

    /// Tests that failed first and passed when they were run again.
    pub fn unsteady(&self) -> &[String] {
        &self.unsteady
    }

    /// Tests that came to a result.
    pub fn seen(&self) -> u64 {
        self.passed + self.failed
    }

    /// Forgets the tests that were left out, because another stage runs them.
    pub fn take_skipped(&mut self) -> LeftOut {
        LeftOut {
            skipped: std::mem::take(&mut self.skipped),
            reasons: std::mem::take(&mut self.reasons),
        }
    }

    /// Counts them again.
    pub fn put_back(&mut self, left_out: LeftOut) {
        self.skipped += left_out.skipped;
        self.reasons.extend(left_out.reasons);
    }

    /// Tests that were not run, each with its reason.
    pub fn skipped_reasons(&self) -> &[String] {
        &self.reasons
    }
}

/// Tests that were left out, taken from one tally to be put back into it.
#[derive(Debug)]
pub struct LeftOut {
    skipped: u64,
    reasons: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )?;
        match self.unsteady.len() {
            0 => Ok(()),
            tests => write!(f, ", {tests} of the passed only when run again"),
        }
    }
}

/// The number that stands right before `word`, 0 when there is none.
fn number_before(text: &str, word: &str) -> u64 {
    text.find(word)
        .and_then(|at| text.get(..at))
        .and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_of_two_programs_adds_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b_c_d ... ok",
            "test needs_x ... ignored, needs a node",
            "test bad ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1s",
        ] {
            tally.line(line);
        }
        assert_eq!(tally.to_string(), "13 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures(), ["bad"]);
        assert_eq!(tally.skipped_reasons(), ["needs_x: needs a node"]);
        let left_out = tally.take_skipped();
        assert_eq!(tally.to_string(), "13 passed, 1 failed, 0 skipped");
        tally.put_back(left_out);
        assert_eq!(tally.skipped_reasons().len(), 1);
        assert_eq!(tally.seen(), 14);
    }

    #[test]
    fn tally_after_second_run_takes_what_passed_as_unsteady() {
        let failing = |names: &[&str]| {
            let mut tally = Tally::default();
            for name in names {
                tally.line(&format!("test {name} ... FAILED"));
            }
            tally.line(&format!(
                "test result: FAILED. 0 passed; {} failed; 0 ignored;",
                names.len()
            ));
            tally
        };
        let names = ["a".to_owned(), "b".to_owned()];
        let mut tally = failing(&["a", "b"]);
        let mut second = Tally::default();
        second.line("test a ... ok");
        second.line("test b ... FAILED");
        second.line("test result: FAILED. 1 passed; 1 failed; 0 ignored;");
        tally.run_again(&names, &second);
        assert_eq!(tally.failures(), ["b"]);
        assert_eq!(tally.unsteady(), ["a"]);
        assert_eq!(
            tally.to_string(),
            "1 passed, 1 failed, 0 skipped, 1 of the passed only when run again"
        );

        // A second run that broke says nothing about its tests.
        let mut tally = failing(&["a", "b"]);
        tally.run_again(&names, &Tally::default());
        assert_eq!(tally.failed(), 2);
    }
}
