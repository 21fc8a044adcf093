//! Two runs side by side: which rows moved, and which way. Counted instructions repeat to a few thousandths, so that a
//! hundredth is a change and no noise.

use super::result::{Findings, Row};

/// Movements below this part are noise.
const NOISE: f64 = 0.01;

/// A row that moved.
#[derive(Debug, PartialEq)]
pub struct Change {
    name: String,
    unit: String,
    before: f64,
    after: f64,
    better: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = (self.after / self.before - 1.0) * 100.0;
        write!(
            f,
            "{}: {:.2} -> {:.2} {} ({percent:+.1} %, {})",
            self.name,
            self.before,
            self.after,
            self.unit,
            if self.better { "better" } else { "WORSE" }
        )
    }
}

/// Those rows of `after` whose median moved by more than the noise since `before`, in the order of `after`. Rows that only
/// one of them has are not compared.
pub fn changes(before: &Findings, after: &Findings) -> Vec<Change> {
    after
        .rows
        .iter()
        .filter_map(|row| change(before.row(&row.name)?, row))
        .collect()
}

fn change(before: &Row, after: &Row) -> Option<Change> {
    let (old, new) = (before.median(), after.median());
    // Also when the older figure is 0: anything but 0 has moved then.
    if before.unit != after.unit || (new - old).abs() <= old.abs() * NOISE {
        return None;
    }
    Some(Change {
        name: after.name.clone(),
        unit: after.unit.clone(),
        before: old,
        after: new,
        better: (new > old) == after.larger_is_better(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::result::{MEGA_INSTRUCTIONS, THROUGHPUT};
    use super::*;

    fn findings(rows: &[(&str, &str, f64)]) -> Findings {
        let mut found = Findings::new(0, String::new());
        found.rows = rows
            .iter()
            .map(|(name, unit, value)| Row::new(name, unit, vec![*value]))
            .collect();
        found
    }

    #[test]
    fn changes_within_noise_are_none() {
        let before = findings(&[("a", MEGA_INSTRUCTIONS, 100.0)]);
        let after = findings(&[("a", MEGA_INSTRUCTIONS, 100.9)]);
        assert_eq!(changes(&before, &after), []);
    }

    #[test]
    fn changes_say_which_way_is_better_by_unit() {
        let before = findings(&[
            ("time", MEGA_INSTRUCTIONS, 100.0),
            ("rate", THROUGHPUT, 100.0),
        ]);
        let after = findings(&[
            ("time", MEGA_INSTRUCTIONS, 110.0),
            ("rate", THROUGHPUT, 110.0),
        ]);
        let text: Vec<String> = changes(&before, &after)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            text,
            [
                "time: 100.00 -> 110.00 M instr (+10.0 %, WORSE)",
                "rate: 100.00 -> 110.00 MB/G instr (+10.0 %, better)"
            ]
        );
    }

    #[test]
    fn changes_of_rows_that_one_run_lacks_or_measured_otherwise_are_none() {
        let before = findings(&[("a", MEGA_INSTRUCTIONS, 1.0), ("b", MEGA_INSTRUCTIONS, 1.0)]);
        let after = findings(&[("b", THROUGHPUT, 2.0), ("c", MEGA_INSTRUCTIONS, 2.0)]);
        assert_eq!(changes(&before, &after), []);
    }
}
