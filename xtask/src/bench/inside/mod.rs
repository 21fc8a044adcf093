//! The measuring itself, as a process in the counting node: a group of rows after the other, each line of its standard
//! output one [`Line`] of JSON. Chooses nothing and judges nothing; what is wanted comes as a [`Plan`].

mod boot;
mod containerd;
mod files;
mod ground;
mod memory;
mod nearby;
mod network;
mod pod;
mod starts;

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::ground::Ground;
use super::result::{Failure, Row};
use super::rows;

/// What is to be measured, and with what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Folder with `bin` and `lib`, in the node's memory.
    pub bundle: PathBuf,
    /// Archive of the image `busybox`.
    pub image: PathBuf,
    /// The compiled `load.rs`.
    pub load: PathBuf,
    /// The compiled `containerd-bench`.
    pub containerd: PathBuf,
    /// Rows whose name contains this; all when empty.
    pub filter: String,
    /// Samples of each row that is not a mean by itself.
    pub runs: usize,
}

impl Plan {
    fn wants(&self, row: &str) -> bool {
        row.contains(&self.filter)
    }
}

/// A line that this process prints.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What is being measured now.
    Doing(String),
    Row(Row),
    Failure(Failure),
}

impl Line {
    fn print(&self) -> Result<()> {
        let mut out = stdout().lock();
        serde_json::to_writer(&mut out, self).context("printing a result")?;
        out.write_all(b"\n").context("printing a result")?;
        out.flush().context("printing a result")
    }
}

/// Rows that are measured together.
struct Group {
    rows: Vec<&'static str>,
    measure: fn(&Ground) -> Result<Vec<Row>>,
}

fn groups() -> Vec<Group> {
    vec![
        Group {
            rows: vec![rows::BOOT],
            measure: boot::measure,
        },
        // A ratio is made of two groups; who asks for it by name gets what it is made of.
        Group {
            rows: vec![rows::START_COLD, rows::START_COLD_BOOT, rows::START_RATIO],
            measure: starts::cold,
        },
        Group {
            rows: vec![
                rows::START_TEMPLATE,
                rows::START_TEMPLATE_BOOT,
                rows::TEMPLATE_RATIO,
            ],
            measure: starts::restored,
        },
        Group {
            rows: vec![
                rows::START_RUNC,
                rows::RUNC_TRUE,
                rows::START_RATIO,
                rows::TEMPLATE_RATIO,
            ],
            measure: starts::runc,
        },
        Group {
            rows: vec![rows::EXEC],
            measure: starts::exec,
        },
        Group {
            rows: containerd::rows(),
            measure: containerd::measure,
        },
        Group {
            rows: rows::EMPTY_DIR.to_vec(),
            measure: |ground| files::measure(ground, "empty", rows::EMPTY_DIR),
        },
        Group {
            rows: rows::HOST_PATH.to_vec(),
            measure: |ground| files::measure(ground, "host", rows::HOST_PATH),
        },
        Group {
            rows: rows::NETWORK.to_vec(),
            measure: network::measure,
        },
        Group {
            rows: vec![
                rows::MEMORY_HOST,
                rows::MEMORY_HOST_ANONYMOUS,
                rows::MEMORY_GUEST,
                rows::MEMORY_GUEST_USED,
            ],
            measure: memory::measure,
        },
    ]
}

/// Measures what `plan`, a [`Plan`] as JSON, asks for.
///
/// # Errors
/// When nothing can be measured at all; a group that fails is printed and the next one measured.
pub fn run(plan: &str) -> Result<u8> {
    let plan: Plan = serde_json::from_str(plan).context("reading the plan")?;
    let ground = Ground::prepare(plan)?;
    for group in groups() {
        let wanted: Vec<&str> = group
            .rows
            .iter()
            .copied()
            .filter(|row| ground.plan.wants(row))
            .collect();
        let Some(first) = wanted.first() else {
            continue;
        };
        Line::Doing((*first).to_owned()).print()?;
        match (group.measure)(&ground) {
            Ok(found) => {
                let whole = [rows::START_RATIO, rows::TEMPLATE_RATIO, rows::CRI_RATIO]
                    .iter()
                    .any(|ratio| wanted.contains(ratio));
                for row in found {
                    if whole || wanted.contains(&&*row.name) {
                        Line::Row(row).print()?;
                    }
                }
            }
            Err(error) => Line::Failure(Failure {
                rows: wanted.into_iter().map(str::to_owned).collect(),
                error: format!("{error:#}"),
            })
            .print()?,
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::super::result::MEGA_INSTRUCTIONS;
    use super::*;

    #[test]
    fn line_printed_and_read_is_the_same() {
        let line = Line::Row(Row::new("r", MEGA_INSTRUCTIONS, vec![1.5]));
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.starts_with(r#"{"row":{"name":"r""#), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    }

    #[test]
    fn groups_measure_every_row_that_has_a_target() {
        let rows: Vec<&str> = groups().into_iter().flat_map(|group| group.rows).collect();
        for row in [
            rows::BOOT,
            rows::START_RATIO,
            rows::TEMPLATE_RATIO,
            rows::MEMORY_HOST,
            rows::MEMORY_GUEST,
        ] {
            assert!(rows.contains(&row) && rows::target(row).is_some(), "{row}");
        }
    }
}
