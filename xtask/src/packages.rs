//! Debian packages by name: which are missing, installing them with progress, and unpacking some
//! into the cache without installing them. Works with package lists of its own, made from the
//! machine's own sources (same addresses, same keys), so that the machine's apt configuration stays
//! as it is. Which packages are wanted is the callers' business.

mod sources;
pub mod wanted;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process;
use crate::progress::Step;
use crate::workspace;

/// The release whose QEMU is too old, and the suite that has a newer one.
const OLD_RELEASE: &str = "bookworm";

/// Package lists older than this are fetched anew before anything is taken from them.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// Installs those of `packages` that are missing, from the machine's own release.
///
/// # Errors
/// When packages are missing and this is not root, or apt fails.
pub fn ensure(packages: &[&str]) -> Result<()> {
    install(packages, false)
}

/// Like [`ensure`], but prefers the release's backports where the release is too old.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_from_backports(packages: &[&str]) -> Result<()> {
    install(packages, true)
}

fn install(packages: &[&str], backports: bool) -> Result<()> {
    let wanted = missing(packages)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let names = wanted.join(" ");
    if !am_root()? {
        bail!("these Debian packages are missing and only root can install them: {names}");
    }
    let apt = Apt::open()?;
    let codename = apt.codename.clone();
    let suite = (backports && codename == OLD_RELEASE).then(|| format!("{codename}-backports"));
    let origin = suite.as_deref().unwrap_or(&codename);
    let mut step = Step::begin(format!("installing from {origin}: {names}"));
    apt.refresh(&mut step)?;
    let mut command = apt.command("apt-get");
    command.args(["-y", "install", "--no-install-recommends"]);
    if let Some(suite) = &suite {
        command.args(["-t", suite]);
    }
    command.args(&wanted);
    process::run(&mut command, &mut step)?;
    step.done();
    Ok(())
}

/// Those of `packages` that are not installed, in the order given.
fn missing(packages: &[&str]) -> Result<Vec<String>> {
    // dpkg-query fails when one name is unknown and still prints the others, so its exit status
    // says nothing here.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("asking dpkg-query which packages are installed (is this a Debian system?)")?;
    Ok(missing_in(
        packages,
        &String::from_utf8_lossy(&output.stdout),
    ))
}

fn missing_in(packages: &[&str], listing: &str) -> Vec<String> {
    let installed: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    packages
        .iter()
        .filter(|package| !installed.contains(*package))
        .map(|package| (*package).to_owned())
        .collect()
}

fn am_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")))
}

/// apt with sources and package lists of our own in the cache.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    codename: String,
}

impl Apt {
    /// Derives the private sources from the machine's.
    ///
    /// # Errors
    /// When the machine has no Debian source for its own release, or the cache cannot be written.
    pub fn open() -> Result<Self> {
        let codename = own_codename()?;
        let mut wanted = vec![
            codename.clone(),
            format!("{codename}-updates"),
            format!("{codename}-security"),
        ];
        wanted.push(format!("{codename}-backports"));
        Self::with(codename, workspace::cache_dir()?.join("apt"), &wanted)
    }

    /// The same for another release alone: nothing of it can be installed, only downloaded.
    ///
    /// # Errors
    /// As [`Apt::open`].
    fn of_release(release: &str) -> Result<Self> {
        let dir = workspace::cache_dir()?.join("apt").join(release);
        Self::with(own_codename()?, dir, &[release.to_owned()])
    }

    fn with(codename: String, dir: PathBuf, wanted: &[String]) -> Result<Self> {
        for part in ["sources", "lists/partial", "archives/partial"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let machine = sources::read_machine(Path::new("/etc/apt"))?;
        let text = sources::derive(&machine, &codename, wanted)?;
        let file = dir.join("sources/vmpod.sources");
        if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            // Lists of other sources say nothing about these.
            let _ = fs::remove_file(dir.join("fetched"));
        }
        Ok(Self { dir, codename })
    }

    /// An apt program that sees the private sources only.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={dir}/sources"),
            format!("Dir::State::lists={dir}/lists"),
            "DPkg::Lock::Timeout=600".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Fetches the package lists unless those at hand are less than a day old.
    ///
    /// # Errors
    /// When apt fails, with its last lines.
    pub fn refresh(&self, step: &mut Step) -> Result<()> {
        let stamp = self.dir.join("fetched");
        let age = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age < LISTS_FRESH) {
            return Ok(());
        }
        process::run(self.command("apt-get").arg("update"), step)?;
        fs::write(&stamp, "").with_context(|| format!("writing {}", stamp.display()))
    }

    /// The first package that `package` depends on: for a meta package, the real one.
    ///
    /// # Errors
    /// When there is no such package, or it depends on nothing.
    pub fn resolve_meta(&self, package: &str) -> Result<String> {
        let text = process::output(self.command("apt-cache").args(["depends", package]))?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .with_context(|| format!("package {package} names no package that it stands for"))
    }

    /// The release's name, e.g. `bookworm`.
    pub fn codename(&self) -> &str {
        &self.codename
    }

    /// The private sources, in apt's deb822 form.
    pub fn sources_file(&self) -> PathBuf {
        self.dir.join("sources/vmpod.sources")
    }

    /// The versions that would be installed, one package a line.
    ///
    /// # Errors
    /// When apt fails, or a package does not exist.
    pub fn candidates(&self, packages: &[&str]) -> Result<String> {
        let text = process::output(self.command("apt-cache").arg("policy").args(packages))?;
        let found = candidates_in(&text);
        let lines = packages.iter().map(|package| {
            let version = found.iter().find(|(name, _)| name == package);
            let (name, version) = version
                .with_context(|| format!("no source of this machine has the package {package}"))?;
            Ok(format!("{name} {version}"))
        });
        Ok(lines.collect::<Result<Vec<_>>>()?.join("\n"))
    }

    /// Downloads what installing `packages` into the Debian system below `root` takes, into `into`.
    ///
    /// # Errors
    /// When apt fails, with its last lines.
    pub fn download_for(
        &self,
        root: &Path,
        packages: &[&str],
        into: &Path,
        step: &mut Step,
    ) -> Result<()> {
        let partial = into.join("partial");
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let mut command = self.command("apt-get");
        // Made for another list of installed packages, the caches would be wrong for the machine.
        for option in [
            format!("Dir::State::status={}/var/lib/dpkg/status", root.display()),
            format!(
                "Dir::State::extended_states={}/extended_states",
                into.display()
            ),
            format!("Dir::Cache::archives={}", into.display()),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args([
            "-y",
            "--download-only",
            "--no-install-recommends",
            "install",
        ]);
        command.args(packages);
        process::run(&mut command, step)
    }

    /// Downloads `packages` (apt checks signatures and hashes) and unpacks them under `into`
    /// without installing them.
    ///
    /// # Errors
    /// When apt or dpkg fails, with the last lines.
    pub fn unpack(&self, packages: &[&str], into: &Path, step: &mut Step) -> Result<()> {
        let archives = into.join(".archives");
        fs::create_dir_all(&archives)
            .with_context(|| format!("creating {}", archives.display()))?;
        let mut command = self.command("apt-get");
        command
            .arg("download")
            .args(packages)
            .current_dir(&archives);
        process::run(&mut command, step)?;
        for entry in
            fs::read_dir(&archives).with_context(|| format!("listing {}", archives.display()))?
        {
            let archive = entry.context("listing downloaded packages")?.path();
            step.note(&format!("unpacking {}", archive.display()));
            process::run(Command::new("dpkg").arg("-x").arg(&archive).arg(into), step)?;
        }
        fs::remove_dir_all(&archives).with_context(|| format!("removing {}", archives.display()))
    }
}

fn own_codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    sources::codename(&release)
        .context("/etc/os-release has no VERSION_CODENAME: this needs a Debian release")
}

/// The folder in the cache that `packages` of another Debian release are unpacked in. Nothing of it
/// is installed, and what the packages depend on is this machine's own.
///
/// # Errors
/// When apt or dpkg fails, with the last lines.
pub fn unpacked_of_release(release: &str, packages: &[&str]) -> Result<PathBuf> {
    let apt = Apt::of_release(release)?;
    let mut step = Step::begin(format!("unpacking from {release}: {}", packages.join(" ")));
    apt.refresh(&mut step)?;
    let parent = workspace::cache_dir()?.join("packages");
    let versions = apt.candidates(packages)?;
    let hash = Sha256::digest(format!("{release}\n{versions}"));
    let number: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = parent.join(format!("{release}-{number}"));
    if !place.is_dir() {
        let new = parent.join(format!("{release}.new"));
        // Of a run that was broken off, and of versions that are not the newest any more.
        for old in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = old.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{release}-")) || old.path() == new {
                fs::remove_dir_all(old.path())
                    .with_context(|| format!("removing {}", old.path().display()))?;
            }
        }
        apt.unpack(packages, &new, &mut step)?;
        fs::rename(&new, &place).with_context(|| format!("making {}", place.display()))?;
    }
    step.done();
    Ok(place)
}

/// Names and candidate versions in what `apt-cache policy` prints.
fn candidates_in(policy: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut name = None;
    for line in policy.lines() {
        if !line.starts_with(' ') {
            name = line.strip_suffix(':');
        } else if let (Some(package), Some(version)) =
            (name, line.trim().strip_prefix("Candidate: "))
            && version != "(none)"
        {
            found.push((package, version));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_in_policy_leaves_out_what_cannot_be_installed() {
        let text = "bash:\n  Installed: 5\n  Candidate: 5.2-1\n  Version table:\n     5.2-1 500\nvirtual:\n  Candidate: (none)\nzstd:\n  Candidate: 1:2\n";
        assert_eq!(candidates_in(text), [("bash", "5.2-1"), ("zstd", "1:2")]);
    }

    #[test]
    fn missing_with_half_removed_package_reports_it() {
        let listing = "kmod installed\nxorriso config-files\n";
        assert_eq!(
            missing_in(&["kmod", "xorriso", "nftables"], listing),
            ["xorriso", "nftables"]
        );
    }

    #[test]
    fn missing_with_prefix_of_installed_name_reports_it() {
        assert_eq!(missing_in(&["qemu"], "qemu-utils installed\n"), ["qemu"]);
    }
}
