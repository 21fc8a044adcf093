//! A container of the CRI, and what can be done to it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1;
use tonic::Status;

use super::{Sandbox, cri};
use crate::eventually;
use crate::streaming::Attached;

/// A container; it goes with its sandbox.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its id.
    pub id: String,
    pub(super) log: PathBuf,
    pub(super) _sandbox: &'a Sandbox,
}

/// How an exec went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Container<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn start(&self) -> Result<(), Status> {
        let request = v1::StartContainerRequest {
            container_id: self.id.clone(),
        };
        cri()
            .call(|mut client| async move { client.start_container(request).await })
            .map(drop)
    }

    /// Stops it, with `grace` seconds.
    ///
    /// # Panics
    /// When the CRI refuses.
    pub fn stop(&self, grace: i64) {
        let request = v1::StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace,
        };
        cri()
            .call(|mut client| async move { client.stop_container(request).await })
            .expect("stop a container");
    }

    /// Removes it.
    ///
    /// # Panics
    /// When the CRI refuses.
    pub fn remove(&self) {
        let request = v1::RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        cri()
            .call(|mut client| async move { client.remove_container(request).await })
            .expect("remove a container");
    }

    /// Its status.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn status(&self) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        cri()
            .call(|mut client| async move { client.container_status(request).await })
            .expect("the status of a container")
            .status
            .expect("a status")
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_end(&self) -> v1::ContainerStatus {
        eventually("the end of a container", || {
            let status = self.status();
            (status.state() == v1::ContainerState::ContainerExited).then_some(status)
        })
    }

    /// Where its log is.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What its log has: one line each, with the time left out: `stdout F text`.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(_, rest)| format!("{rest}\n"))
            .collect()
    }

    /// Its log, as soon as `text` is in it.
    ///
    /// # Panics
    /// When that does not come.
    pub fn await_log(&self, text: &str) -> String {
        eventually(&format!("{text:?} in a log"), || {
            let log = self.log();
            log.contains(text).then_some(log)
        })
    }

    /// Runs a command in it to its end.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn exec(&self, words: &[&str], limit: i64) -> Result<Ran, Status> {
        let request = v1::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            timeout: limit,
        };
        let answer = cri().call(|mut client| async move { client.exec_sync(request).await })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran {
            code: answer.exit_code,
            out: text(answer.stdout),
            err: text(answer.stderr),
        })
    }

    /// Runs a shell line in it and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn sh(&self, line: &str) -> String {
        let ran = self
            .exec(&["sh", "-c", line], 60)
            .unwrap_or_else(|status| panic!("{line}: {}", status.message()));
        assert_eq!(ran.code, 0, "{line}: {ran:?}");
        ran.out
    }

    /// Runs a command in it with its streams connected, as `kubectl exec` does.
    ///
    /// # Panics
    /// When the CRI refuses.
    #[must_use]
    pub fn exec_streaming(&self, words: &[&str], terminal: bool) -> Attached {
        let request = v1::ExecRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            tty: terminal,
            stdin: true,
            stdout: true,
            stderr: !terminal,
        };
        let answer = cri()
            .call(|mut client| async move { client.exec(request).await })
            .expect("execute with streams");
        Attached::connect(&answer.url)
    }

    /// Connects to its streams, as `kubectl attach` does.
    ///
    /// # Panics
    /// When the CRI refuses.
    #[must_use]
    pub fn attach(&self, terminal: bool) -> Attached {
        let request = v1::AttachRequest {
            container_id: self.id.clone(),
            stdin: true,
            tty: terminal,
            stdout: true,
            stderr: !terminal,
        };
        let answer = cri()
            .call(|mut client| async move { client.attach(request).await })
            .expect("attach");
        Attached::connect(&answer.url)
    }

    /// Its counters.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    pub fn stats(&self) -> v1::ContainerStats {
        let request = v1::ContainerStatsRequest {
            container_id: self.id.clone(),
        };
        cri()
            .call(|mut client| async move { client.container_stats(request).await })
            .expect("the counters of a container")
            .stats
            .expect("counters")
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn update(&self, resources: v1::LinuxContainerResources) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            annotations: HashMap::new(),
            ..Default::default()
        };
        cri()
            .call(|mut client| async move { client.update_container_resources(request).await })
            .map(drop)
    }

    /// Has its log opened anew, after somebody moved it away; returns where it is.
    ///
    /// # Panics
    /// When the CRI refuses.
    #[must_use]
    pub fn reopen_log(&self) -> PathBuf {
        let moved = self.log.with_extension("old");
        std::fs::rename(&self.log, &moved).expect("move a log");
        let request = v1::ReopenContainerLogRequest {
            container_id: self.id.clone(),
        };
        cri()
            .call(|mut client| async move { client.reopen_container_log(request).await })
            .expect("reopen a log");
        moved
    }
}
