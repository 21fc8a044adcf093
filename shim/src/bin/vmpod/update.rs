//! `vmpod update`: volumes made of ConfigMaps, Secrets and the pod's own metadata follow what has changed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use vmpod_shim::manifest::qualified;
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::refresh::{self, Metadata, RefreshError};
use vmpod_shim::pod::registry;
use vmpod_shim::pod::replan::ReplanError;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::PodStatus;
use vmpod_shim::pod::{conditions, durable, process};

use crate::cli::UpdateArguments;
use crate::run::host_facts;
use crate::{guest, lifecycle};

/// Conditions of a pod that others set.
const CONDITIONS: usize = 64;

/// How long the supervisor may take to take a condition over.
const TAKEN_LIMIT: Duration = Duration::from_secs(20);

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
    if !arguments.conditions.is_empty() {
        set_conditions(roots, arguments)?;
        if changes == Metadata::default() {
            return Ok(0);
        }
    }
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

/// Leaves the conditions for the pod's supervisor, and waits until it has them.
fn set_conditions(roots: &Roots, arguments: &UpdateArguments) -> anyhow::Result<()> {
    let wanted = arguments
        .conditions
        .iter()
        .map(|word| condition(word))
        .collect::<anyhow::Result<BTreeMap<String, bool>>>()?;
    let pod = guest::running(roots, &arguments.pod)?;
    let supervisor = pod.supervisor()?;
    let paths = &pod.pod.paths;
    let lock = paths.run.join("conditions.lock");
    let _turn = process::lock(&lock).with_context(|| format!("cannot lock {}", lock.display()))?;
    let mut set: BTreeMap<String, bool> = if paths.conditions().exists() {
        durable::read_json(&paths.conditions())?
    } else {
        BTreeMap::new()
    };
    set.extend(wanted.clone());
    if set.len() > CONDITIONS {
        bail!("a pod has {CONDITIONS} conditions of others at most");
    }
    durable::write_json(&paths.conditions(), &set)?;
    lifecycle::signal(&supervisor, rustix::process::Signal::USR1);
    let taken = |status: &PodStatus| {
        let has = |(kind, holds): (&String, &bool)| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.kind == *kind && c.holds == *holds)
        };
        wanted.iter().all(has).then_some(())
    };
    let what = format!(
        "the supervisor of pod {:?} has not taken the conditions over",
        pod.status.name
    );
    pod.await_status(&what, TAKEN_LIMIT, taken)
}

/// `TYPE`, `TYPE=True` or `TYPE=False`.
fn condition(word: &str) -> anyhow::Result<(String, bool)> {
    let (kind, holds) = match word.split_once('=') {
        None => (word, true),
        Some((kind, "True" | "true")) => (kind, true),
        Some((kind, "False" | "false")) => (kind, false),
        Some(_) => bail!("--condition takes TYPE, TYPE=True or TYPE=False, not {word:?}"),
    };
    if let Err(why) = qualified(kind) {
        bail!("--condition {kind:?}: {why}");
    }
    if conditions::is_own(kind) {
        bail!("--condition {kind:?}: vmpod makes this one itself");
    }
    Ok((kind.to_owned(), holds))
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
    fn conditions_are_types_with_a_truth_and_none_of_vmpods_own() {
        let read = |word: &str| condition(word).ok();
        assert_eq!(read("a.example/fed"), Some(("a.example/fed".into(), true)));
        assert_eq!(read("fed=False"), Some(("fed".into(), false)));
        for wrong in ["Ready", "fed=maybe", "", "a b=True", "=True"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

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
