//! `cargo xtask test`: what decides whether a change may land. First what needs no pod (format,
//! lints, the repository's own rules, unit tests), then the end-to-end tests on a host that can run
//! pods. Every stage runs even when an earlier one failed, so that one run tells everything; the
//! closing line counts, and the exit status is 0 only when nothing failed.

mod end_to_end;
mod programs;
mod tally;

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::tally::Tally;
use crate::packages::{self, wanted};
use crate::process;
use crate::progress::{Step, seconds};
use crate::tidy;
use crate::workspace;

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only what needs no pod: format, lints, rules, unit tests
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// Build what the end-to-end tests run unoptimised: faster to build, slower to run
    #[arg(long, conflicts_with = "unit")]
    debug: bool,
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
        // Those that the unit tests left out are run now; should that fail to begin, they count as
        // skipped after all.
        let left_out = report.tests.take_skipped();
        let before = report.tests.seen();
        report.stage("end-to-end tests", |tally| {
            end_to_end::run(args.debug, filter, tally)
        });
        if report.tests.seen() == before {
            report.tests.put_back(left_out);
        }
    }
    let took = seconds(begun.elapsed());
    for reason in report.tests.skipped_reasons() {
        println!("skipped: {reason}");
    }
    for name in report.tests.unsteady() {
        println!("unsteady: {name} failed and then passed alone; both are told above");
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

/// Runs every test program here, without the tests that need a host for pods, and the examples in
/// the documentation.
fn unit_tests(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let mut broken = Vec::new();
    for program in programs::build()? {
        eprintln!("-- {}", program.title());
        let mut arguments = vec![program.executable.clone()];
        arguments.extend(filter.map(str::to_owned));
        let invocation = program.invocation(arguments, Vec::new());
        let status = counted(tally, &mut print, |lines| invocation.run_here(Some(lines)))?;
        broken.extend(status.map(|status| format!("{} ({status})", program.title())));
    }
    eprintln!("-- examples in the documentation");
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--doc", "--locked", "--quiet"]);
    command.arg("--target-dir").arg(workspace::target_dir());
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    let status = counted(tally, &mut print, |lines| run_lines(&mut command, lines))?;
    broken.extend(status.map(|status| format!("documentation ({status})")));
    no_result_is_an_error(&broken)
}

fn print(line: &str) {
    println!("{line}");
}

/// Shows, by `show`, and counts the lines of one test program. Returns its exit status when that says failure
/// and no test was counted as failed: the program itself broke.
fn counted(
    tally: &mut Tally,
    show: &mut dyn FnMut(&str),
    run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<u8>,
) -> Result<Option<u8>> {
    let before = tally.failed();
    let status = run(&mut |line| {
        show(line);
        tally.line(line);
    })?;
    Ok((status != 0 && tally.failed() == before).then_some(status))
}

fn run_lines(command: &mut Command, lines: &mut dyn FnMut(&str)) -> Result<u8> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    process::each_line(&mut child, lines);
    Ok(process::code(child.wait().context("waiting for cargo")?))
}

fn no_result_is_an_error(broken: &[String]) -> Result<()> {
    if !broken.is_empty() {
        bail!(
            "test programs that ended without a result (exit status): {}",
            broken.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_with_program_that_breaks_gives_its_status() {
        let mut tally = Tally::default();
        assert_eq!(
            counted(&mut tally, &mut |_| {}, |_| Ok(101)).unwrap(),
            Some(101)
        );
        let failing = counted(&mut tally, &mut |_| {}, |lines| {
            lines("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured");
            Ok(101)
        });
        assert_eq!(failing.unwrap(), None);
    }

    #[test]
    fn report_with_failed_stage_keeps_its_name_and_goes_on() {
        let mut report = Report::default();
        report.stage("one", |_| bail!("on purpose"));
        report.stage("two", |_| Ok(()));
        assert_eq!(report.failed_stages, ["one"]);
    }
}
