//! `cargo xtask bench`: what vmpod costs, counted in instructions, in a node of its own that is there for the measuring
//! alone. This file owns the order of a run and its command line: build, start the counting node, measure in it
//! ([`inside`]), print ([`table`]), store and compare. What the rows are and what they should be is in [`rows`].

mod compare;
mod guard;
mod inside;
#[cfg(test)]
#[expect(
    dead_code,
    reason = "a program of its own; here its parts are tested and its `main` is not called"
)]
mod load;
mod result;
mod rows;
mod table;

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::guard::Guard;
use self::inside::{Line, Plan};
use self::result::{Failure, Findings};
use crate::bundle;
use crate::host::Host;
use crate::images;
use crate::node::{self, Place, Start};
use crate::packages::{self, wanted};
use crate::process::{self, Invocation};
use crate::progress::Step;
use crate::workspace;

/// How long the node may take to boot: one that counts is slower, and others may use the machine.
const NODE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only rows whose name contains this
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// Compare with the result of an earlier run, and name what moved by more than 1 %
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the result is stored; TARGET/bench/result.json unless given, partial.json there with a filter
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// How often each start is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Measure here, as the plan says: the part that runs in the node
    #[arg(long, hide = true, value_name = "PLAN")]
    inside: Option<String>,
    /// Stop this node when standard input ends: the part that outlives Ctrl-C
    #[arg(long, hide = true, value_name = "NODE")]
    guard: Option<String>,
}

/// Runs the subcommand. The exit status is 0 when everything could be measured, whatever was found.
///
/// # Errors
/// When something cannot be built or the node cannot be used.
pub fn run(args: &BenchArgs) -> Result<u8> {
    if let Some(plan) = &args.inside {
        return inside::run(plan);
    }
    if let Some(name) = &args.guard {
        return guard::run(name);
    }
    // What is wrong with the older result is said before minutes are spent.
    let before = args.against.as_deref().map(Findings::load).transpose()?;
    let found = measure(args)?;
    print!("{}", table::render(&found));
    let store = args.store.clone().unwrap_or_else(|| {
        let name = if args.filter.is_empty() {
            "result.json"
        } else {
            "partial.json"
        };
        workspace::target_dir().join("bench").join(name)
    });
    found.store(&store)?;
    println!("Stored in {}", store.display());
    if let Some(before) = before {
        let changes = compare::changes(&before, &found);
        if changes.is_empty() {
            println!("Nothing moved by more than 1 %.");
        }
        for change in changes {
            println!("moved: {change}");
        }
    }
    if found.rows.is_empty() && found.failures.is_empty() {
        bail!("no row's name contains {:?}", args.filter);
    }
    Ok(u8::from(!found.failures.is_empty()))
}

fn measure(args: &BenchArgs) -> Result<Findings> {
    let bundle = bundle::build(false)?;
    let load = compile_load()?;
    let containerd = compile_containerd_bench()?;
    let image = images::archive("busybox")?;
    packages::ensure(wanted::RUN)?;
    packages::ensure(wanted::BENCH)?;

    let place = Place::open(&format!("{}-count", node::own_place()?.name))?;
    let guard = Guard::start(&place)?;
    let measured = measure_in(&place, args, &bundle, [load, containerd], image);
    guard.end()?;
    let mut found = measured?;
    rows::derive(&mut found);
    Ok(found)
}

/// Starts the node and measures in it.
fn measure_in(
    place: &Place,
    args: &BenchArgs,
    bundle: &bundle::Bundle,
    [load, containerd]: [PathBuf; 2],
    image: PathBuf,
) -> Result<Findings> {
    let start = Start {
        count: true,
        timeout: NODE_LIMIT,
        ..Start::default()
    };
    node::up(place, &start)?;
    let plan = Plan {
        bundle: Host::Node(place.clone()).place_bundle(bundle)?,
        image,
        load,
        containerd,
        filter: args.filter.clone(),
        runs: usize::from(args.runs),
    };
    // The part that measures must not wait for its own code either, see `inside::nearby`.
    let program = env::current_exe().context("finding this program")?;
    let copy = "/run/vmpod-node/xtask";
    node::capture(place, &format!("cp '{}' {copy}", program.display()), 600)
        .context("copying the measuring program into the node")?;
    let invocation = Invocation {
        arguments: vec![
            copy.to_owned(),
            "bench".to_owned(),
            "--inside".to_owned(),
            serde_json::to_string(&plan).context("writing the plan")?,
        ],
        directory: workspace::root(),
        environment: Vec::new(),
        terminal: false,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut found = Findings::new(now.map_or(0, |since| since.as_secs()), bundle.stamp()?);
    let mut step: Option<Step> = None;
    let mut stray = None;
    let code = node::invoke(
        place,
        &invocation,
        Some(&mut |line| match serde_json::from_str(line) {
            Ok(Line::Doing(what)) => {
                if let Some(step) = step.take() {
                    step.done();
                }
                step = Some(Step::begin(format!("measuring {what}")));
            }
            Ok(Line::Row(row)) => found.rows.push(row),
            Ok(Line::Failure(failure)) => found.failures.push(failure),
            Err(_) => stray = Some(line.to_owned()),
        }),
    )?;
    if code != 0 {
        bail!("the measuring in the node ended with exit status {code}; its message is above");
    }
    if let Some(step) = step {
        step.done();
    }
    if let Some(line) = stray {
        bail!("the measuring in the node printed a line that is no result: {line:?}");
    }
    // A row that was asked for and neither came nor failed would be missed by nobody.
    let nameless = found.rows.iter().find(|row| row.samples.is_empty());
    if let Some(row) = nameless {
        let failure = Failure {
            rows: vec![row.name.clone()],
            error: "no sample was taken".to_owned(),
        };
        found.failures.push(failure);
        found.rows.retain(|row| !row.samples.is_empty());
    }
    Ok(found)
}

/// Builds the program that drives containerd; what it costs itself is counted, so it is built for speed.
fn compile_containerd_bench() -> Result<PathBuf> {
    let mut step = Step::begin("building containerd-bench");
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--locked", "--quiet"]);
    command.args(["--package", "vmpod-tests", "--example", "containerd-bench"]);
    command.arg("--target-dir").arg(workspace::target_dir());
    process::compile(&mut command, &mut step)?;
    step.done();
    Ok(workspace::target_dir().join("release/examples/containerd-bench"))
}

/// Compiles the program that works inside the pods: one file, static, so that it runs in any image.
fn compile_load() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let program = dir.join("load");
    let mut step = Step::begin("compiling the load program");
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command
        .current_dir(workspace::root())
        .args(["--edition", "2024", "-O", "-C", "panic=abort"])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args(["--crate-name", "load", "-o"])
        .arg(&program)
        .arg("xtask/src/bench/load.rs");
    process::compile(&mut command, &mut step)?;
    step.done();
    Ok(program)
}
