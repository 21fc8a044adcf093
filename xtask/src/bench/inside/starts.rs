//! Whole starts as a person sees them: a pod's and a container's first output, and a command in a running pod.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::ground::{Ground, exits};
use super::nearby;
use super::pod::{self, Pod};
use crate::bench::result::{MEGA_INSTRUCTIONS, Row};
use crate::bench::rows;
use crate::process;

/// The command whose first output is waited for, in pod and container alike.
const COMMAND: [&str; 3] = ["sh", "-c", "echo ready; exec sleep 1000"];

const POD: &str = "bench-start";

/// `vmpod run` of a pod whose machine is booted.
pub fn cold(ground: &Ground) -> Result<Vec<Row>> {
    let rows = [rows::START_COLD, rows::START_COLD_BOOT];
    pods(ground, rows, &["--no-template"], "booted")
}

/// The same where the machine goes on from a template, which the first pod leaves.
pub fn restored(ground: &Ground) -> Result<Vec<Row>> {
    let rows = [rows::START_TEMPLATE, rows::START_TEMPLATE_BOOT];
    pods(ground, rows, &[], "restored")
}

/// Starts pods of one container whose machines begin as `beginning` says, and measures the whole start and the machine's
/// part of it.
fn pods(ground: &Ground, names: [&str; 2], flags: &[&str], beginning: &str) -> Result<Vec<Row>> {
    let command = serde_json::to_string(&COMMAND).context("writing a command")?;
    let spec = format!("  containers: [{{name: c, image: busybox, command: {command}}}]");
    let manifest = ground.file("start.yaml", &pod::manifest(POD, &spec))?;
    let [mut whole, mut boot] = names.map(|name| Row::new(name, MEGA_INSTRUCTIONS, Vec::new()));
    for run in 0..=ground.plan.runs {
        let mut command = ground.vmpod(["run", "--quiet"]);
        let sample = first_output(command.args(flags).arg(&manifest), || exits().map(Some))
            .context("running a pod")
            .and_then(|sample| {
                let text = process::output(&mut ground.vmpod(["inspect", POD]))?;
                let found: Value = serde_json::from_str(&text).context("reading `inspect`")?;
                Ok((sample, found))
            });
        pod::remove(ground, POD);
        let (mut sample, found) = sample?;
        sample.child.wait().context("waiting for `vmpod run`")?;
        // The first run fills the page cache with programs, kernel and image, and leaves the template.
        if run == 0 {
            continue;
        }
        let began = found.pointer("/vmpod/guest/start").and_then(Value::as_str);
        if !began.is_some_and(|how| how.starts_with(beginning)) {
            bail!("the pod's machine was to be {beginning}, and `vmpod inspect` says {began:?}");
        }
        let nanoseconds = found
            .pointer("/vmpod/bootNanoseconds")
            .and_then(Value::as_f64)
            .context("`vmpod inspect` does not say how long the machine's start took")?;
        whole.samples.push(sample.took.as_secs_f64() * 1e3);
        whole.exits.extend(sample.exits);
        boot.samples.push(nanoseconds / 1e6);
    }
    Ok(vec![whole, boot])
}

/// `runc run` of the same command in the same root file system.
pub fn runc(ground: &Ground) -> Result<Vec<Row>> {
    let bundle = Bundle::make(ground)?;
    let mut first = Row::new(rows::START_RUNC, MEGA_INSTRUCTIONS, Vec::new());
    bundle.write(&COMMAND)?;
    for run in 0..=ground.plan.runs {
        let sample = first_output(&mut bundle.run(), || Ok(None)).context("running runc");
        let deleted = process::output(bundle.runc().args(["delete", "-f", "bench"]));
        let mut sample = sample?;
        deleted?;
        sample.child.wait().context("waiting for `runc run`")?;
        if run > 0 {
            first.samples.push(sample.took.as_secs_f64() * 1e3);
        }
    }
    let mut whole = Row::new(rows::RUNC_TRUE, MEGA_INSTRUCTIONS, Vec::new());
    bundle.write(&["true"])?;
    for run in 0..=ground.plan.runs {
        let took = to_exit(&mut bundle.run())?;
        if run > 0 {
            whole.samples.push(took.as_secs_f64() * 1e3);
        }
    }
    Ok(vec![first, whole])
}

/// `vmpod exec POD true` in a pod that runs.
pub fn exec(ground: &Ground) -> Result<Vec<Row>> {
    let pod = Pod::start(ground, "bench-exec", &idle())?;
    let mut row = Row::new(rows::EXEC, MEGA_INSTRUCTIONS, Vec::new());
    for run in 0..=ground.plan.runs {
        let before = exits()?;
        let took = to_exit(&mut ground.vmpod(["exec", "bench-exec", "--", "true"]))?;
        if run > 0 {
            row.samples.push(took.as_secs_f64() * 1e3);
            row.exits.push(exits()?.saturating_sub(before));
        }
    }
    drop(pod);
    Ok(vec![row])
}

/// The containers of a pod that does nothing.
pub fn idle() -> String {
    "  containers: [{name: c, image: busybox, command: [sleep, '100000'], \
     resources: {limits: {memory: 64Mi}}}]"
        .to_owned()
}

/// The start of a program to its first output byte.
struct Sample {
    took: Duration,
    exits: Option<u64>,
    child: Child,
}

/// Starts `command` and waits for its first byte of output; then counts.
fn first_output(
    command: &mut Command,
    count: impl FnOnce() -> Result<Option<u64>>,
) -> Result<Sample> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut output = child.stdout.take().context("no output to read")?;
    let read = output.read(&mut [0]);
    let took = begun.elapsed();
    let exits = count();
    let errors = child.stderr.take();
    if !read.is_ok_and(|bytes| bytes == 1) {
        let mut text = String::new();
        if let Some(mut errors) = errors {
            let _ = errors.read_to_string(&mut text);
        }
        let _ = child.kill();
        let status = child.wait().context("waiting for a program")?;
        let text = text.trim();
        bail!("{command:?} ended with {status} before its first output: {text}");
    }
    // Nobody reads more of it, and it must not stop for that.
    for mut rest in [
        Some(Box::new(output) as Box<dyn Read + Send>),
        errors.map(|e| Box::new(e) as _),
    ]
    .into_iter()
    .flatten()
    {
        std::thread::spawn(move || std::io::copy(&mut rest, &mut std::io::sink()));
    }
    Ok(Sample {
        took,
        exits: exits?,
        child,
    })
}

fn to_exit(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    let took = begun.elapsed();
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(took)
}

/// A bundle for runc with the root file system that pods of the image have.
struct Bundle {
    dir: PathBuf,
    rootfs: PathBuf,
}

impl Bundle {
    fn make(ground: &Ground) -> Result<Self> {
        let dir = ground.dir.join("runc");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let rootfs = only_layer(&ground.dir.join("state/images/layers"))?;
        Ok(Self { dir, rootfs })
    }

    /// Writes the configuration that `runc spec` gives, for `command`, without a terminal.
    fn write(&self, command: &[&str]) -> Result<()> {
        let path = self.dir.join("config.json");
        let _ = fs::remove_file(&path);
        process::output(self.runc().arg("spec").arg("--bundle").arg(&self.dir))?;
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut config: Value = serde_json::from_slice(&text).context("reading runc's example")?;
        for (pointer, value) in [
            ("/process/args", json!(command)),
            ("/process/terminal", json!(false)),
            ("/root/path", json!(self.rootfs)),
        ] {
            *config
                .pointer_mut(pointer)
                .with_context(|| format!("runc's example has no {pointer}"))? = value;
        }
        let text = serde_json::to_vec(&config).context("writing runc's configuration")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.env("PATH", nearby::PATH);
        command.arg("--root").arg(self.dir.join("state"));
        command
    }

    fn run(&self) -> Command {
        let mut command = self.runc();
        command.arg("run").arg("--bundle").arg(&self.dir);
        command.arg("bench");
        command
    }
}

/// The unpacked layer of an image that has one alone, in a store that has one image alone.
fn only_layer(layers: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(layers)
        .with_context(|| format!("listing {}", layers.display()))?
        .collect::<Result<_, _>>()
        .with_context(|| format!("listing {}", layers.display()))?;
    match entries.as_slice() {
        [one] => Ok(one.path().join("fs")),
        several => bail!(
            "{} holds {} layers; the image of the bench is expected to have one",
            layers.display(),
            several.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_output_of_a_silent_program_is_an_error_with_its_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 7"]);
        let error = first_output(&mut command, || Ok(None))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("exit status: 7"), "{error}");
        assert!(error.ends_with("why"), "{error}");
    }

    #[test]
    fn first_output_comes_before_the_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo x; exec sleep 1000"]);
        let mut sample = first_output(&mut command, || Ok(Some(3))).unwrap();
        assert_eq!(sample.exits, Some(3));
        sample.child.kill().unwrap();
        sample.child.wait().unwrap();
    }

    #[test]
    fn only_layer_of_two_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        assert_eq!(only_layer(dir.path()).unwrap(), dir.path().join("a/fs"));
        fs::create_dir(dir.path().join("b")).unwrap();
        assert!(only_layer(dir.path()).is_err());
    }
}
