//! What is known about a node between two commands: files in `CACHE/node/nodes/NAME`. A node is up
//! when the process that its pid file names is alive and carries the node's name; nothing else is
//! believed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::workspace;

/// What `up` decided and later commands need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The loopback port that leads to the node's ssh server.
    pub port: u16,
    /// Whether the node counts instructions instead of time.
    pub count: bool,
    /// Memory in MiB.
    pub memory: u64,
    /// Start, in seconds since 1970.
    pub started: u64,
    /// `uname -r` of the node.
    pub kernel: String,
    /// The checkout that started it.
    pub checkout: PathBuf,
}

/// One named node's directory.
#[derive(Debug, Clone)]
pub struct Place {
    pub name: String,
    pub dir: PathBuf,
}

impl Place {
    /// The place of node `name`; the directory is made when missing.
    ///
    /// # Errors
    /// When the name is not made of lower-case letters, digits and dashes, or the directory cannot
    /// be made.
    pub fn open(name: &str) -> Result<Self> {
        check_name(name)?;
        let dir = nodes_dir()?.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self {
            name: name.to_owned(),
            dir,
        })
    }

    /// All nodes that were ever started.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn all() -> Result<Vec<Self>> {
        let dir = nodes_dir()?;
        let mut places = Vec::new();
        if !dir.is_dir() {
            return Ok(places);
        }
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if check_name(&name).is_ok() {
                places.push(Self {
                    name,
                    dir: entry.path(),
                });
            }
        }
        places.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(places)
    }

    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch.img")
    }

    /// The socket of the shared ssh connection. A socket's path has room for 107 bytes and ssh adds
    /// 17 while it creates it, so a deep cache directory gets a short name elsewhere.
    pub fn control(&self) -> PathBuf {
        let inside = self.dir.join("control");
        if inside.as_os_str().len() <= 88 {
            return inside;
        }
        std::env::temp_dir().join(format!("vmpod-node-{}", short_hash(&self.dir)))
    }

    /// What the process list shows of this node's QEMU.
    pub fn process_name(&self) -> String {
        format!("vmpod-node-{}", self.name)
    }

    /// Held while a node is started or stopped, so that two commands do not do it at once.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock()
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// The facts, when `up` wrote any.
    pub fn facts(&self) -> Option<Facts> {
        let text = fs::read_to_string(self.dir.join("node.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_facts(&self, facts: &Facts) -> Result<()> {
        let text = serde_json::to_string_pretty(facts).context("writing the node's facts")?;
        workspace::write_atomically(&self.dir.join("node.json"), text.as_bytes())
    }

    /// The process of this node's QEMU, when it lives.
    pub fn pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file())
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        carries_name(&arguments, &self.process_name()).then_some(pid)
    }

    /// Removes what only a running node has. The scratch disk stays.
    pub fn forget(&self) {
        for file in [self.pid_file(), self.dir.join("node.json"), self.control()] {
            let _ = fs::remove_file(file);
        }
    }
}

fn nodes_dir() -> Result<PathBuf> {
    Ok(workspace::cache_dir()?.join("node/nodes"))
}

/// Whether the NUL-separated `arguments` of a process hold `-name NAME`.
fn carries_name(arguments: &[u8], name: &str) -> bool {
    let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair[0] == b"-name" && pair[1] == name.as_bytes())
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(allowed) {
        bail!("node name {name:?}: 1 to 40 lower-case letters, digits and dashes are allowed");
    }
    Ok(())
}

/// The name of a checkout's own node: its folder's name, and enough of a hash of the whole path
/// that two checkouts of one name do not meet.
pub fn default_name(checkout: &Path) -> String {
    let folder: String = checkout
        .file_name()
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        .take(20)
        .collect();
    format!("{folder}-{}", short_hash(checkout))
}

/// Four hexadecimal digits of a path's hash.
fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest
        .iter()
        .take(2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_name_with_other_node_is_false() {
        let arguments = b"qemu\0-name\0vmpod-node-ab\0-smp\x001\0";
        assert!(carries_name(arguments, "vmpod-node-ab"));
        assert!(!carries_name(arguments, "vmpod-node-a"));
        assert!(!carries_name(b"cat\0vmpod-node-ab\0", "vmpod-node-ab"));
    }

    #[test]
    fn check_name_with_path_is_refused() {
        for bad in ["", "../x", "a/b", "A", "a b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        check_name("bench-2").unwrap();
    }

    #[test]
    fn default_name_of_two_checkouts_with_one_folder_name_differs() {
        let (one, two) = (
            default_name(Path::new("/a/vmpod")),
            default_name(Path::new("/b/vmpod")),
        );
        assert_ne!(one, two);
        assert!(one.starts_with("vmpod-"), "{one}");
        check_name(&one).unwrap();
        check_name(&default_name(Path::new("/ä/Ö_x."))).unwrap();
    }
}
