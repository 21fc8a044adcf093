//! A pod that is measured while it runs: started in the background, looked at, removed at the end whatever happened.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::ground::Ground;
use crate::process;

/// How long a pod may take to be running. In the node's own time, which passes as fast as it can compute.
const LIMIT: Duration = Duration::from_secs(120);

/// How long a command in a pod may take, also in the node's own time: work of that length is a pod that hangs.
const EXEC_SECONDS: u32 = 15;

/// A running pod.
#[derive(Debug)]
pub struct Pod<'a> {
    ground: &'a Ground,
    name: &'static str,
}

impl<'a> Pod<'a> {
    /// Starts the pod with this `spec` (indented by two) and waits until its container `c` runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(ground: &'a Ground, name: &'static str, spec: &str) -> Result<Self> {
        let manifest = ground.file(&format!("{name}.yaml"), &manifest(name, spec))?;
        let mut run = ground.vmpod(["run", "-d", "--quiet"]);
        process::output(run.arg(manifest))?;
        let pod = Self { ground, name };
        let begun = Instant::now();
        loop {
            let status = pod.inspect()?;
            match status.pointer("/status/phase").and_then(Value::as_str) {
                Some("Running") => return Ok(pod),
                Some("Pending") if begun.elapsed() < LIMIT => {}
                _ => bail!("the pod {name} is not running: {status}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `vmpod inspect` says.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn inspect(&self) -> Result<Value> {
        let text = process::output(&mut self.ground.vmpod(["inspect", self.name]))?;
        serde_json::from_str(&text).context("reading what `vmpod inspect` printed")
    }

    /// A number of `vmpod inspect`, by JSON pointer.
    ///
    /// # Errors
    /// When there is none.
    pub fn number(&self, pointer: &str) -> Result<u64> {
        let found = self.inspect()?;
        let number = found.pointer(pointer).and_then(Value::as_u64);
        number.with_context(|| format!("`vmpod inspect` has no number at {pointer}: {found}"))
    }

    /// Runs a command in the pod's container and returns what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        process::output(
            self.ground
                .bounded(EXEC_SECONDS, ["exec", self.name, "--"])
                .args(words),
        )
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        remove(self.ground, self.name);
    }
}

/// Removes a pod. One that resists is said and left to the node's end.
pub fn remove(ground: &Ground, name: &str) {
    if let Err(error) = process::output(&mut ground.vmpod(["rm", "-f", name])) {
        eprintln!("warning: {error:#}");
    }
}

/// The manifest of a pod.
pub fn manifest(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 1\n{spec}\n"
    )
}
