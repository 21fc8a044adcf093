//! Whether this host can run pods: item by item, measured where guessing would not do, each with its remedy. Bounded in
//! time: whatever could hang runs in a process that is killed.

mod items;
pub mod kvm_probe;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bundle::Bundle;
use crate::pod::roots::Roots;

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Pods run, with something less than they could have.
    Weak,
    /// Pods cannot run.
    Missing,
}

/// One thing that pods need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub name: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

/// What [`run`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing is missing.
    pub can_run_pods: bool,
    /// All items.
    pub items: Vec<Item>,
}

impl Item {
    fn good(name: &str, found: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            verdict: Verdict::Good,
            found: found.into(),
            remedy: String::new(),
        }
    }

    fn weak(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            verdict: Verdict::Weak,
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    fn missing(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            verdict: Verdict::Missing,
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

/// Looks at everything. Takes less than two seconds.
#[must_use]
pub fn run(roots: &Roots, bundle: &Bundle) -> Report {
    let mut items = vec![items::privileges(), items::kernel()];
    items.extend(items::kvm());
    items.push(items::tun());
    items.push(items::packet_filter());
    items.push(items::forwarding());
    items.push(items::overlay(roots));
    items.push(items::cgroup());
    items.extend(items::bundle(bundle));
    items.push(items::memory());
    items.push(items::disk(roots));
    Report {
        can_run_pods: items.iter().all(|item| item.verdict != Verdict::Missing),
        items,
    }
}

/// Output of `command`, which is killed after `limit`; `Ok(None)` when it was.
fn bounded_output(mut command: Command, limit: Duration) -> std::io::Result<Option<Output>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + limit;
    // The output of what is asked here fits a pipe, so that waiting before reading cannot block the child.
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_ends_in_two_seconds_and_names_each_missing_part() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots {
            run: dir.path().join("run"),
            state: dir.path().join("state"),
        };
        let bundle = Bundle {
            supervisor: "/nonexistent/vmpod-supervise".into(),
            vmm: dir.path().join("vmm"),
            vmlinux: dir.path().join("vmlinux"),
            initramfs: dir.path().join("initramfs"),
        };
        let started = Instant::now();
        let report = run(&roots, &bundle);
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(!report.can_run_pods);
        let parts: Vec<&Item> = report
            .items
            .iter()
            .filter(|item| item.name.starts_with("the "))
            .collect();
        assert_eq!(parts.len(), 4);
        assert!(
            parts
                .iter()
                .all(|item| item.verdict == Verdict::Missing && !item.remedy.is_empty())
        );
    }

    #[test]
    fn command_that_hangs_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let output = bounded_output(command, Duration::from_millis(50)).unwrap();
        assert!(output.is_none());
    }
}
