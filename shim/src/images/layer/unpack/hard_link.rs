//! Hard links: within the layer real ones, into the layers below copies, anywhere else refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::super::{beneath, printable};
use super::attributes::{copy_attributes, create_file, set_owner_and_times, times_of};
use super::fault::{During, Fault, refused};
use super::{At, Layer, clean};

/// What a hard link leads to.
pub(super) enum LinkSource {
    /// An object of this layer.
    Here {
        parent: OwnedFd,
        name: Vec<u8>,
        stat: Stat,
    },
    /// An object that a layer below shows, by its canonical components.
    Below(Vec<Vec<u8>>),
}

impl Layer {
    /// Where a hard link leads: to an object of this layer, or of a layer below.
    pub(super) fn hard_link_source(&self, link: &[u8]) -> Result<LinkSource, Fault> {
        let shown = || printable(link);
        let components = match clean(link) {
            Ok(components) if !components.is_empty() => components,
            _ => {
                return refused(format!(
                    "it is a hard link to {}, which is outside the layer",
                    shown()
                ));
            }
        };
        let canonical = match self.view.canonical(&components, false) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return refused(format!(
                    "it is a hard link to {}, which does not exist",
                    shown()
                ));
            }
            other => other.during("resolving the hard link")?,
        };
        let Some(found) = self
            .view
            .lookup(&canonical)
            .during("resolving the hard link")?
        else {
            return refused(format!(
                "it is a hard link to {}, which does not exist",
                shown()
            ));
        };
        if found.kind() == FileType::Directory {
            return refused(format!(
                "it is a hard link to {}, which is a directory",
                shown()
            ));
        }
        if found.layer > 0 {
            return Ok(LinkSource::Below(canonical));
        }
        let Some((name, parents)) = canonical.split_last() else {
            return refused("it is a hard link to the root");
        };
        let parent = beneath::open_dir(self.root.as_fd(), &beneath::join(parents))
            .during("opening the directory of the hard link's target")?;
        Ok(LinkSource::Here {
            parent,
            name: name.clone(),
            stat: found.stat,
        })
    }

    /// Copies an object of a layer below: a hard link cannot reach into another layer's directory.
    pub(super) fn copy_from_below(
        &mut self,
        components: &[Vec<u8>],
        at: &At<'_>,
    ) -> Result<(), Fault> {
        let Some(found) = self
            .lowers
            .lookup(components)
            .during("looking into the layers below")?
        else {
            return refused("it is a hard link to something that this layer removed");
        };
        match found.kind() {
            FileType::RegularFile => {
                let below = self
                    .lowers
                    .open_found(&found, OFlags::RDONLY)
                    .during("opening the file below")?;
                let size = u64::try_from(found.stat.st_size).unwrap_or(0);
                self.account(size)?;
                let mut copy = create_file(at)?;
                io::copy(
                    &mut File::from(below.try_clone().during("opening the file below")?),
                    &mut copy,
                )
                .during("copying the file below")?;
                copy_attributes(&found.stat, below.as_fd(), copy.as_fd())?;
                rustix::fs::futimens(&copy, &times_of(&found.stat)).during("setting its time")
            }
            FileType::Symlink => {
                let target = self
                    .lowers
                    .read_link(&found)
                    .during("reading the link below")?;
                rustix::fs::symlinkat(&target[..], at.parent, at.name)
                    .during("making the symbolic link")?;
                set_owner_and_times(
                    at,
                    found.stat.st_uid,
                    found.stat.st_gid,
                    &times_of(&found.stat),
                )
            }
            kind => {
                rustix::fs::mknodat(at.parent, at.name, kind, Mode::empty(), found.stat.st_rdev)
                    .during("making the node")?;
                set_owner_and_times(
                    at,
                    found.stat.st_uid,
                    found.stat.st_gid,
                    &times_of(&found.stat),
                )?;
                rustix::fs::chmodat(
                    at.parent,
                    at.name,
                    Mode::from_raw_mode(found.stat.st_mode & 0o7777),
                    AtFlags::empty(),
                )
                .during("setting its mode")
            }
        }
    }
}
