//! A small memory file system that only this process sees: what an input makes the program write is bounded, and gone
//! with it.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where it is mounted: a directory that every host has.
const PLACE: &str = "/mnt";

/// The directory of a target.
#[derive(Debug)]
pub struct Scratch;

impl Scratch {
    /// Leaves the mount namespace of the host and mounts the file system. Once per process.
    ///
    /// # Panics
    /// Without the rights of root.
    #[must_use]
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("leave the host's mount namespace, as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("keep mounts to this process");
        mount(
            none,
            PLACE,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("size=16m,nr_inodes=4096"),
        )
        .expect("mount a tmpfs");
        Self
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &'static Path {
        Path::new(PLACE)
    }

    /// An empty directory called `name`, whatever was there before.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn fresh(&self, name: &str) -> std::path::PathBuf {
        let path = self.path().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("make a directory in the tmpfs");
        path
    }
}
