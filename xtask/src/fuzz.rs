//! `cargo xtask fuzz`: builds the programs in `tests/fuzz` with coverage counters and gives each some time. What it finds
//! stays as a file that `--input` plays again. Nothing here knows what a program does.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process;
use crate::progress::Step;
use crate::workspace;

/// Coverage as libFuzzer wants it: a counter for each branch, its place, and what is compared with what. All of it is
/// in the stable compiler.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Set for the compilers of a fuzz build, which are this very program.
const WRAPPER: &str = "VMPOD_FUZZ_COMPILER";

/// Seconds that one input may take, and MiB that the program may.
const INPUT_SECONDS: u32 = 10;
const MEMORY_MIB: u32 = 2048;

#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Only targets whose name contains this
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Give the target this one input and nothing else
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Runs the subcommand.
///
/// # Errors
/// When a program does not build, or found something; the message names the files.
pub fn run(args: &FuzzArgs) -> Result<u8> {
    let source = workspace::root().join("tests/fuzz");
    let names = targets(&source.join("targets"), &args.filter)?;
    if args.input.is_some() && names.len() != 1 {
        bail!(
            "an input belongs to one target; these match: {}",
            names.join(", ")
        );
    }
    build(&source, &names)?;
    let home = workspace::target_dir().join("fuzz");
    let mut found = Vec::new();
    for name in &names {
        eprintln!("-- {name}");
        let findings = home.join("findings").join(name);
        let corpus = home.join("corpus").join(name);
        for directory in [&findings, &corpus] {
            fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        let program = workspace::target_dir().join("debug").join(name);
        let mut command = Command::new(&program);
        command
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .stdin(Stdio::null());
        match &args.input {
            Some(input) => {
                command.arg(input);
            }
            None => {
                command
                    .arg(format!("-max_total_time={}", args.seconds))
                    .args(["-max_len=4096", "-print_final_stats=1", "-verbosity=0"])
                    .arg(&corpus);
                // Read and not written to: what is found goes to the directory named first.
                let seeds = source.join("seeds").join(name);
                command.args(seeds.is_dir().then_some(seeds));
            }
        }
        let status = command
            .status()
            .with_context(|| format!("starting {}", program.display()))?;
        if !status.success() {
            found.push(format!(
                "{name} ({status}): see above and {}",
                findings.display()
            ));
        }
    }
    if !found.is_empty() {
        bail!("something was found:\n{}", found.join("\n"));
    }
    Ok(0)
}

/// Names of the targets, which are their files' names.
fn targets(directory: &Path, filter: &str) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            (path.extension()? == "rs").then_some(())?;
            Some(path.file_stem()?.to_str()?.to_owned())
        })
        .filter(|name| name.contains(filter))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("no target in {} contains {filter:?}", directory.display());
    }
    Ok(names)
}

fn build(source: &Path, names: &[String]) -> Result<()> {
    let mut step = Step::begin("building the fuzz targets");
    let mut command = workspace::cargo();
    // What is not vmpod's own is that of every other build: only the crates that the flags are for are built anew.
    command
        .current_dir(source)
        // Not `--locked`: a change of the workspace's own dependencies is followed here without being asked for.
        .args(["build", "--target-dir"])
        .arg(workspace::target_dir())
        .env(
            "RUSTC_WRAPPER",
            env::current_exe().context("finding this program")?,
        )
        .env(WRAPPER, "1");
    for name in names {
        command.args(["--bin", name]);
    }
    process::compile(&mut command, &mut step)?;
    step.done();
    Ok(())
}

/// When cargo runs this program in the compiler's place: becomes the compiler, with counters for the crates that are
/// fuzzed. Returns only when that is not so, or the compiler cannot be started.
#[must_use]
pub fn compile_instead() -> Option<ExitCode> {
    env::var_os(WRAPPER)?;
    let mut arguments = env::args_os().skip(1);
    let mut command = Command::new(arguments.next()?);
    let arguments: Vec<OsString> = arguments.collect();
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    if is_fuzzed(&words) {
        command.args(FLAGS);
    }
    let error = command.args(&arguments).exec();
    eprintln!("error: starting the compiler: {error}");
    Some(ExitCode::FAILURE)
}

/// Whether a compiler with these arguments builds what is fuzzed, or the programs that do it.
fn is_fuzzed(arguments: &[&str]) -> bool {
    arguments.windows(2).any(|pair| match pair {
        ["--cfg", value] => *value == "feature=\"fuzzing\"",
        ["--crate-name", name] => *name == "vmpod_fuzz",
        _ => false,
    }) || arguments
        .iter()
        .any(|argument| argument.starts_with("targets/") && argument.ends_with(".rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_the_repository_are_those_of_its_manifest() {
        let source = workspace::root().join("tests/fuzz");
        let manifest = fs::read_to_string(source.join("Cargo.toml")).unwrap();
        let mut named: Vec<String> = manifest
            .lines()
            .filter_map(|line| {
                line.strip_prefix("path = \"targets/")?
                    .strip_suffix(".rs\"")
            })
            .map(str::to_owned)
            .collect();
        named.sort();
        assert_eq!(targets(&source.join("targets"), "").unwrap(), named);
        assert!(targets(&source.join("targets"), "no such").is_err());
    }

    #[test]
    fn compiler_counts_in_what_is_fuzzed_and_nowhere_else() {
        for counted in [
            &["--crate-name", "vmpod_vmm", "--cfg", "feature=\"fuzzing\""][..],
            &["--crate-name", "vmpod_fuzz", "src/lib.rs"],
            &["--crate-name", "files", "targets/files.rs"],
        ] {
            assert!(is_fuzzed(counted), "{counted:?}");
        }
        for plain in [
            &["--crate-name", "vmpod_vmm", "vmm/src/lib.rs"][..],
            &["--crate-name", "serde", "--cfg", "feature=\"derive\""],
            &["-vV"],
        ] {
            assert!(!is_fuzzed(plain), "{plain:?}");
        }
    }
}
