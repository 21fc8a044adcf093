//! A pod of a test: its manifest, its start, and its removal whatever the test does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Outcome, eventually, vmpod};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A pod with a name of its own, in a directory of its own.
#[derive(Debug)]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// Directory for host paths of the test.
    pub directory: TempDir,
    manifest: PathBuf,
}

impl Pod {
    /// A pod from the lines of `spec`, indented by two. `DIR` in them becomes the test's directory.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn new(spec: &str) -> Self {
        let name = format!(
            "t{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let header = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n");
        Self::of_text(name, &format!("{header}{}\n", spec.trim_matches('\n')))
    }

    /// A pod whose one container `c` sleeps, running.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn idle() -> Self {
        let pod = Self::new(
            "
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sleep, '1000'], resources: {limits: {memory: 64Mi}}}]",
        );
        pod.start();
        pod.await_phase("Running");
        pod
    }

    /// A pod from a whole manifest whose `metadata.name` is `name`.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn of_text(name: impl Into<String>, text: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("vmpod-test-")
            .tempdir_in("/tmp")
            .expect("make a directory for the test");
        let path = directory.path().to_string_lossy().into_owned();
        let manifest = directory.path().join("pod.yaml");
        let mut file = std::fs::File::create(&manifest).expect("create the manifest");
        file.write_all(text.replace("DIR", &path).as_bytes())
            .expect("write the manifest");
        Self {
            name: name.into(),
            directory,
            manifest,
        }
    }

    /// The manifest's file.
    #[must_use]
    pub fn manifest(&self) -> &Path {
        &self.manifest
    }

    /// Runs it in the foreground to its end.
    #[must_use]
    pub fn run(&self) -> Outcome {
        vmpod(["run", "--rm"]).arg(&self.manifest).run()
    }

    /// Starts it in the background.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(&self) -> &Self {
        vmpod(["run", "-d"]).arg(&self.manifest).ok();
        self
    }

    /// Runs a command in a container.
    #[must_use]
    pub fn exec(&self, container: &str, command: &[&str]) -> Outcome {
        vmpod(["exec", "-c", container, &self.name, "--"])
            .args(command)
            .run()
    }

    /// Runs a shell line in a container and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn sh(&self, container: &str, line: &str) -> String {
        let outcome = self.exec(container, &["sh", "-c", line]);
        assert_eq!(outcome.code, 0, "{outcome}");
        outcome.out
    }

    /// What `inspect` says, as JSON.
    ///
    /// # Panics
    /// When it says no JSON.
    #[must_use]
    pub fn inspect(&self) -> Value {
        let text = vmpod(["inspect", &self.name]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The container's status of that name in `inspect`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn container(&self, name: &str) -> Value {
        let pod = self.inspect();
        ["containerStatuses", "initContainerStatuses"]
            .iter()
            .flat_map(|list| pod["status"][list].as_array().cloned().unwrap_or_default())
            .find(|c| c["name"] == name)
            .unwrap_or_else(|| panic!("no container {name} in {pod:#}"))
    }

    /// Waits for a phase.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_phase(&self, phase: &str) -> Value {
        eventually(&format!("pod {} in phase {phase}", self.name), || {
            let pod = self.inspect();
            (pod["status"]["phase"] == phase).then_some(pod)
        })
    }

    /// Its events so far, in order, each as `KIND container: message`, with the moment in nanoseconds.
    ///
    /// # Panics
    /// When `vmpod events` says no JSON.
    #[must_use]
    pub fn events(&self) -> Vec<(i64, String)> {
        let lines = vmpod(["events", "--output", "json", &self.name]).ok();
        let event = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            let at = event["at_ns"].as_i64().expect("a moment");
            let words = format!(
                "{} {}: {}",
                text("kind"),
                text("container"),
                text("message")
            );
            (at, words)
        };
        lines.lines().map(event).collect()
    }

    /// Waits for an event whose words begin so, and returns its moment and words.
    ///
    /// # Panics
    /// When it does not come.
    pub fn await_event(&self, beginning: &str) -> (i64, String) {
        eventually(&format!("event {beginning:?} of pod {}", self.name), || {
            self.events()
                .into_iter()
                .find(|(_, words)| words.starts_with(beginning))
        })
    }

    /// Moments of the first events whose words begin so, which must be in this order.
    ///
    /// # Panics
    /// When one is missing or they came in another order.
    pub fn assert_order(&self, beginnings: &[&str]) -> Vec<i64> {
        let events = self.events();
        let list = || {
            let words: Vec<_> = events.iter().map(|(at, w)| format!("{at} {w}")).collect();
            words.join("\n")
        };
        let moments: Vec<i64> = beginnings
            .iter()
            .map(|beginning| {
                events
                    .iter()
                    .find(|(_, words)| words.starts_with(beginning))
                    .unwrap_or_else(|| panic!("no event {beginning:?} in\n{}", list()))
                    .0
            })
            .collect();
        assert!(
            moments.is_sorted(),
            "{beginnings:?} is not the order of\n{}",
            list()
        );
        moments
    }

    /// A container's log.
    #[must_use]
    pub fn logs(&self, container: &str) -> String {
        vmpod(["logs", "-c", container, &self.name]).ok()
    }
}

impl Pod {
    /// Writes what is known of the pod to the test's output, for whoever has to find out why a test failed.
    fn tell(&self) {
        for arguments in [["inspect", &self.name], ["events", &self.name]] {
            println!("{}", vmpod(arguments).run());
        }
        // Of all pods that are left: the id is not known when `inspect` has failed.
        for pod in std::fs::read_dir("/run/vmpod/pods").into_iter().flatten() {
            let Ok(pod) = pod else { continue };
            for file in ["supervisor.log", "vmm.log", "machine/console.log"] {
                let file = pod.path().join(file);
                let text = std::fs::read(&file).unwrap_or_default();
                let tail = &text[text.len().saturating_sub(4096)..];
                println!("{file:?}:\n{}", String::from_utf8_lossy(tail));
            }
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.tell()));
        }
        // Also after a failed assertion: the next test wants a clean host.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            vmpod(["rm", "-f", &self.name]).run()
        }));
    }
}
