//! Where pods run: on this machine when its processor has virtualisation that works, else in the
//! emulated node. Callers run the very same commands either way.

use std::fs::{self, OpenOptions};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::node::{self, Place, Start};
use crate::packages::{self, wanted};
use crate::process::Invocation;
use crate::workspace;

/// A host that can run pods.
#[derive(Debug)]
pub enum Host {
    /// This machine.
    Machine,
    /// The emulated node.
    Node(Place),
}

impl Host {
    /// Picks the host, says which when it is not this machine, and brings it up. What pods need
    /// of packages is installed.
    ///
    /// # Errors
    /// When packages cannot be installed or the node does not come up.
    pub fn ready() -> Result<Self> {
        packages::ensure(wanted::RUN)?;
        let lack = match fs::read_to_string("/proc/cpuinfo") {
            Ok(text) if !has_virtualisation(&text) => "this processor offers no svm or vmx",
            Ok(_) if !kvm_opens() => "/dev/kvm cannot be opened",
            Ok(_) => return Ok(Self::Machine),
            Err(_) => "/proc/cpuinfo cannot be read",
        };
        let place = node::own_place()?;
        eprintln!(
            "{lack}: pods run in the emulated node {} (cargo xtask node)",
            place.name
        );
        node::up(&place, &Start::default())?;
        Ok(Self::Node(place))
    }

    /// Another host like this one for what can be done at the same time, brought up. None where this machine is the host, or
    /// has no processor or memory to spare for a second node.
    ///
    /// # Errors
    /// When the node does not come up.
    pub fn beside(&self) -> Result<Option<Self>> {
        let Self::Node(place) = self else {
            return Ok(None);
        };
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let start = Start::default();
        if processors < 2 || available_mib(&memory) < 2 * start.memory {
            return Ok(None);
        }
        let second = Place::open(&format!("{}-second", place.name))?;
        eprintln!(
            "what can be done at the same time is done in node {}",
            second.name
        );
        node::up(&second, &start)?;
        Ok(Some(Self::Node(second)))
    }

    /// Makes the bundle's files quick to reach from where pods run, and returns the folder to run
    /// them from. The node reads this machine's files slowly, so it gets a copy in its memory,
    /// once for each content.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn place_bundle(&self, bundle: &Bundle) -> Result<PathBuf> {
        let Self::Node(place) = self else {
            return Ok(bundle.dir().to_path_buf());
        };
        let stamp = bundle.stamp()?;
        let name = stamp.get(..16).context("the bundle's stamp is cut off")?;
        let parent = Path::new("/run/vmpod-node/bundle");
        let copy = parent.join(name);
        let (from, to) = (bundle.dir().display(), copy.display());
        // Older copies stay while pods may run from them, two at the most.
        let script = format!(
            "[ -e '{to}/stamp' ] && exit 0; mkdir -p '{parent}' && cd '{parent}' && \
             ls -t | tail -n +3 | xargs -r rm -rf && \
             rm -rf '{to}.new' && cp -r '{from}' '{to}.new' && mv '{to}.new' '{to}'",
            parent = parent.display()
        );
        node::capture(place, &script, 600).context("copying the bundle into the node")?;
        Ok(copy)
    }

    /// A path that names `file` where pods run. The node sees the checkout as it is, but has a
    /// `/tmp` and the like of its own; a file from elsewhere is copied to where the node looks.
    ///
    /// # Errors
    /// When the file cannot be read or copied.
    pub fn visible(&self, file: &Path) -> Result<PathBuf> {
        let file = fs::canonicalize(file).with_context(|| format!("reading {}", file.display()))?;
        let Self::Node(place) = self else {
            return Ok(file);
        };
        if file.starts_with(workspace::root()) {
            return Ok(file);
        }
        let dir = place.dir.join("input");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let copy = dir.join(
            file.file_name()
                .context("a manifest is a file with a name")?,
        );
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        workspace::write_atomically(&copy, &content)?;
        Ok(copy)
    }

    /// Runs a command with this process's standard input and error, and returns its exit status.
    /// Its standard output goes to `lines` where there is one, else to this process's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, invocation: &Invocation, lines: Option<&mut dyn FnMut(&str)>) -> Result<u8> {
        match self {
            Self::Node(place) => node::invoke(place, invocation, lines),
            Self::Machine => invocation.run_here(lines),
        }
    }
}

/// `MemAvailable` of `/proc/meminfo` (proc(5)) in MiB, 0 when it is not there.
fn available_mib(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "svm" || flag == "vmx")
        })
}

fn kvm_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_mib_is_that_of_its_line() {
        assert_eq!(
            available_mib("MemTotal: 9999999 kB\nMemAvailable:    2097152 kB\n"),
            2048
        );
        assert_eq!(available_mib("MemFree: 1 kB\n"), 0);
    }

    #[test]
    fn has_virtualisation_with_similar_flag_is_false() {
        assert!(!has_virtualisation(
            "flags\t\t: fpu svm_lock vmx_x\nbugs\t: svm\n"
        ));
        assert!(has_virtualisation("flags\t\t: fpu vme svm nx\n"));
        assert!(has_virtualisation("flags\t\t: vmx\n"));
    }
}
