//! `cargo xtask test`: what decides whether a change may land. First what needs no pod (format,
//! lints, the repository's own rules, unit tests), then the end-to-end tests on a host that can run
//! pods. Every stage runs even when an earlier one failed, so that one run tells everything; the
//! closing line counts, and the exit status is 0 only when nothing failed.

mod tally;

use std::io::{BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use self::tally::Tally;
use crate::bundle;
use crate::host::Host;
use crate::packages::{self, wanted};
use crate::process::{self, Invocation};
use crate::progress::{Step, seconds};
use crate::tidy;
use crate::workspace;

/// The package that holds the end-to-end tests.
const END_TO_END: &str = "vmpod-tests";

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only what needs no pod: format, lints, rules, unit tests
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// Only tests whose name contains this; format, lints and rules are left out then
    filter: Option<String>,
}

/// What all stages together found.
#[derive(Debug, Default)]
struct Report {
    tests: Tally,
    failed_stages: Vec<String>,
}

impl Report {
    /// Runs one stage, saying so, and notes whether it failed.
    fn stage(&mut self, name: &str, work: impl FnOnce(&mut Tally) -> Result<()>) {
        eprintln!("== {name}");
        let begun = Instant::now();
        let outcome = work(&mut self.tests);
        let took = seconds(begun.elapsed());
        match outcome {
            Ok(()) => eprintln!("== {name}: passed in {took}"),
            Err(error) => {
                eprintln!("error: {error:#}\n== {name}: FAILED after {took}");
                self.failed_stages.push(name.to_owned());
            }
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// None that a stage does not report itself; the exit status says whether one failed.
pub fn run(args: &TestArgs) -> Result<u8> {
    let begun = Instant::now();
    let mut report = Report::default();
    let filter = args.filter.as_deref();
    packages::ensure(wanted::TEST)?;
    if !args.e2e {
        if filter.is_none() {
            report.stage("format", |_| format_check());
            report.stage("lints", |_| lints());
            report.stage("rules of the repository", |_| tidy::check());
        }
        report.stage("unit tests", |tally| unit_tests(filter, tally));
    }
    if !args.unit {
        report.stage("end-to-end tests", |tally| end_to_end_tests(filter, tally));
    }
    let took = seconds(begun.elapsed());
    for reason in report.tests.skipped_reasons() {
        println!("skipped: {reason}");
    }
    for name in report.tests.failures() {
        println!("failed: {name}");
    }
    if !report.failed_stages.is_empty() {
        println!("failed stages: {}", report.failed_stages.join(", "));
    }
    println!("{} in {took}", report.tests);
    Ok(u8::from(
        !report.failed_stages.is_empty() || report.tests.failed() > 0,
    ))
}

fn format_check() -> Result<()> {
    let mut step = Step::begin("cargo fmt --all --check");
    process::compile(
        workspace::cargo().args(["fmt", "--all", "--check"]),
        &mut step,
    )?;
    step.done();
    Ok(())
}

fn lints() -> Result<()> {
    let mut step = Step::begin("cargo clippy --workspace --all-targets");
    let mut command = workspace::cargo();
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
    ]);
    command.arg("--target-dir").arg(workspace::target_dir());
    command.args(["--", "-D", "warnings"]);
    process::compile(&mut command, &mut step)?;
    step.done();
    Ok(())
}

fn unit_tests(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let mut everything = workspace::cargo();
    everything.args([
        "test",
        "--workspace",
        "--exclude",
        END_TO_END,
        "--no-fail-fast",
    ]);
    let mut framework = workspace::cargo();
    framework.args(["test", "--package", END_TO_END, "--lib"]);
    for command in [&mut everything, &mut framework] {
        command
            .arg("--locked")
            .arg("--target-dir")
            .arg(workspace::target_dir());
        if let Some(filter) = filter {
            command.args(["--", filter]);
        }
        let before = tally.failed();
        let status = run_tests(command, tally)?;
        if status != 0 && tally.failed() == before {
            bail!("the tests did not build or run (exit status {status}); see above");
        }
    }
    Ok(())
}

/// Runs a cargo command, showing its lines as they come and counting what they report.
fn run_tests(command: &mut Command, tally: &mut Tally) -> Result<u8> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    process::each_line(&mut child, &mut |line| {
        println!("{line}");
        tally.line(line);
    });
    Ok(process::code(child.wait().context("waiting for cargo")?))
}

/// One line of `cargo test --message-format=json`.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<String>,
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The built end-to-end test programs: name and path.
fn build_end_to_end_tests() -> Result<Vec<(String, String)>> {
    let step = Step::begin("building the end-to-end tests");
    let mut command = workspace::cargo();
    command.args([
        "test",
        "--package",
        END_TO_END,
        "--tests",
        "--no-run",
        "--locked",
    ]);
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
    let programs = test_programs(BufReader::new(output))?;
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("the end-to-end tests do not build ({status}); see above");
    }
    step.done();
    Ok(programs)
}

fn test_programs(messages: impl std::io::BufRead) -> Result<Vec<(String, String)>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let line = line.context("reading cargo's messages")?;
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if let (Some(path), Some(target)) = (message.executable, message.target)
            && target.kind.iter().any(|kind| kind == "test")
        {
            programs.push((target.name, path));
        }
    }
    programs.sort();
    Ok(programs)
}

fn end_to_end_tests(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let programs = build_end_to_end_tests()?;
    if programs.is_empty() {
        bail!("package {END_TO_END} has no end-to-end tests");
    }
    let bundle = bundle::build(false)?;
    let host = Host::ready()?;
    let place = host.place_bundle(&bundle)?;
    let mut broken = Vec::new();
    for (name, path) in programs {
        eprintln!("-- {name}");
        let mut arguments = vec![path];
        arguments.extend(["--include-ignored", "--test-threads=1"].map(str::to_owned));
        arguments.extend(filter.map(str::to_owned));
        let invocation = Invocation {
            arguments,
            directory: workspace::root().join("tests"),
            environment: vec![
                (
                    "VMPOD_BIN".to_owned(),
                    place.join("bin/vmpod").to_string_lossy().into_owned(),
                ),
                (
                    "VMPOD_ROOT".to_owned(),
                    workspace::root().to_string_lossy().into_owned(),
                ),
            ],
            terminal: false,
        };
        let before = tally.failed();
        let status = host.run(
            &invocation,
            Some(&mut |line| {
                println!("{line}");
                tally.line(line);
            }),
        )?;
        if status != 0 && tally.failed() == before {
            broken.push(format!("{name} (exit status {status})"));
        }
    }
    if !broken.is_empty() {
        bail!(
            "test programs that did not come to a result: {}",
            broken.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_with_library_and_test_names_the_test_only() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"lib","kind":["lib"]},"executable":"/l"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"run","kind":["test"]},"executable":"/t"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let programs = test_programs(messages.as_bytes()).unwrap();
        assert_eq!(programs, [("run".to_owned(), "/t".to_owned())]);
    }

    #[test]
    fn report_with_failed_stage_keeps_its_name_and_goes_on() {
        let mut report = Report::default();
        report.stage("one", |_| bail!("on purpose"));
        report.stage("two", |_| Ok(()));
        assert_eq!(report.failed_stages, ["one"]);
    }
}
