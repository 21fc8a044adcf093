//! The files of ConfigMaps and Secrets that a pod was started with (`--resource`): when one has changed, `vmpod update` brings
//! the pod's volumes up to date. Files are looked at, not watched: they may be replaced, be links, or lie on a network.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::Pod;
use crate::pod::journal::chain;
use crate::pod::status::bounded;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long an update may take.
const UPDATE_LIMIT: Duration = Duration::from_secs(60);

/// What tells one content of a file from another: device, inode, size and time of its last change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The files as they were when the volumes were last brought up to date.
pub(super) struct Resources {
    files: Vec<(PathBuf, Stamp)>,
    look: Interval,
    update: Option<JoinHandle<io::Result<Result<String, String>>>>,
}

impl Resources {
    /// The files of a pod.
    pub(super) fn new(pod: &Pod) -> Self {
        let files = pod.record.resources.iter();
        let mut look = interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            // They may have changed since the pod's plan was made: the first look brings the volumes up to date.
            files: files.map(|path| (path.clone(), None)).collect(),
            look,
            update: None,
        }
    }

    /// Waits for something to do; for ever, when the pod has no such files.
    pub(super) async fn wait(&mut self) {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        self.look.tick().await;
    }

    /// Looks, and does what follows.
    pub(super) async fn look(&mut self, pod: &mut Pod) {
        if let Some(update) = self.update.take_if(|update| update.is_finished()) {
            match update.await.map_err(io::Error::other) {
                Ok(Ok(Ok(names))) if names.trim().is_empty() => {}
                Ok(Ok(Ok(names))) => {
                    let names = names.split_whitespace().collect::<Vec<_>>().join(", ");
                    pod.event("VolumesUpdated", "", &bounded(&names));
                }
                Ok(Ok(Err(words))) => pod.event("FailedUpdate", "", &bounded(words.trim())),
                Ok(Err(error)) | Err(error) => pod.event("FailedUpdate", "", &chain(&error)),
            }
        }
        if self.update.is_some() {
            return;
        }
        let mut changed = false;
        for (path, before) in &mut self.files {
            let now = stamp(path);
            changed |= now != *before;
            *before = now;
        }
        if changed {
            self.update = Some(tokio::spawn(update(pod.update_command())));
        }
    }
}

impl Pod {
    fn update_command(&self) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?.with_file_name("vmpod"));
        command
            .arg("--root")
            .arg(&self.roots.run)
            .arg("--state")
            .arg(&self.roots.state)
            .arg("update")
            .arg(&self.record.id)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

/// What `vmpod update` says: on its standard output when it succeeds, on its standard error when it does not.
async fn update(command: io::Result<Command>) -> io::Result<Result<String, String>> {
    let output = timeout(UPDATE_LIMIT, command?.output())
        .await
        .map_err(|_| io::Error::other("`vmpod update` takes too long"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    })
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_of_a_file_that_is_replaced_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(stamp(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = stamp(&path);
        assert!(first.is_some());
        assert_eq!(stamp(&path), first);
        let other = dir.path().join("g");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(stamp(&path), first);
    }
}
