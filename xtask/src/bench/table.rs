//! Findings as people read them.

use std::fmt::Write;

use super::result::{Findings, Row};
use super::rows::{self, DOCUMENTED_FIRECRACKER, DOCUMENTED_RUNC};

/// The table with its heading and footing, ending in a newline.
pub fn render(findings: &Findings) -> String {
    let width = findings
        .rows
        .iter()
        .map(|row| row.name.len())
        .max()
        .unwrap_or_default();
    let mut text = format!(
        "{:width$}  {:>9} {:>9} {:>9}  {:10} {:>8}  target\n",
        "", "median", "min", "max", "unit", "VM exits"
    );
    for row in &findings.rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line(row, width));
    }
    for failure in &findings.failures {
        let _ = writeln!(
            text,
            "NOT MEASURED: {}: {}",
            failure.rows.join("; "),
            failure.error
        );
    }
    let _ = write!(
        text,
        "Instructions of the whole node, kernel and guest together (1 M instr = 10^6); not times on hardware, which knows \
         caches and what an exit costs.\n\
         Not measured in this run, from the table of documented figures: Firecracker 1.17 to its guest's init \
         {DOCUMENTED_FIRECRACKER} M instr; runc run of true {DOCUMENTED_RUNC} M instr.\n"
    );
    text
}

fn line(row: &Row, width: usize) -> String {
    let median = row.median();
    let exits = row
        .median_exits()
        .map(|count| count.to_string())
        .unwrap_or_default();
    let verdict = rows::target(&row.name).map_or_else(String::new, |target| {
        format!(
            "{} {:.1}: {}",
            if target.below { "<" } else { "<=" },
            target.limit,
            if target.is_met(median) {
                "met"
            } else {
                "MISSED"
            }
        )
    });
    format!(
        "{:width$}  {:>9} {:>9} {:>9}  {:10} {exits:>8}  {verdict}",
        row.name,
        figure(median),
        figure(row.min()),
        figure(row.max()),
        row.unit
    )
    .trim_end()
    .to_owned()
}

/// Four digits or so, as a median of a handful of samples deserves.
fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::result::{Failure, MEBIBYTES, MEGA_INSTRUCTIONS};
    use super::*;

    #[test]
    fn render_says_which_targets_were_met_and_what_was_not_measured() {
        let mut findings = Findings::new(0, String::new());
        let mut boot = Row::new(rows::BOOT, MEGA_INSTRUCTIONS, vec![90.0, 91.0, 92.0]);
        boot.exits = vec![1500, 1501, 1502];
        findings.rows = vec![boot, Row::new(rows::MEMORY_HOST, MEBIBYTES, vec![7.25])];
        findings.failures = vec![Failure {
            rows: vec![rows::EXEC.into()],
            error: "no such pod".into(),
        }];
        let text = render(&findings);
        let has = |part: &str| assert!(text.contains(part), "{part:?} in\n{text}");
        has("91.00     90.00     92.00  M instr        1501  <= 83.8: MISSED\n");
        has("7.25      7.25      7.25  MiB                  < 10.0: met\n");
        has("NOT MEASURED: exec: vmpod exec POD true, to its exit: no such pod\n");
    }
}
