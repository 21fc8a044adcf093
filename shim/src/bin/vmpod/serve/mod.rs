//! `vmpod serve --manifests DIR`: static pods, as a kubelet has them. Every manifest in the folder is a pod that runs.
//!
//! One thread looks at the folder and at the pods on record and does what [`decide`] says; another answers HTTP. Pods are
//! started with `vmpod run -d`, so that they have supervisors of their own: this process may end and come back, and finds
//! its pods by their annotations. It keeps nothing else.

mod decide;
mod folder;
mod http;
mod metrics;
mod pending;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use vmpod_shim::pod::clock;
use vmpod_shim::pod::durable;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::Phase;

use crate::cli::ServeArguments;
use crate::follow::Wakeup;
use crate::lifecycle;
use decide::{Actual, Decision};
pub use pending::ImageFailure;
use pending::Pending;

/// Annotation with the hash of the file that a pod was made from (kubelet: the same).
const HASH: &str = "kubernetes.io/config.hash";
/// Annotation that says where a pod comes from (kubelet: the same).
const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation with the path of the file.
const FILE: &str = "vmpod.dev/manifest";

/// How often the folder and the pods are looked at although nothing said that they changed.
const LOOK: Duration = Duration::from_secs(2);

/// How long the removal of a pod that has ended may take.
const REMOVAL: Duration = Duration::from_secs(20);

/// What the HTTP side is told.
#[derive(Debug, Default)]
struct Counters {
    /// Wall clock of the last complete look, in nanoseconds.
    looked_at_ns: AtomicU64,
    /// Starts that were begun.
    started: AtomicU64,
    /// Those of them that failed.
    start_errors: AtomicU64,
    desired: AtomicU64,
    /// Pods whose images cannot be had, for `/pods`; shared by the two threads, held for moments.
    pending: Mutex<Pending>,
}

/// `vmpod serve`
pub fn serve(roots: &Roots, arguments: &ServeArguments) -> anyhow::Result<u8> {
    let folder = std::fs::canonicalize(&arguments.manifests)
        .with_context(|| format!("cannot open the folder {}", arguments.manifests.display()))?;
    let counters = Arc::new(Counters::default());
    if arguments.listen != "none" {
        http::start(roots.clone(), &arguments.listen, Arc::clone(&counters))?;
    }
    let mut server = Server {
        roots: roots.clone(),
        arguments: arguments.clone(),
        folder: folder.clone(),
        counters,
        starting: BTreeMap::new(),
        failures: BTreeMap::new(),
        said: BTreeMap::new(),
    };
    let mut wakeup = Wakeup::new();
    wakeup.watch_directory(folder);
    loop {
        server.look();
        let looked = Instant::now();
        while looked.elapsed() < LOOK && !wakeup.wait(&[]) {}
    }
}

impl Counters {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where `vmpod run` says which image it could not have, beside its other words.
fn failure_of(log: &Path) -> PathBuf {
    log.with_extension("failure.json")
}

struct Server {
    roots: Roots,
    arguments: ServeArguments,
    folder: PathBuf,
    counters: Arc<Counters>,
    /// `vmpod run` of each file that is being started, and where it says what is wrong.
    starting: BTreeMap<PathBuf, (Child, PathBuf)>,
    failures: BTreeMap<PathBuf, decide::Failures>,
    /// What was said last of each file: nothing is said twice.
    said: BTreeMap<PathBuf, String>,
}

impl Server {
    fn look(&mut self) {
        self.collect_starts();
        let desired = match folder::read(&self.folder) {
            Ok(desired) => desired,
            Err(error) => {
                let folder = self.folder.clone();
                self.say(&folder, &format!("cannot read the folder: {error}"));
                return;
            }
        };
        for (file, why) in &desired.broken {
            self.say(file, why);
        }
        self.counters
            .desired
            .store(desired.pods.len() as u64, Ordering::Relaxed);
        if let Err(error) = registry::reap(&self.roots) {
            tracing::warn!(error = chain(&error), "cannot look after pods");
        }
        let pods = match registry::list(&self.roots) {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot list pods");
                return;
            }
        };
        let actual: Vec<(Actual, &FoundPod)> = pods
            .iter()
            .filter_map(|pod| Some((self.actual(pod)?, pod)))
            .collect();
        let known: Vec<&Actual> = actual.iter().map(|(actual, _)| actual).collect();
        let starting = |file: &Path| self.starting.contains_key(file);
        let decisions = decide::decide(&desired, &known, starting, &self.failures, Instant::now());
        for decision in decisions {
            match decision {
                Decision::Start { file, hash } => self.start(&file, &hash),
                Decision::Stop { index, why } => {
                    if let Some((actual, pod)) = actual.get(index) {
                        let file = actual.file.clone();
                        let name = &pod.reservation.name;
                        if self.say(&file, &format!("pod {name:?} is stopped: {why}")) {
                            lifecycle::terminate(pod);
                        }
                    }
                }
                Decision::Remove { index, failed } => {
                    if let Some((actual, pod)) = actual.get(index) {
                        let file = actual.file.clone();
                        if failed {
                            self.failed(&file);
                        } else {
                            self.failures.remove(&file);
                        }
                        if let Err(error) = registry::remove(pod, REMOVAL) {
                            self.say(&file, &format!("cannot be removed: {}", chain(&error)));
                        }
                    }
                }
            }
        }
        self.pending().retain(&desired.pods);
        let now = u64::try_from(clock::now_ns()).unwrap_or(0);
        self.counters.looked_at_ns.store(now, Ordering::Relaxed);
    }

    /// The pod as far as it matters here; `None`: it is not from this folder.
    fn actual(&self, pod: &FoundPod) -> Option<Actual> {
        let record: vmpod_shim::pod::record::PodRecord =
            vmpod_shim::pod::durable::read_json(&pod.paths.config()).ok()?;
        let note = |key: &str| record.annotations.get(key);
        let file = PathBuf::from(note(FILE).filter(|_| note(SOURCE).is_some_and(|s| s == "file"))?);
        if file.parent() != Some(self.folder.as_path()) {
            return None;
        }
        let status = pod.status.as_ref();
        Some(Actual {
            hash: note(HASH)?.clone(),
            ended: pod.has_ended(),
            succeeded: status.is_some_and(|s| s.phase == Phase::Succeeded),
            reason: status.map(|s| s.reason.clone()).unwrap_or_default(),
            restart_policy: record.restart_policy,
            ran_seconds: status
                .map(|s| s.finished_at_ns.saturating_sub(s.created_at_ns) / 1_000_000_000)
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(0),
            file,
        })
    }

    fn start(&mut self, file: &Path, hash: &str) {
        let outcome = self.spawn(file, hash);
        match outcome {
            Ok((child, log)) => {
                // Before it is seen among the pods, as the kubelet counts.
                self.counters.started.fetch_add(1, Ordering::Relaxed);
                self.pending().trying(file);
                self.say(file, "its pod is started");
                self.starting.insert(file.to_owned(), (child, log));
            }
            Err(error) => {
                self.failed(file);
                self.say(file, &format!("cannot start vmpod run: {error:#}"));
            }
        }
    }

    fn spawn(&self, file: &Path, hash: &str) -> anyhow::Result<(Child, PathBuf)> {
        let directory = self.roots.run.join("serve");
        std::fs::create_dir_all(&directory).context("making a folder for its words")?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let log = directory.join(format!("{name}.err"));
        let failure = failure_of(&log);
        match std::fs::remove_file(&failure) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("removing what was said of its image before");
            }
            _ => {}
        }
        let words = File::create(&log).context("making a file for its words")?;
        let mut command = Command::new(std::env::current_exe().context("finding vmpod itself")?);
        command
            .arg("--root")
            .arg(&self.roots.run)
            .arg("--state")
            .arg(&self.roots.state)
            .args(["run", "-d", "--quiet"]);
        for (key, value) in [
            (SOURCE, "file"),
            (HASH, hash),
            (FILE, &file.to_string_lossy()),
        ] {
            command.arg("--annotation").arg(format!("{key}={value}"));
        }
        command.arg("--failure").arg(&failure);
        for resource in &self.arguments.resources {
            command.arg("--resource").arg(resource);
        }
        let child = command
            .arg("-f")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(words)
            .spawn()
            .context("starting it")?;
        Ok((child, log))
    }

    fn collect_starts(&mut self) {
        let mut ended = Vec::new();
        for (file, (child, log)) in &mut self.starting {
            if let Ok(Some(status)) = child.try_wait() {
                let words = std::fs::read_to_string(log.as_path()).unwrap_or_default();
                let failure: Option<ImageFailure> = durable::read_json(&failure_of(log)).ok();
                ended.push((file.clone(), status.success(), words, failure));
            }
        }
        for (file, success, words, failure) in ended {
            self.starting.remove(&file);
            match failure.filter(|_| !success) {
                Some(failure) => self.pending().failed(&file, failure),
                None => self.pending().forget(&file),
            }
            if success {
                self.say(&file, "its pod runs");
            } else {
                self.counters.start_errors.fetch_add(1, Ordering::Relaxed);
                self.failed(&file);
                self.say(&file, &format!("its pod was not started: {}", words.trim()));
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.counters.pending()
    }

    fn failed(&mut self, file: &Path) {
        let failures = self.failures.entry(file.to_owned()).or_default();
        failures.one_more(Instant::now());
    }

    /// Says something of a file unless it was the last thing that was said of it. Returns whether it was said.
    fn say(&mut self, file: &Path, what: &str) -> bool {
        if self.said.get(file).is_some_and(|last| last == what) {
            return false;
        }
        self.said.insert(file.to_owned(), what.to_owned());
        let _ = writeln!(std::io::stderr(), "vmpod: {}: {what}", file.display());
        true
    }
}
