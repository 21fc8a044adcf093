//! Images: list, pull, import, remove, and their fetching for `run`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vmpod_shim::images::{
    self, CredentialSource, Event, Image, ImportOptions, Progress, PullOptions, REGISTRIES_PATH,
    Reference, Store,
};
use vmpod_shim::manifest::plan::PullPolicy;
use vmpod_shim::pod::clock;
use vmpod_shim::pod::roots::Roots;

use crate::cli::{ImageArguments, ImageCommand, ListArguments, Output, PullArguments};
use crate::{guest, lifecycle, table};

/// Gets images for a pod.
#[derive(Debug)]
pub struct Fetcher<'a> {
    store: &'a Store,
    progress: Shown,
    /// Names and texts of `imagePullSecrets`.
    secrets: Vec<(String, Vec<u8>)>,
}

impl<'a> Fetcher<'a> {
    /// Fetches into `store`, showing progress unless `quiet`.
    pub fn new(store: &'a Store, quiet: bool) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            progress: Shown::new(quiet),
            secrets: Vec::new(),
        })
    }

    /// Shows registries what these Docker configurations hold, before those of the host.
    pub fn with_secrets(mut self, secrets: Vec<(String, Vec<u8>)>) -> Self {
        self.secrets = secrets;
        self
    }

    /// The image that `name` means under `policy`.
    pub fn image(&mut self, name: &str, policy: PullPolicy) -> anyhow::Result<Image> {
        let reference = Reference::parse(name)?;
        let credentials = if self.secrets.is_empty() {
            CredentialSource::DockerConfig
        } else {
            CredentialSource::Texts(self.secrets.clone())
        };
        pull_one(self.store, &reference, policy, credentials, &self.progress)
    }
}

/// Has names of hosts looked up in files and DNS alone, in a static program: whatever else /etc/nsswitch.conf may name are
/// libraries of the host's C library, which need not be the one that is in here.
fn look_up_by_files_and_dns() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        unsafe extern "C" {
            // nss.h of the GNU C library.
            fn __nss_configure_lookup(
                database: *const std::ffi::c_char,
                services: *const std::ffi::c_char,
            ) -> std::ffi::c_int;
        }
        // SAFETY: both texts end in NUL and live for ever; no other thread looks names up meanwhile.
        unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    }
}

fn pull_one(
    store: &Store,
    reference: &Reference,
    policy: PullPolicy,
    credentials: CredentialSource,
    progress: &Shown,
) -> anyhow::Result<Image> {
    let policy = match policy {
        PullPolicy::Always => images::PullPolicy::Always,
        PullPolicy::IfNotPresent => images::PullPolicy::IfNotPresent,
        PullPolicy::Never => images::PullPolicy::Never,
    };
    // Most starts need no more, and neither a runtime nor what is known of registries.
    if let Some(image) = store.pulled(reference, policy)? {
        return Ok(image);
    }
    let options = PullOptions {
        credentials,
        policy,
        ..PullOptions::configured(Path::new(REGISTRIES_PATH))?
    };
    let runtime = guest::runtime()?;
    look_up_by_files_and_dns();
    Ok(runtime.block_on(store.pull(reference, &options, progress))?)
}

/// `vmpod images`
pub fn list(roots: &Roots, arguments: &ListArguments) -> anyhow::Result<u8> {
    let store = Store::open(&roots.state)?;
    let images = store.list()?;
    if arguments.output == Output::Json {
        let all: Vec<serde_json::Value> = images
            .iter()
            .map(|image| {
                serde_json::json!({
                    "name": image.name,
                    "digest": image.digest.to_string(),
                    "id": image.id.to_string(),
                    "layers": image.layers.len(),
                    "sizeBytes": image.size,
                    "updatedAt": clock::rfc3339(seconds(image.updated)),
                })
            })
            .collect();
        table::json(&all)?;
        return Ok(0);
    }
    let now = clock::now_ns();
    let rows = images
        .iter()
        .map(|image| {
            let name =
                Reference::parse(&image.name).map_or_else(|_| image.name.clone(), |r| r.familiar());
            vec![
                name,
                image.id.short().to_owned(),
                table::bytes(image.size),
                clock::age(seconds(image.updated), now),
            ]
        })
        .collect();
    table::print(&["IMAGE", "ID", "SIZE", "AGE"], rows)?;
    Ok(0)
}

fn seconds(since_epoch: u64) -> i64 {
    i64::try_from(since_epoch)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000_000)
}

/// `vmpod pull`
pub fn pull(roots: &Roots, arguments: &PullArguments) -> anyhow::Result<u8> {
    let store = Store::open(&roots.state)?;
    let progress = Shown::new(arguments.quiet);
    for name in &arguments.images {
        let reference = Reference::parse(name)?;
        let image = pull_one(
            &store,
            &reference,
            PullPolicy::Always,
            CredentialSource::DockerConfig,
            &progress,
        )?;
        writeln!(io::stdout(), "{} {}", image.name, image.digest)?;
    }
    Ok(0)
}

/// `vmpod image`
pub fn image(roots: &Roots, arguments: &ImageArguments) -> anyhow::Result<u8> {
    match &arguments.command {
        ImageCommand::Ls(arguments) => list(roots, arguments),
        ImageCommand::Import { path, name, quiet } => import(roots, path, name.as_deref(), *quiet),
        ImageCommand::Rm { images, force } => remove(roots, images, *force),
    }
}

fn import(roots: &Roots, path: &Path, name: Option<&str>, quiet: bool) -> anyhow::Result<u8> {
    let store = Store::open(&roots.state)?;
    let options = ImportOptions {
        name: name.map(Reference::parse).transpose()?,
        ..ImportOptions::default()
    };
    let progress = Shown::new(quiet);
    // A stream has to be a file first: archives are read more than once.
    let held;
    let path = if path == Path::new("-") {
        held = from_standard_input(roots)?;
        held.0.as_path()
    } else {
        path
    };
    for image in store.import(path, &options, &progress)? {
        writeln!(io::stdout(), "{} {}", image.name, image.digest)?;
    }
    Ok(0)
}

/// A file that goes when it is dropped.
struct Held(std::path::PathBuf);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn from_standard_input(roots: &Roots) -> anyhow::Result<Held> {
    if io::stdin().is_terminal() {
        bail!("standard input is a terminal; an archive was expected");
    }
    let path = roots
        .state
        .join("images/tmp")
        .join(format!("stdin.{}.tar", std::process::id()));
    let held = Held(path);
    let mut file = std::fs::File::create(&held.0)
        .with_context(|| format!("cannot write {}", held.0.display()))?;
    io::copy(&mut io::stdin().lock(), &mut file).context("cannot take in the archive")?;
    Ok(held)
}

fn remove(roots: &Roots, images: &[String], force: bool) -> anyhow::Result<u8> {
    let store = Store::open(&roots.state)?;
    let used = lifecycle::used_digests(roots);
    for name in images {
        // One that is damaged cannot be loaded, but its name can be removed.
        let name = match store.find(name) {
            Ok(Some(image)) => image.name,
            _ => name.clone(),
        };
        store.remove(&name, &used, force)?;
        writeln!(io::stdout(), "{name}")?;
    }
    Ok(0)
}

/// Progress on the terminal, or in lines where there is none.
struct Shown {
    quiet: bool,
    bars: MultiProgress,
    /// Shared by the threads that fetch and unpack layers.
    layers: Mutex<BTreeMap<String, ProgressBar>>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

impl Shown {
    fn new(quiet: bool) -> Self {
        Self {
            quiet,
            bars: MultiProgress::new(),
            layers: Mutex::new(BTreeMap::new()),
        }
    }

    fn line(&self, text: &str) {
        if io::stderr().is_terminal() {
            let _ = self.bars.println(text);
        } else {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn bar(&self, layer: &str, what: &'static str, done: u64, total: u64) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = layers.entry(layer.to_owned()).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(total));
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} {msg:11} {bar:30} {bytes}/{total_bytes}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(layer.to_owned());
            bar
        });
        bar.set_message(what);
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Progress for Shown {
    fn event(&self, event: Event<'_>) {
        if self.quiet {
            return;
        }
        match event {
            Event::Waiting { name } => {
                self.line(&format!("{name}: another vmpod is fetching it; waiting"));
            }
            Event::Resolving { name, from } => self.line(&format!("{name}: asking {from}")),
            Event::Resolved {
                name,
                layers,
                bytes,
                ..
            } => self.line(&format!("{name}: {layers} layers, {}", table::bytes(bytes))),
            Event::LayerPresent { .. } => {}
            Event::LayerBytes { layer, done, total } => {
                self.bar(layer.short(), "downloading", done, total);
            }
            Event::LayerUnpacking { layer, done, total } => {
                self.bar(layer.short(), "unpacking", done, total);
            }
            Event::LayerDone { layer } => {
                let bar = self
                    .layers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(layer.short());
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
            }
            Event::Retrying { what, reason, wait } => self.line(&format!(
                "{what}: {reason}; trying again in {:.1} s",
                wait.max(Duration::from_millis(100)).as_secs_f32()
            )),
            Event::Done { name, .. } => self.line(&format!("{name}: done")),
        }
    }
}
