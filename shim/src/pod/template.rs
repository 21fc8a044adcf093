//! Templates: machines that were saved when their agent was ready and nothing of a pod was in them yet. Pods of the same
//! shape go on from one, copy-on-write, instead of booting.
//!
//! ```text
//! <run>/templates/<build>-<shape>/{state,memory}   a template; written by the VMM, appears by a rename
//! <run>/templates/<build>-<shape>/touched          which pages machines of it write to, told by the first that was asked
//! <run>/pods/<id>/template/                        one that is being written; goes with its pod
//! ```
//!
//! A name holds everything that two machines must have in common; so a template is never changed, only replaced by one
//! with another name. Taking one away while machines run from it does them no harm: their mappings keep it. What is in
//! the files is the VMM's business, and so is their check.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use vmpod_agent_protocol::PROTOCOL_VERSION;
use vmpod_vmm_api::{MachineConfig, TOUCHED_FILE, TouchedPages};

use super::durable::{self, DurableError};
use super::roots::{PodPaths, Roots};
use super::tree::remove_tree;
use crate::host::bundle::Bundle;
use crate::host::disk_room;

/// Templates that are kept; the one that was used longest ago goes first.
const KEPT: usize = 8;

/// Hexadecimal digits of each half of a name.
const DIGITS: usize = 16;

/// Space that has to be free beside what a template may take: others need the file system too.
const SPARE_BYTES: u64 = 64 << 20;

/// A part of guest memory that a machine which has just booted may use: page descriptors and little else grow with it.
const USED_PART: u64 = 32;

/// Where the templates of a host are.
#[derive(Clone, Debug)]
pub struct Templates {
    directory: PathBuf,
}

/// What a machine has in common with others: the name of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    build: String,
    rest: String,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.build, self.rest)
    }
}

fn digest(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(DIGITS / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A file as it is now: a file that is replaced or written to is another one. Its content is not read, which would take
/// longer than a boot.
fn identity(path: &Path) -> io::Result<String> {
    let found = fs::metadata(path)?;
    Ok(format!(
        "{} {} {} {}.{} {}.{}",
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec()
    ))
}

/// The parts of vmpod that a saved machine was made by and of.
fn build(vmm: &Path, vmlinux: &Path, initramfs: &Path) -> io::Result<String> {
    Ok(digest(&[
        PROTOCOL_VERSION.to_string(),
        identity(vmm)?,
        identity(vmlinux)?,
        identity(initramfs)?,
    ]))
}

/// What of the host a saved machine depends on: the boot of its kernel, which settles processor and KVM, and the
/// microcode, which may be replaced later.
fn host() -> Vec<String> {
    [
        "/proc/sys/kernel/random/boot_id",
        "/sys/devices/system/cpu/cpu0/microcode/version",
    ]
    .into_iter()
    .map(|path| fs::read_to_string(path).unwrap_or_default())
    .collect()
}

impl Shape {
    /// The shape of the machine that `vmm` makes of `config`.
    ///
    /// # Errors
    /// When a part of vmpod cannot be looked at.
    pub fn of(config: &MachineConfig, vmm: &Path) -> io::Result<Self> {
        let initramfs = config.kernel.initramfs.as_deref().unwrap_or(Path::new("/"));
        let mut parts = host();
        parts.push(config.kernel.extra_cmdline.clone());
        parts.push(format!(
            "{} vCPUs {} MiB balloon {} vsock {:?}",
            config.vcpus,
            config.memory_mib,
            config.balloon,
            config.vsock.as_ref().map(|vsock| vsock.guest_cid)
        ));
        for share in &config.shares {
            parts.push(format!(
                "share {} {} {}",
                share.tag, share.queues, share.read_only
            ));
        }
        for net in &config.nets {
            parts.push(format!("net {} {}", net.mac, net.mtu));
        }
        Ok(Self {
            build: build(vmm, &config.kernel.vmlinux, initramfs)?,
            rest: digest(&parts),
        })
    }
}

impl Templates {
    /// Those below the runtime root.
    #[must_use]
    pub fn of(roots: &Roots) -> Self {
        Self {
            directory: roots.templates(),
        }
    }

    fn path(&self, shape: &Shape) -> PathBuf {
        self.directory.join(shape.to_string())
    }

    /// The template of a shape, if there is one.
    #[must_use]
    pub fn find(&self, shape: &Shape) -> Option<PathBuf> {
        let path = self.path(shape);
        // Marks it as used: the directory's own time is what eviction goes by.
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            &path,
            &times,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .ok()
        .map(|()| path)
    }

    /// Makes the directory that a template for `config` is written to.
    ///
    /// # Errors
    /// When it cannot be made, or there is too little space for a template.
    pub fn begin(&self, paths: &PodPaths, config: &MachineConfig) -> io::Result<PathBuf> {
        let mut maker = DirBuilder::new();
        maker.recursive(true).mode(0o700);
        maker.create(&self.directory)?;
        let free = disk_room::free_bytes(&self.directory)?;
        let wanted = SPARE_BYTES.saturating_add((config.memory_mib << 20) / USED_PART);
        if free < wanted {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{} has {} MiB free and a template may take them; {} MiB are wanted",
                    self.directory.display(),
                    free >> 20,
                    wanted >> 20
                ),
            ));
        }
        let scratch = paths.template();
        maker.create(&scratch)?;
        Ok(scratch)
    }

    /// Makes what was written to `scratch` the template of `shape`, unless somebody else was quicker; templates beyond
    /// the number that is kept go.
    ///
    /// # Errors
    /// When it cannot be moved there. It is taken away then.
    pub fn publish(&self, scratch: &Path, shape: &Shape) -> io::Result<()> {
        // The VMM writes the state last: without it there is no template.
        let moved =
            fs::metadata(scratch.join("state")).and_then(|_| fs::rename(scratch, self.path(shape)));
        match moved {
            Ok(()) => {
                self.evict();
                Ok(())
            }
            Err(error) => {
                let _ = remove_tree(scratch);
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Whether the template of a shape is there and nobody has learned yet which pages its machines write to.
    #[must_use]
    pub fn is_to_learn(&self, shape: &Shape) -> bool {
        let directory = self.path(shape);
        directory.exists() && !directory.join(TOUCHED_FILE).exists()
    }

    /// Keeps which pages machines of a template write to, for those that come. A template that is gone is made no more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn learn(&self, shape: &Shape, pages: &TouchedPages) -> Result<(), DurableError> {
        let directory = self.path(shape);
        if !directory.exists() {
            return Ok(());
        }
        durable::write_bytes(&directory.join(TOUCHED_FILE), &pages.to_bytes(), 0o600)
    }

    /// Takes the template of a shape away: it is of no use.
    pub fn discard(&self, shape: &Shape) {
        // Whoever comes next makes another one; what cannot be removed is found by `vmpod gc`.
        let _ = remove_tree(&self.path(shape));
    }

    /// All templates with the time of their last use, that used longest ago first.
    fn all(&self) -> Vec<(SystemTime, String)> {
        let mut found: Vec<(SystemTime, String)> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let used = entry.metadata().ok()?.modified().ok()?;
                Some((used, entry.file_name().into_string().ok()?))
            })
            .collect();
        found.sort();
        found
    }

    fn evict(&self) {
        let all = self.all();
        for (_, name) in all.iter().take(all.len().saturating_sub(KEPT)) {
            let _ = remove_tree(&self.directory.join(name));
        }
    }

    /// Takes away what no pod of this installation will ever use again: templates of other builds and of an earlier boot
    /// of the host cannot be told from names alone, builds can. Returns the names.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn collect(&self, bundle: &Bundle) -> io::Result<Vec<String>> {
        // Parts that are not there have made no template that could be used.
        let own = build(&bundle.vmm, &bundle.vmlinux, &bundle.initramfs).unwrap_or_default();
        let mut removed = Vec::new();
        for (_, name) in self.all() {
            if name.split_once('-').is_none_or(|(build, _)| build != own) {
                remove_tree(&self.directory.join(&name))?;
                removed.push(name);
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmpod_vmm_api::{KernelConfig, NetConfig};

    fn config(dir: &Path) -> MachineConfig {
        for name in ["vmm", "vmlinux", "initramfs"] {
            if !dir.join(name).exists() {
                fs::write(dir.join(name), name).unwrap();
            }
        }
        MachineConfig {
            id: "p".into(),
            vcpus: 1,
            memory_mib: 64,
            kernel: KernelConfig {
                vmlinux: dir.join("vmlinux"),
                initramfs: Some(dir.join("initramfs")),
                extra_cmdline: String::new(),
            },
            console_log: "/c".into(),
            console_log_bytes: 1,
            shares: vec![],
            nets: vec![],
            blocks: vec![],
            vsock: None,
            balloon: false,
            snapshot_to: None,
            restore: None,
            jail: None,
        }
    }

    fn shape(dir: &Path, config: &MachineConfig) -> Shape {
        Shape::of(config, &dir.join("vmm")).unwrap()
    }

    fn templates(dir: &Path) -> (Templates, Roots) {
        let roots = Roots {
            run: dir.join("run"),
            state: dir.join("state"),
        };
        (Templates::of(&roots), roots)
    }

    /// A template as a VMM would have left it.
    fn made(templates: &Templates, roots: &Roots, config: &MachineConfig, shape: &Shape) {
        fs::create_dir_all(roots.pod("a").run).unwrap();
        let scratch = templates.begin(&roots.pod("a"), config).unwrap();
        fs::write(scratch.join("state"), "s").unwrap();
        templates.publish(&scratch, shape).unwrap();
    }

    #[test]
    fn shape_changes_with_what_machines_must_have_in_common_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = config(dir.path());
        let of_base = shape(dir.path(), &base);
        let mut same = base.clone();
        same.id = "q".into();
        same.console_log = "/other".into();
        same.snapshot_to = Some("/x".into());
        assert_eq!(shape(dir.path(), &same), of_base);
        let changes: [fn(&mut MachineConfig); 5] = [
            |c| c.vcpus = 2,
            |c| c.memory_mib = 128,
            |c| c.kernel.extra_cmdline = "debug".into(),
            |c| c.balloon = true,
            |c| {
                c.nets.push(NetConfig {
                    tap_fd: 3,
                    mac: String::new(),
                    mtu: 1450,
                    sender: None,
                    own_network: None,
                });
            },
        ];
        for change in changes {
            let mut other = base.clone();
            change(&mut other);
            assert_ne!(shape(dir.path(), &other), of_base);
        }
        fs::write(dir.path().join("vmlinux"), "a longer kernel").unwrap();
        assert_ne!(shape(dir.path(), &base), of_base);
    }

    #[test]
    fn template_published_twice_is_there_once_and_scratch_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let shape = shape(dir.path(), &config);
        let (templates, roots) = templates(dir.path());
        assert_eq!(templates.find(&shape), None);
        for _ in 0..2 {
            made(&templates, &roots, &config, &shape);
            let found = templates.find(&shape).unwrap();
            assert_eq!(fs::read_to_string(found.join("state")).unwrap(), "s");
            assert!(!roots.pod("a").template().exists());
        }
        templates.discard(&shape);
        assert_eq!(templates.find(&shape), None);
    }

    #[test]
    fn touched_pages_are_learned_once_and_go_with_the_template() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let shape = shape(dir.path(), &config);
        let (templates, roots) = templates(dir.path());
        let mut pages = TouchedPages::default();
        pages.push(7);
        templates.learn(&shape, &pages).unwrap();
        assert!(!templates.is_to_learn(&shape));
        assert_eq!(templates.find(&shape), None);
        made(&templates, &roots, &config, &shape);
        assert!(templates.is_to_learn(&shape));
        templates.learn(&shape, &pages).unwrap();
        assert!(!templates.is_to_learn(&shape));
        let kept = fs::read(templates.find(&shape).unwrap().join(TOUCHED_FILE)).unwrap();
        assert_eq!(TouchedPages::from_bytes(&kept), Some(pages));
        templates.discard(&shape);
        assert!(!templates.is_to_learn(&shape));
    }

    #[test]
    fn templates_beyond_the_bound_go_and_the_one_used_last_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let (templates, roots) = templates(dir.path());
        let first = shape(dir.path(), &config);
        for number in 0..KEPT as u64 + 3 {
            config.memory_mib = 64 + number;
            made(&templates, &roots, &config, &shape(dir.path(), &config));
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert!(templates.find(&first).is_some());
        }
        assert_eq!(templates.all().len(), KEPT);
    }

    #[test]
    fn templates_of_other_builds_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (templates, roots) = templates(dir.path());
        let old = shape(dir.path(), &config);
        made(&templates, &roots, &config, &old);
        fs::write(dir.path().join("vmm"), "another VMM").unwrap();
        let new = shape(dir.path(), &config);
        made(&templates, &roots, &config, &new);
        let bundle = Bundle {
            supervisor: dir.path().join("supervisor"),
            vmm: dir.path().join("vmm"),
            vmlinux: config.kernel.vmlinux.clone(),
            initramfs: dir.path().join("initramfs"),
        };
        assert_eq!(templates.collect(&bundle).unwrap(), [old.to_string()]);
        assert!(templates.find(&new).is_some());
    }
}
