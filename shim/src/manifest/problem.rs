//! What is wrong with a manifest, in the words of the Kubernetes API server, with file and line.

use std::fmt;

use super::source::Document;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: u64,
    /// Field, such as `spec.containers[0].image`; empty for the whole document.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// Everything that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// File name for messages.
    pub file: String,
    /// At least one, by line.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Adds further problems, but for those of fields that something is said of already.
    pub fn add_further(&mut self, further: Vec<Problem>) {
        let said = |problem: &Problem| {
            self.problems.iter().any(|known| {
                !known.path.is_empty()
                    && (problem.path.starts_with(&known.path)
                        || known.path.starts_with(&problem.path))
            })
        };
        let further: Vec<Problem> = further.into_iter().filter(|p| !said(p)).collect();
        self.problems.extend(further);
        self.problems.sort_by_key(|problem| problem.line);
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}: ", self.file, problem.line)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

/// Collects the problems of one document.
#[derive(Debug)]
pub(super) struct Collector<'a> {
    document: &'a Document,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(document: &'a Document) -> Self {
        Self {
            document,
            problems: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        let path = path.into();
        let problem = Problem {
            line: self.document.line_of(&path),
            path,
            message: message.into(),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub(super) fn required(&mut self, path: impl Into<String>) {
        self.add(path, "Required value");
    }

    pub(super) fn invalid(&mut self, path: impl Into<String>, value: impl fmt::Debug, why: &str) {
        self.add(path, format!("Invalid value: {value:?}: {why}"));
    }

    pub(super) fn duplicate(&mut self, path: impl Into<String>, value: &str) {
        self.add(path, format!("Duplicate value: {value:?}"));
    }

    pub(super) fn not_found(&mut self, path: impl Into<String>, value: &str) {
        self.add(path, format!("Not found: {value:?}"));
    }

    pub(super) fn one_of(&mut self, path: impl Into<String>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            let list = supported
                .iter()
                .map(|s| format!("{s:?}"))
                .collect::<Vec<_>>();
            self.add(
                path,
                format!(
                    "Unsupported value: {value:?}: supported values: {}",
                    list.join(", ")
                ),
            );
        }
    }
}
