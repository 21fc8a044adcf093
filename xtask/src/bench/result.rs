//! What a run of the bench has found: rows of samples with their statistics, and the file that keeps them. Knows neither
//! how a row is measured nor what is good.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workspace;

/// Version of the stored form.
const FORMAT: u32 = 1;

/// Time, in units of 10^6 instructions.
pub const MEGA_INSTRUCTIONS: &str = "M instr";

/// Time of one operation among many, in units of 10^3 instructions.
pub const KILO_INSTRUCTIONS: &str = "k instr";

/// Throughput, in megabytes (10^6 bytes) for each 10^9 instructions.
pub const THROUGHPUT: &str = "MB/G instr";

/// Operations for each 10^9 instructions.
pub const RATE: &str = "1/G instr";

/// Memory.
pub const MEBIBYTES: &str = "MiB";

/// One figure over another.
pub const RATIO: &str = "x";

/// One figure, measured once or several times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured; rows are told apart and chosen by it.
    pub name: String,
    /// One of the units above.
    pub unit: String,
    /// In the order in which they were taken; never empty.
    pub samples: Vec<f64>,
    /// Exits of the virtual machine that went with each sample, where they were counted.
    #[serde(default)]
    pub exits: Vec<u64>,
}

impl Row {
    /// A row of samples without exits.
    pub fn new(name: &str, unit: &str, samples: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            samples,
            exits: Vec::new(),
        }
    }

    /// The middle one of the samples; the mean of the middle two where their number is even.
    pub fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = sorted.get(middle).copied().unwrap_or(f64::NAN);
        if sorted.len() % 2 == 1 {
            return upper;
        }
        let lower = middle.checked_sub(1).and_then(|i| sorted.get(i));
        lower.map_or(upper, |lower| f64::midpoint(*lower, upper))
    }

    /// The smallest sample.
    pub fn min(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest sample.
    pub fn max(&self) -> f64 {
        self.samples
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// The middle one of the exit counts (the upper one of the middle two).
    pub fn median_exits(&self) -> Option<u64> {
        let mut sorted = self.exits.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// Whether a larger figure is the better one.
    pub fn larger_is_better(&self) -> bool {
        self.unit == THROUGHPUT || self.unit == RATE
    }
}

/// Rows that could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub rows: Vec<String>,
    pub error: String,
}

/// Everything that one run has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// [`FORMAT`].
    format: u32,
    /// Seconds since 1970.
    pub taken: u64,
    /// Hash of the bundle that was measured.
    pub bundle: String,
    pub rows: Vec<Row>,
    pub failures: Vec<Failure>,
}

impl Findings {
    /// None yet.
    pub fn new(taken: u64, bundle: String) -> Self {
        Self {
            format: FORMAT,
            taken,
            bundle,
            rows: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Writes them as JSON to `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        let mut text = serde_json::to_vec_pretty(self).context("writing findings as JSON")?;
        text.push(b'\n');
        workspace::write_atomically(path, &text)
    }

    /// Reads what [`Findings::store`] has written.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else, such as another version's findings.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read(path).with_context(|| format!("reading {shown}"))?;
        let found: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} is not a result of `cargo xtask bench`"))?;
        if found.format != FORMAT {
            bail!(
                "{shown} has format {} and this bench compares format {FORMAT}; measure the older state anew",
                found.format
            );
        }
        if let Some(empty) = found.rows.iter().find(|row| row.samples.is_empty()) {
            bail!("{shown}: the row {:?} has no samples", empty.name);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[f64]) -> Row {
        Row::new("r", MEGA_INSTRUCTIONS, samples.to_vec())
    }

    #[test]
    fn median_of_odd_and_even_counts_is_the_middle() {
        assert_eq!(row(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(row(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(row(&[7.0]).median(), 7.0);
    }

    #[test]
    fn min_and_max_are_found_in_any_order() {
        let row = row(&[3.0, 1.0, 2.0]);
        assert_eq!((row.min(), row.max()), (1.0, 3.0));
    }

    #[test]
    fn median_exits_without_counts_is_none() {
        let mut row = row(&[1.0]);
        assert_eq!(row.median_exits(), None);
        row.exits = vec![30, 10, 20];
        assert_eq!(row.median_exits(), Some(20));
    }

    #[test]
    fn findings_stored_and_loaded_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench/result.json");
        let mut findings = Findings::new(7, "hash".into());
        findings.rows.push(row(&[1.5, 2.5]));
        findings.failures.push(Failure {
            rows: vec!["x".into()],
            error: "y".into(),
        });
        findings.store(&path).unwrap();
        assert_eq!(Findings::load(&path).unwrap(), findings);
    }

    #[test]
    fn load_of_another_format_or_an_empty_row_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.json");
        let mut findings = Findings::new(7, "hash".into());
        findings.format = 99;
        findings.store(&path).unwrap();
        let error = Findings::load(&path).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
        findings.format = FORMAT;
        findings.rows.push(row(&[]));
        findings.store(&path).unwrap();
        let error = Findings::load(&path).unwrap_err().to_string();
        assert!(error.contains("no samples"), "{error}");
        fs::write(&path, "{}").unwrap();
        let error = Findings::load(&path).unwrap_err().to_string();
        assert!(error.contains("is not a result"), "{error}");
    }
}
