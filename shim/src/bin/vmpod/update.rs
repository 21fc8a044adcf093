//! `vmpod update`: volumes made of ConfigMaps, Secrets and the pod's own metadata follow what has changed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context, bail};
use vmpod_shim::pod::durable;
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::refresh::{self, Metadata, RefreshError};
use vmpod_shim::pod::registry;
use vmpod_shim::pod::replan::ReplanError;
use vmpod_shim::pod::roots::Roots;

use crate::cli::UpdateArguments;
use crate::run::host_facts;

/// `vmpod update`: prints the names of the volumes that have changed.
pub fn update(roots: &Roots, arguments: &UpdateArguments) -> anyhow::Result<u8> {
    let pod = registry::find(roots, &arguments.pod)?;
    if pod.has_ended() {
        bail!("pod {:?} has ended", pod.reservation.name);
    }
    let record: PodRecord = durable::read_json(&pod.paths.config())
        .with_context(|| format!("pod {:?} is still being prepared", pod.reservation.name))?;
    let changes = Metadata {
        labels: changes(&arguments.labels, "--label")?,
        annotations: changes(&arguments.annotations, "--annotation")?,
    };
    let changed = match refresh::refresh(&pod.paths, &record, &changes, host_facts()) {
        // What is wrong with a manifest has an exit status of its own.
        Err(RefreshError::Plan(ReplanError::Invalid(problems))) => return Err(problems.into()),
        other => other?,
    };
    let mut out = io::stdout().lock();
    for name in changed {
        writeln!(out, "{name}")?;
    }
    Ok(0)
}

/// `KEY=VALUE` and `KEY-`, as `kubectl label` takes them.
fn changes(words: &[String], option: &str) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    words
        .iter()
        .map(|word| {
            let change = match (word.split_once('='), word.strip_suffix('-')) {
                (Some((key, value)), _) => (key, Some(value.to_owned())),
                (None, Some(key)) => (key, None),
                (None, None) => bail!("{option} takes KEY=VALUE or KEY-, not {word:?}"),
            };
            if change.0.is_empty() {
                bail!("{option} takes KEY=VALUE or KEY-, not {word:?}");
            }
            Ok((change.0.to_owned(), change.1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_set_and_taken_away() {
        let words = |list: &[&str]| {
            list.iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let read = changes(&words(&["a=b=c", "d-", "e="]), "--label").unwrap();
        assert_eq!(read["a"].as_deref(), Some("b=c"));
        assert_eq!(read["d"], None);
        assert_eq!(read["e"].as_deref(), Some(""));
        for wrong in ["a", "=b", "-"] {
            assert!(changes(&words(&[wrong]), "--label").is_err(), "{wrong}");
        }
    }
}
