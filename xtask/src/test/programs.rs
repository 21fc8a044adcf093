//! The workspace's test programs: building them all in one go, and what cargo says about each. One
//! build serves the unit tests and the end-to-end tests, so that nothing is compiled twice.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{self, Invocation};
use crate::progress::Step;
use crate::workspace;

/// One built test program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    /// The package's folder, where cargo runs its tests.
    pub folder: PathBuf,
    /// The target's name: a library, a binary or a file of tests.
    pub name: String,
    pub executable: String,
}

impl Program {
    /// Folder and name for people.
    pub fn title(&self) -> String {
        let root = workspace::root();
        let folder = self.folder.strip_prefix(&root).unwrap_or(&self.folder);
        format!("{} ({})", folder.display(), self.name)
    }

    /// Its invocation the way cargo does it.
    pub fn invocation(
        &self,
        arguments: Vec<String>,
        mut environment: Vec<(String, String)>,
    ) -> Invocation {
        let folder = self.folder.to_string_lossy().into_owned();
        environment.push(("CARGO_MANIFEST_DIR".to_owned(), folder));
        Invocation {
            arguments,
            directory: self.folder.clone(),
            environment,
            terminal: false,
        }
    }

    /// Whether it has tests that need a host for pods, which are marked `#[ignore]`.
    ///
    /// # Errors
    /// When the program cannot be asked.
    pub fn has_ignored_tests(&self, filter: Option<&str>) -> Result<bool> {
        let mut command = std::process::Command::new(&self.executable);
        command
            .args(["--list", "--ignored", "--format", "terse"])
            .args(filter);
        Ok(process::output(&mut command)?
            .lines()
            .any(|line| line.ends_with(": test")))
    }
}

/// Builds every test program of the workspace.
///
/// # Errors
/// When one does not build; the compiler has then said why on standard error.
pub fn build() -> Result<Vec<Program>> {
    let step = Step::begin("building the test programs");
    let mut command = workspace::cargo();
    // Without a choice of targets cargo builds the examples too, as programs: tests start them.
    command.args(["test", "--workspace", "--no-run", "--locked"]);
    command.arg("--message-format=json-render-diagnostics");
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    command.arg("--target-dir").arg(workspace::target_dir());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child.stdout.take().context("cargo's output was piped")?;
    let programs = read(BufReader::new(output))?;
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("the tests do not build ({status}); see above");
    }
    step.done();
    Ok(programs)
}

/// One line of `--message-format=json`.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<String>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

fn read(messages: impl BufRead) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let line = line.context("reading cargo's messages")?;
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if let (Some(executable), Some(manifest), Some(target)) =
            (message.executable, message.manifest_path, message.target)
            && message.profile.is_some_and(|profile| profile.test)
        {
            let folder = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
            programs.push(Program {
                folder,
                name: target.name,
                executable,
            });
        }
    }
    programs.sort();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_with_plain_binary_names_the_tests_only() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/w/vmm/Cargo.toml","#,
            r#""target":{"name":"vmm"},"profile":{"test":false},"executable":"/t/vmm"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/vmm/Cargo.toml","#,
            r#""target":{"name":"boot"},"profile":{"test":true},"executable":"/t/boot-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let programs = read(messages.as_bytes()).unwrap();
        assert_eq!(programs.len(), 1);
        assert_eq!(programs[0].executable, "/t/boot-1");
        assert_eq!(programs[0].folder, Path::new("/w/vmm"));
    }
}
