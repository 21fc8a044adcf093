//! `vmpod run`: a manifest becomes a pod; in the foreground its output is shown and its result returned.

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use vmpod_shim::host::bundle::Bundle;
use vmpod_shim::host::capacity::{Capacity, host_cpus};
use vmpod_shim::images::Store;
use vmpod_shim::manifest::plan::{PodPlan, PullPolicy};
use vmpod_shim::manifest::source::MANIFEST_BYTES;
use vmpod_shim::manifest::{self, HostFacts, Objects, Problem, Problems, plan};
use vmpod_shim::pod::durable;
use vmpod_shim::pod::prepare::{PrepareError, PrepareOptions, prepare};
use vmpod_shim::pod::process::ProcessIdentity;
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::registry;
use vmpod_shim::pod::roots::{PodPaths, Roots};
use vmpod_shim::pod::status::{ContainerState, PodStatus};
use vmpod_shim::pod::supervisor::{self, Report, Supervisor};

use crate::cli::{Pull, RunArguments};
use crate::follow::{Follower, Style, Wakeup};
use crate::images::Fetcher;
use crate::signals::Signals;
use crate::{lifecycle, serve, table};

/// How long the supervisor may take from its start to a pod in the agent's hands; its own bounds are tighter and say
/// more.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long the supervisor may take to clean up after the pod's end.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Runs a pod.
pub fn run(roots: &Roots, arguments: &RunArguments) -> anyhow::Result<u8> {
    let (plan, source) = read_plan(arguments)?;
    if arguments.dry_run {
        table::json(&plan)?;
        return Ok(0);
    }
    for note in &plan.notes {
        if !arguments.quiet {
            writeln!(io::stderr(), "vmpod: note: {note}")?;
        }
    }
    let store = Store::open(&roots.state)?;
    // Held until the pod is on record as a user of its images.
    let lease = store.lease()?;
    let mut fetcher =
        Fetcher::new(&store, arguments.quiet)?.with_secrets(plan.pull_secrets.clone());
    let mut image = |reference: &str, policy: PullPolicy| {
        let policy = match arguments.pull {
            Some(Pull::Always) => PullPolicy::Always,
            Some(Pull::Missing) => PullPolicy::IfNotPresent,
            Some(Pull::Never) => PullPolicy::Never,
            None => policy,
        };
        fetcher
            .image(reference, policy)
            .map_err(|error| match policy {
                PullPolicy::Never => error.context("imagePullPolicy is Never"),
                _ => error,
            })
            .map_err(Into::<Box<dyn std::error::Error>>::into)
    };
    let options = PrepareOptions {
        bundle: Bundle::locate(),
        capacity: Capacity::of_host(),
        remove_when_done: arguments.rm,
        subnet: arguments.subnet.clone(),
        jail: !arguments.no_jail,
        template: !arguments.no_template,
        extra_cmdline: arguments.kernel_arguments.clone(),
        source,
        resources: lasting(&arguments.resources)?,
    };
    let prepared = prepare(roots, &plan, &options, &mut image);
    if let (Err(error), Some(path)) = (&prepared, &arguments.failure) {
        tell_failure(error, path)?;
    }
    let (reserved, record) = prepared?;
    drop(lease);
    let supervisor = match supervisor::spawn(&options.bundle.supervisor, roots, &reserved) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            reserved.cancel()?;
            return Err(error).context("cannot start the pod's supervising process");
        }
    };
    // The supervisor has the lock by inheritance: the pod stays attended when this command ends.
    let paths = reserved.paths.clone();
    drop(reserved);
    if arguments.detach {
        detached(supervisor, &record)
    } else {
        foreground(supervisor, &record, &paths)
    }
}

/// Tells `vmpod serve` which image could not be had.
fn tell_failure(error: &PrepareError, path: &Path) -> anyhow::Result<()> {
    if let PrepareError::Image {
        container,
        image,
        message,
    } = error
    {
        let failure = serve::ImageFailure {
            container: container.clone(),
            image: image.clone(),
            message: message.clone(),
        };
        durable::write_json(path, &failure)?;
    }
    Ok(())
}

fn detached(mut supervisor: Supervisor, record: &PodRecord) -> anyhow::Result<u8> {
    match supervisor.next_report(Some(START_LIMIT)) {
        Ok(Some(Report::Started | Report::Finished)) => {
            writeln!(io::stdout(), "{}", record.id)?;
            Ok(0)
        }
        Ok(Some(Report::Failed { message })) => {
            supervisor.dismiss(END_LIMIT);
            bail!("pod {:?} was not started: {message}", record.name)
        }
        Ok(None) => bail!(
            "the supervising process of pod {:?} was killed while it started; `vmpod gc` takes away what it made",
            record.name
        ),
        Err(error) => Err(error).context("the supervising process does not say how the start went"),
    }
}

/// Shows the pod's output until it has ended. The first signal stops the pod, the second kills its machine.
fn foreground(
    mut supervisor: Supervisor,
    record: &PodRecord,
    paths: &PodPaths,
) -> anyhow::Result<u8> {
    let signals = Signals::block()?;
    let names: Vec<String> = record
        .init_containers
        .iter()
        .chain(&record.containers)
        .map(|container| container.name.clone())
        .collect();
    let mut follower = Follower::new(
        paths,
        &names,
        Style {
            names: true,
            timestamps: false,
        },
    )
    .of_logs_alone();
    let mut wakeup = Wakeup::new();
    let identity = i32::try_from(supervisor.pid())
        .ok()
        .and_then(ProcessIdentity::of);
    let mut asked = false;
    // Before that there is no output to look for, and much that changes in the pod's directory.
    let mut started = false;
    let outcome = loop {
        let fresh = started && wakeup.watch(&follower);
        if started {
            follower.show()?;
        }
        if signals.take().is_some() {
            if let Some(identity) = &identity {
                if asked {
                    lifecycle::signal(identity, rustix_signal(true));
                } else {
                    let _ = writeln!(
                        io::stderr(),
                        "vmpod: stopping pod {:?}; once more kills it",
                        record.name
                    );
                    lifecycle::signal(identity, rustix_signal(false));
                }
            }
            asked = true;
        }
        match supervisor.poll_report()? {
            Some(Some(Report::Started)) => {
                started = true;
                continue;
            }
            Some(report) => break report,
            None => {}
        }
        if !fresh {
            wakeup.wait(&[
                std::os::fd::AsFd::as_fd(&signals),
                supervisor.report_descriptor(),
            ]);
        }
    };
    follower.finish()?;
    let status: Option<PodStatus> = durable::read_json(&paths.status()).ok();
    supervisor.dismiss(END_LIMIT);
    match outcome {
        Some(Report::Failed { message }) => {
            bail!("pod {:?} was not started: {message}", record.name)
        }
        Some(Report::Finished | Report::Started) => {}
        None => {
            // The kernel has ended the machine with its supervisor: what is left is files.
            if !registry::wait_unattended(paths, END_LIMIT) {
                tracing::warn!("somebody still looks after the pod");
            }
            bail!(
                "the supervising process of pod {:?} was killed; the machine ended with it, `vmpod gc` takes away what is left",
                record.name
            )
        }
    }
    let status = status.context("the pod has ended without a status")?;
    report_failures(&status)?;
    Ok(status.exit_code.unwrap_or(crate::OWN_ERROR))
}

fn rustix_signal(kill: bool) -> rustix::process::Signal {
    if kill {
        rustix::process::Signal::INT
    } else {
        rustix::process::Signal::TERM
    }
}

/// Says which containers failed and why: a name and a number alone explain nothing.
fn report_failures(status: &PodStatus) -> io::Result<()> {
    let mut out = io::stderr().lock();
    for container in status.all_containers() {
        match &container.exit {
            Some(exit) if exit.code != 0 && container.state == ContainerState::Terminated => {
                write!(
                    out,
                    "vmpod: container {:?} ended with code {}",
                    container.name, exit.code
                )?;
                if exit.oom_killed {
                    write!(out, ": it was killed because it ran out of memory")?;
                } else if !exit.reason.is_empty() && exit.reason != "Error" {
                    write!(out, " ({})", exit.reason)?;
                }
                let message = if exit.message.is_empty() {
                    &container.message
                } else {
                    &exit.message
                };
                if message.is_empty() || message == &status.message {
                    writeln!(out)?;
                } else {
                    writeln!(out, ": {}", message.trim_end())?;
                }
            }
            None if status.phase == vmpod_shim::pod::status::Phase::Failed
                && !container.message.is_empty() =>
            {
                writeln!(
                    out,
                    "vmpod: container {:?} did not run ({}): {}",
                    container.name, container.reason, container.message
                )?;
            }
            _ => {}
        }
    }
    if !status.message.is_empty() {
        let reason = if status.reason.is_empty() {
            String::new()
        } else {
            format!(" ({})", status.reason)
        };
        writeln!(
            out,
            "vmpod: pod {:?} {}{reason}: {}",
            status.name,
            if status.exit_code == Some(0) {
                "succeeded"
            } else {
                "failed"
            },
            status.message
        )?;
    }
    Ok(())
}

/// The files that can be read again later, by names that hold in every directory.
fn lasting(resources: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    resources
        .iter()
        .filter(|path| *path != Path::new("-"))
        .map(|path| {
            std::path::absolute(path).with_context(|| format!("cannot name {}", path.display()))
        })
        .collect()
}

/// The plan of the one pod in the manifest, with the objects it refers to from the manifest and from `--resource`, and the
/// manifest's text.
fn read_plan(arguments: &RunArguments) -> anyhow::Result<(PodPlan, String)> {
    let path = arguments
        .file
        .as_ref()
        .or(arguments.manifest.as_ref())
        .context("no manifest was given")?;
    let (mut source, file) = read_text(path)?;
    let (mut objects, problems) = manifest::partly(&source);
    for path in &arguments.resources {
        let (text, file) = read_text(path)?;
        if path == Path::new("-") {
            // It cannot be read again.
            source.push_str("\n---\n");
            source.push_str(&text);
        }
        let further = manifest::objects(&text, &file)?;
        if !further.pods.is_empty() {
            bail!("{file}: --resource takes ConfigMaps and Secrets, and this file holds a Pod");
        }
        objects.absorb(further);
    }
    if !problems.is_empty() {
        return Err(all_problems(&objects, problems, &file).into());
    }
    let pods = std::mem::take(&mut objects.pods);
    let (mut pod, document) = match <[_; 1]>::try_from(pods) {
        Ok([one]) => one,
        Err(pods) if pods.is_empty() => bail!("{file}: there is no Pod in this manifest"),
        Err(pods) => bail!(
            "{file}: there are {} Pods in this manifest; run them one by one",
            pods.len()
        ),
    };
    if let Some(name) = &arguments.name {
        pod.metadata.name = Some(name.clone());
    }
    for annotation in &arguments.annotations {
        let Some((key, value)) = annotation
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
        else {
            bail!("--annotation takes KEY=VALUE, not {annotation:?}");
        };
        pod.metadata
            .annotations
            .get_or_insert_default()
            .insert(key.to_owned(), value.to_owned());
    }
    Ok((
        plan(&pod, &document, &objects, &host_facts(), &file)?,
        source,
    ))
}

/// What is wrong with a manifest whose form is wrong: that, and what can be said of the rest of its pods all the same.
fn all_problems(objects: &Objects, problems: Vec<Problem>, file: &str) -> Problems {
    let mut all = Problems {
        file: file.to_owned(),
        problems,
    };
    for (pod, document) in &objects.pods {
        if let Err(further) = plan(pod, document, objects, &host_facts(), file) {
            all.add_further(further.problems);
        }
    }
    all
}

/// What plans take from this host.
pub fn host_facts() -> HostFacts {
    HostFacts {
        cpus: host_cpus(),
        node_name: nix::sys::utsname::uname()
            .map(|names| names.nodename().to_string_lossy().into_owned())
            .unwrap_or_default(),
        uid: fresh_uid(),
    }
}

fn read_text(path: &Path) -> anyhow::Result<(String, String)> {
    let mut text = String::new();
    let bound = MANIFEST_BYTES as u64 + 1;
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            writeln!(
                io::stderr(),
                "vmpod: reading a manifest from the terminal; end it with Ctrl-D"
            )?;
        }
        io::stdin()
            .lock()
            .take(bound)
            .read_to_string(&mut text)
            .context("cannot read the manifest from standard input")?;
        return Ok((text, "standard input".to_owned()));
    }
    std::fs::File::open(path)
        .and_then(|file| file.take(bound).read_to_string(&mut text))
        .with_context(|| format!("cannot read the manifest {}", path.display()))?;
    Ok((text, path.display().to_string()))
}

/// A random UUID (RFC 9562, version 4).
fn fresh_uid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|_| "00000000-0000-4000-8000-000000000000".to_owned())
}
