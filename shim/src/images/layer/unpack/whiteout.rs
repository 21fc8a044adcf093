//! OCI whiteouts (image spec, "Layer", "Whiteouts") as overlayfs knows them: a character device 0:0 for a name,
//! an attribute for a directory that hides those below it.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode};

use super::super::beneath;
use super::fault::{During, Fault, refused};
use super::{AUFS, Layer, OPAQUE_WHITEOUT, WHITEOUT};

impl Layer {
    pub(super) fn apply_whiteout(&mut self, name: &[u8], parents: &[Vec<u8>]) -> Result<(), Fault> {
        if name == OPAQUE_WHITEOUT {
            let (path, parent) = self.parent(parents)?;
            beneath::set_opaque(parent.as_fd()).during(
                "marking the directory opaque (does the file system have trusted xattrs?)",
            )?;
            self.keep_parent(path, parent);
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = name.get(WHITEOUT.len()..).unwrap_or_default();
        if matches!(hidden, b"" | b"." | b"..") {
            return refused("it is a whiteout of no name");
        }
        // Parents are resolved without making them: a whiteout of what is not there must not make anything appear.
        let mut target = match self.view.canonical(parents, true) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
            other => other.during("resolving its directory")?,
        };
        target.push(hidden.to_vec());
        if self
            .lowers
            .lookup(&target)
            .during("looking into the layers below")?
            .is_none()
        {
            return Ok(());
        }
        let (path, parent) = self.parent(
            target
                .split_last()
                .map(|(_, parents)| parents)
                .unwrap_or_default(),
        )?;
        match beneath::stat(parent.as_fd(), hidden).during("looking at what is there")? {
            // Whiteouts hide what is below only: what this layer itself brought stays.
            Some(stat) if beneath::kind(&stat) == FileType::Directory => {
                let dir =
                    beneath::open_dir(parent.as_fd(), hidden).during("opening the directory")?;
                beneath::set_opaque(dir.as_fd()).during("marking the directory opaque")?;
            }
            Some(_) => {}
            None => {
                rustix::fs::mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .during("making the whiteout")?
            }
        }
        self.keep_parent(path, parent);
        Ok(())
    }
}
