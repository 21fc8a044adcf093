//! Where the measured pods live: directories of their own in the node's memory, with the image and the load program in
//! them. The scratch disk is not used: an emulated disk's answers come in real time, which a node that counts
//! instructions turns into waiting of any length.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Plan, nearby};
use crate::process;

/// KVM's own count of all exits of all machines that run now (debugfs).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";

/// The ground that everything is measured on.
#[derive(Debug)]
pub struct Ground {
    pub plan: Plan,
    /// Where this run keeps its files.
    pub dir: PathBuf,
}

impl Ground {
    /// Makes the directories and imports the image.
    ///
    /// # Errors
    /// When something cannot be made or imported.
    pub fn prepare(plan: Plan) -> Result<Self> {
        let dir = PathBuf::from("/run/vmpod-bench");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        // hostPath volumes: the load program, and the one that is measured.
        for part in ["load", "host"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let ground = Self { plan, dir };
        nearby::bring(&[ground.plan.bundle.join("bin/vmpod")])?;
        let load = ground.load();
        fs::copy(&ground.plan.load, &load)
            .with_context(|| format!("copying the load program to {}", load.display()))?;
        let mut import = ground.vmpod(["image", "import", "--quiet"]);
        process::output(import.arg(&ground.plan.image))?;
        Ok(ground)
    }

    /// The load program, on the host.
    pub fn load(&self) -> PathBuf {
        self.dir.join("load/load")
    }

    /// `vmpod` with these words, no input, on this ground.
    pub fn vmpod<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        self.words(Command::new(self.plan.bundle.join("bin/vmpod")), words)
    }

    /// The same, ended after so many seconds of the node's time.
    pub fn bounded<S: AsRef<OsStr>>(
        &self,
        seconds: u32,
        words: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(seconds.to_string())
            .arg(self.plan.bundle.join("bin/vmpod"));
        self.words(command, words)
    }

    fn words<S: AsRef<OsStr>>(
        &self,
        mut command: Command,
        words: impl IntoIterator<Item = S>,
    ) -> Command {
        command
            .arg("--root")
            .arg(self.dir.join("run"))
            .arg("--state")
            .arg(self.dir.join("state"))
            .args(words)
            .env("PATH", nearby::PATH)
            .stdin(Stdio::null());
        command
    }

    /// Writes `text` to a file of that name and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Exits of all machines that run, since their start.
///
/// # Errors
/// When debugfs is not mounted or KVM is not loaded.
pub fn exits() -> Result<u64> {
    fs::read_to_string(EXITS)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(text.trim().parse()?))
        .with_context(|| format!("reading KVM's count of exits from {EXITS}"))
}

/// What `load` has printed: the nanoseconds and the count of the figure `name`.
///
/// # Errors
/// When it has not printed that figure.
pub fn figure(output: &str, name: &str) -> Result<(f64, f64)> {
    output
        .lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            let (first, nanoseconds, count) = (words.next()?, words.next()?, words.next()?);
            (first == name).then_some(())?;
            Some((nanoseconds.parse().ok()?, count.parse().ok()?))
        })
        .with_context(|| format!("the load program did not print {name}; it printed {output:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_among_others_is_found_by_its_whole_name() {
        let output = "write 10 20\nread 30 40\n";
        assert_eq!(figure(output, "read").unwrap(), (30.0, 40.0));
        let error = figure(output, "rea").unwrap_err().to_string();
        assert!(error.contains("did not print rea"), "{error}");
    }
}
