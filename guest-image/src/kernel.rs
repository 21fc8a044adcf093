//! The kernel build: unpack, patch, configure, check, compile, strip, publish.
//!
//! Runs on the caller's thread with the kernel's own make as a child; one build per hash and cache
//! at a time. The environment of the children is fixed, and the build is in the source folder
//! itself, so that neither paths, nor user, nor time reach the bytes. It installs no packages.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use thiserror::Error;

use crate::cache::{self, CacheError};
use crate::elf::{self, ElfError};
use crate::fingerprint::{self, FingerprintError, Inputs};
use crate::fragment::{Fragment, FragmentError, Unmet};
use crate::progress::{Phase, Progress, StepCounter};

/// Where Debian's `linux-source-6.12` puts the tarball.
pub const DEFAULT_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Lines of the build log that an error carries.
const LOG_TAIL_LINES: usize = 20;

/// The environment that make gets, besides `PATH`.
const BUILD_ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
    ("SOURCE_DATE_EPOCH", "0"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "vmpod"),
    ("KBUILD_BUILD_HOST", "vmpod"),
    ("KBUILD_BUILD_VERSION", "1"),
    // Set, though empty: keeps a "+" out of the release when the cache lies in a git checkout.
    ("LOCALVERSION", ""),
];

/// Why a kernel was not built.
#[derive(Debug, Error)]
pub enum BuildError {
    #[error("cannot tell the inputs of the kernel build")]
    Inputs(#[from] FingerprintError),
    #[error("cannot use {path}")]
    Fragment {
        path: PathBuf,
        #[source]
        source: FragmentError,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start {program}: apt-get install {}", crate::PACKAGES.join(" "))]
    Start {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{what} failed with {status}; the log is {log} and ends with\n{tail}")]
    Failed {
        what: String,
        status: ExitStatus,
        log: PathBuf,
        tail: String,
    },
    #[error(
        "the kernel's configuration does not have what kernel.config asks for (renamed, or a \
         dependency is missing): {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unmet(Vec<Unmet>),
    #[error("the kernel that came out at {path} is no ELF program")]
    NotElf {
        path: PathBuf,
        #[source]
        source: ElfError,
    },
    #[error("the kernel that came out at {path} has no PVH entry note; is CONFIG_PVH asked for?")]
    NoPvhEntry { path: PathBuf },
}

/// A kernel build: its inputs and where its result is kept.
#[derive(Clone, Debug)]
pub struct KernelBuild {
    source: PathBuf,
    fragment: PathBuf,
    patches: PathBuf,
    cache: PathBuf,
    jobs: usize,
}

impl KernelBuild {
    /// A build of `kernel.config` and `patches/*.patch` of the folder `guest_image` over
    /// [`DEFAULT_SOURCE`], kept under `cache`, with a job for each processor.
    pub fn new(guest_image: &Path, cache: &Path) -> Self {
        Self {
            source: PathBuf::from(DEFAULT_SOURCE),
            fragment: guest_image.join("kernel.config"),
            patches: guest_image.join("patches"),
            cache: cache.join("kernel"),
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Another source tarball, compressed with xz, with one folder at its top.
    #[must_use]
    pub fn source(mut self, tarball: impl Into<PathBuf>) -> Self {
        self.source = tarball.into();
        self
    }

    /// Another configuration fragment.
    #[must_use]
    pub fn fragment(mut self, fragment: impl Into<PathBuf>) -> Self {
        self.fragment = fragment.into();
        self
    }

    /// How many compilers run at once; 0 counts as 1.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// SHA-256, in hexadecimal, of tarball, fragment, patches, compiler, linker and this builder.
    ///
    /// # Errors
    /// An input that cannot be read, or a compiler that is not there.
    pub fn input_hash(&self) -> Result<String, FingerprintError> {
        Ok(self.inputs()?.hash)
    }

    /// Where [`Self::build`] puts its result: `CACHE/kernel/HASH`, holding `vmlinux` (stripped),
    /// `System.map` (addresses of a panic message to names), `config` and `build.log`.
    ///
    /// # Errors
    /// As [`Self::input_hash`].
    pub fn output_folder(&self) -> Result<PathBuf, FingerprintError> {
        Ok(self.cache.join(self.input_hash()?))
    }

    /// The kernel for these inputs: from the cache, or built now. Returns the path of `vmlinux`.
    ///
    /// `progress` runs on this thread: once at the start of each phase and then for each unit. It
    /// is not called where the cache has the kernel.
    ///
    /// # Errors
    /// Missing inputs or tools, an option of the fragment that did not survive (by name), a failed
    /// tool (with the end of its output), a full disk. The cache then has no `vmlinux` for the
    /// hash, and the next call starts afresh.
    pub fn build(&self, progress: &mut dyn FnMut(&Progress)) -> Result<PathBuf, BuildError> {
        let inputs = self.inputs()?;
        let folder = self.cache.join(&inputs.hash);
        let vmlinux = folder.join("vmlinux");
        if vmlinux.is_file() {
            return Ok(vmlinux);
        }
        let fragment =
            Fragment::parse(&inputs.fragment).map_err(|source| BuildError::Fragment {
                path: self.fragment.clone(),
                source,
            })?;
        cache::folder(&folder)?;
        let _lock = cache::lock(&folder.join("lock"), || {
            progress(&Progress::entering(Phase::Waiting, 0));
        })?;
        if vmlinux.is_file() {
            // Built by whoever held the lock.
            return Ok(vmlinux);
        }
        let workshop = Workshop::new(&folder)?;
        workshop.unpack(&self.source, progress)?;
        workshop.patch(&inputs.patches, progress)?;
        workshop.configure(&inputs.fragment, &fragment, progress)?;
        workshop.compile(self.jobs, progress)?;
        workshop.publish(&folder, progress)?;
        Ok(vmlinux)
    }

    fn inputs(&self) -> Result<Inputs, FingerprintError> {
        fingerprint::inputs(
            &self.source,
            &self.fragment,
            &self.patches,
            &self.cache.join("source-hash"),
        )
    }
}

/// The folder in which one build happens, under the lock of its hash.
struct Workshop {
    source: PathBuf,
    log: PathBuf,
}

impl Workshop {
    /// Starts empty: what a killed build left is removed.
    fn new(folder: &Path) -> Result<Self, BuildError> {
        let workshop = Self {
            source: folder.join("build"),
            log: folder.join("build.log"),
        };
        workshop.clear()?;
        cache::folder(&workshop.source)?;
        File::create(&workshop.log)
            .map_err(|source| workshop.file("create", &workshop.log, source))?;
        Ok(workshop)
    }

    fn clear(&self) -> Result<(), BuildError> {
        match fs::remove_dir_all(&self.source) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.file("remove", &self.source, error))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, operation: &'static str, path: &Path, source: io::Error) -> BuildError {
        BuildError::File {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    /// A child in the source folder, with the fixed environment, writing to the log.
    fn command(&self, program: &'static str) -> Result<Command, BuildError> {
        let log = || {
            OpenOptions::new()
                .append(true)
                .open(&self.log)
                .map_err(|source| self.file("open", &self.log, source))
        };
        let mut command = Command::new(program);
        command
            .current_dir(&self.source)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(BUILD_ENVIRONMENT.iter().copied())
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?);
        Ok(command)
    }

    fn run(
        &self,
        what: &str,
        program: &'static str,
        command: &mut Command,
    ) -> Result<(), BuildError> {
        let status = command
            .status()
            .map_err(|source| BuildError::Start { program, source })?;
        self.succeeded(what, status)
    }

    fn succeeded(&self, what: &str, status: ExitStatus) -> Result<(), BuildError> {
        if status.success() {
            return Ok(());
        }
        // The log is bounded by the compiler's output; a log that cannot be read costs the tail only.
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(LOG_TAIL_LINES)..)
            .unwrap_or_default();
        Err(BuildError::Failed {
            what: what.to_owned(),
            status,
            log: self.log.clone(),
            tail: tail.join("\n"),
        })
    }

    /// Feeds the tarball to tar, so that what has been read can be told.
    fn unpack(
        &self,
        tarball: &Path,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), BuildError> {
        let unreadable = |source| self.file("read", tarball, source);
        let mut file = File::open(tarball).map_err(unreadable)?;
        let mut report =
            Progress::entering(Phase::Unpacking, file.metadata().map_err(unreadable)?.len());
        progress(&report);
        let mut tar = self
            .command("tar")?
            .args([
                "--extract",
                "--xz",
                "--strip-components=1",
                "--no-same-owner",
                "--file=-",
            ])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|source| BuildError::Start {
                program: "tar",
                source,
            })?;
        let copied = match tar.stdin.take() {
            Some(mut pipe) => copy_reporting(&mut file, &mut pipe, &mut report, progress),
            None => Ok(()),
        };
        let status = tar
            .wait()
            .map_err(|source| self.file("wait for", tarball, source))?;
        // A tar that gave up closes the pipe; its own words are better than "broken pipe".
        self.succeeded("unpacking the kernel source with tar", status)?;
        copied.map_err(unreadable)
    }

    fn patch(
        &self,
        patches: &[PathBuf],
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), BuildError> {
        for (done, path) in (0u64..).zip(patches) {
            progress(&Progress {
                phase: Phase::Patching,
                done,
                total: patches.len() as u64,
                detail: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            });
            let input = File::open(path).map_err(|source| self.file("read", path, source))?;
            self.run(
                &format!("applying {}", path.display()),
                "patch",
                self.command("patch")?
                    .args(["--strip=1", "--forward", "--batch", "--fuzz=0"])
                    .stdin(input),
            )?;
        }
        Ok(())
    }

    fn configure(
        &self,
        text: &str,
        fragment: &Fragment,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), BuildError> {
        progress(&Progress::entering(Phase::Configuring, 0));
        // Beside the source, so that its path is the same in every cache.
        let path = self.source.join("vmpod.config");
        fs::write(&path, text).map_err(|source| self.file("write", &path, source))?;
        self.run(
            "configuring the kernel",
            "make",
            self.command("make")?
                .args(["KCONFIG_ALLCONFIG=vmpod.config", "allnoconfig"]),
        )?;
        let path = self.source.join(".config");
        let config =
            fs::read_to_string(&path).map_err(|source| self.file("read", &path, source))?;
        let unmet = fragment.unmet(&config);
        if unmet.is_empty() {
            Ok(())
        } else {
            Err(BuildError::Unmet(unmet))
        }
    }

    fn compile(&self, jobs: usize, progress: &mut dyn FnMut(&Progress)) -> Result<(), BuildError> {
        progress(&Progress::entering(Phase::Compiling, 0));
        let mut log = OpenOptions::new()
            .append(true)
            .open(&self.log)
            .map_err(|source| self.file("open", &self.log, source))?;
        let mut make = self
            .command("make")?
            .arg(format!("--jobs={jobs}"))
            .arg("vmlinux")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| BuildError::Start {
                program: "make",
                source,
            })?;
        let told = match make.stdout.take() {
            Some(pipe) => report_steps(BufReader::new(pipe), &mut log, progress),
            None => Ok(()),
        };
        let status = make
            .wait()
            .map_err(|source| self.file("wait for", &self.source, source))?;
        self.succeeded("compiling the kernel", status)?;
        told.map_err(|source| self.file("write", &self.log, source))
    }

    fn publish(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), BuildError> {
        progress(&Progress::entering(Phase::Publishing, 0));
        self.run(
            "stripping the kernel",
            "strip",
            self.command("strip")?
                .args(["--strip-all", "-o", "vmlinux.stripped", "vmlinux"]),
        )?;
        let built = self.source.join("vmlinux.stripped");
        let kernel = fs::read(&built).map_err(|source| self.file("read", &built, source))?;
        match elf::pvh_entry(&kernel) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(BuildError::NoPvhEntry { path: built }),
            Err(source) => {
                return Err(BuildError::NotElf {
                    path: built,
                    source,
                });
            }
        }
        for (from, to) in [("System.map", "System.map"), (".config", "config")] {
            let from = self.source.join(from);
            let bytes = fs::read(&from).map_err(|source| self.file("read", &from, source))?;
            cache::publish(&folder.join(to), |file| file.write_all(&bytes))?;
        }
        // Last: its presence says that the folder is complete.
        cache::publish(&folder.join("vmlinux"), |file| file.write_all(&kernel))?;
        self.clear()
    }
}

fn copy_reporting(
    from: &mut impl Read,
    to: &mut impl Write,
    report: &mut Progress,
    progress: &mut dyn FnMut(&Progress),
) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        report.done += count as u64;
        progress(report);
    }
}

/// Copies make's output to the log and reports its steps. Always reads to the end: a child whose
/// pipe nobody reads would never end.
fn report_steps(
    output: impl BufRead,
    log: &mut impl Write,
    progress: &mut dyn FnMut(&Progress),
) -> io::Result<()> {
    let mut steps = StepCounter::new();
    let mut logged = Ok(());
    for line in output.split(b'\n') {
        let mut line = line?;
        line.push(b'\n');
        if logged.is_ok() {
            logged = log.write_all(&line);
        }
        if let Some(report) = steps.line(&String::from_utf8_lossy(&line)) {
            progress(&report);
        }
    }
    logged
}

#[cfg(test)]
mod tests;
