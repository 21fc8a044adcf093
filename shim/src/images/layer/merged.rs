//! Paths looked up across layers as an overlay mount of them would show them, without mounting.
//!
//! Used to unpack a layer on top of others and to read `/etc/passwd` of an image that nobody has started.
//! Symbolic links are resolved by this module within the merged root, never by the kernel.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::beneath;

/// Links followed before a path counts as a loop; the kernel's own limit.
const LINK_LIMIT: usize = 40;
/// Components of a resolved path. Removing a tree takes one open directory a level, so deeper ones are refused.
pub(super) const DEPTH_LIMIT: usize = 512;

/// An object found in the merged view.
#[derive(Debug, Clone)]
pub struct Found {
    /// Index of the layer that shows it, 0 being the top-most.
    pub layer: usize,
    /// Its components in that layer; no link among the parents.
    pub components: Vec<Vec<u8>>,
    /// What it is.
    pub stat: Stat,
}

impl Found {
    /// The kind of object.
    #[must_use]
    pub fn kind(&self) -> FileType {
        beneath::kind(&self.stat)
    }
}

/// Layer directories seen as one tree, top-most first.
#[derive(Debug)]
pub struct MergedView {
    layers: Vec<OwnedFd>,
}

impl MergedView {
    /// Opens layer directories, top-most first (the order of `Image::layers` and of overlay's `lowerdir=`).
    ///
    /// # Errors
    /// I/O errors that name the directory.
    pub fn open<P: AsRef<Path>>(layers: &[P]) -> io::Result<Self> {
        let open = |path: &P| {
            let path = path.as_ref();
            beneath::open_root(path).map_err(|errno| {
                let error = io::Error::from(errno);
                io::Error::new(
                    error.kind(),
                    format!("opening the layer {}: {error}", path.display()),
                )
            })
        };
        Ok(Self {
            layers: layers.iter().map(open).collect::<io::Result<_>>()?,
        })
    }

    /// Finds the object at exactly these components; links are not followed, and a link among the parents
    /// means that there is nothing.
    ///
    /// # Errors
    /// I/O errors other than "nothing there".
    pub fn lookup(&self, components: &[Vec<u8>]) -> io::Result<Option<Found>> {
        let mut candidates: Vec<usize> = (0..self.layers.len()).collect();
        let mut found = None;
        for depth in 0..=components.len() {
            let prefix = components.get(..depth).unwrap_or_default();
            let path = beneath::join(prefix);
            let mut next = Vec::new();
            found = None;
            let lowest = candidates.last().copied();
            for index in candidates {
                let Some(layer) = self.layers.get(index) else {
                    continue;
                };
                let object =
                    match beneath::open(layer.as_fd(), &path, OFlags::PATH | OFlags::NOFOLLOW) {
                        Ok(object) => object,
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                        Err(error) => return Err(error.into()),
                    };
                let stat = rustix::fs::fstat(&object)?;
                let is_dir = beneath::kind(&stat) == FileType::Directory;
                if beneath::is_whiteout(&stat) {
                    break;
                }
                if found.is_none() {
                    found = Some(Found {
                        layer: index,
                        components: prefix.to_vec(),
                        stat,
                    });
                }
                if !is_dir {
                    break;
                }
                next.push(index);
                // What is below the lowest is not asked about.
                if lowest != Some(index) && beneath::is_opaque(object.as_fd()) {
                    break;
                }
            }
            if found.is_none() || (next.is_empty() && depth < components.len()) {
                return Ok(None);
            }
            candidates = next;
        }
        Ok(found)
    }

    /// Where `components` lead once every link on the way is followed inside the merged root. Components
    /// that do not exist are kept as they are. The last one is followed only if `follow_last`.
    ///
    /// # Errors
    /// `NotADirectory` when a parent is a file, `FilesystemLoop` for too many links, and I/O errors.
    pub fn canonical(&self, components: &[Vec<u8>], follow_last: bool) -> io::Result<Vec<Vec<u8>>> {
        let mut queue: VecDeque<Vec<u8>> = components.to_vec().into();
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(component) = queue.pop_front() {
            if component == b".." {
                resolved.pop();
                continue;
            }
            resolved.push(component);
            if resolved.len() > DEPTH_LIMIT {
                return Err(Errno::NAMETOOLONG.into());
            }
            let last = queue.is_empty();
            let Some(found) = self.lookup(&resolved)? else {
                continue;
            };
            match found.kind() {
                FileType::Directory => {}
                FileType::Symlink if last && !follow_last => {}
                FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(Errno::LOOP.into());
                    }
                    let target = self.read_link(&found)?;
                    resolved.pop();
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        if !part.is_empty() && part != b"." {
                            queue.push_front(part.to_vec());
                        }
                    }
                }
                _ if last => {}
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok(resolved)
    }

    /// The target of a link that [`MergedView::lookup`] found.
    ///
    /// # Errors
    /// I/O errors.
    pub fn read_link(&self, link: &Found) -> io::Result<Vec<u8>> {
        let object = self.open_found(link, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::readlinkat(&object, "", Vec::new())?.into_bytes())
    }

    /// Opens what [`MergedView::lookup`] found.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn open_found(&self, found: &Found, flags: OFlags) -> io::Result<OwnedFd> {
        let layer = self.layers.get(found.layer).ok_or(Errno::NOENT)?;
        Ok(beneath::open(
            layer.as_fd(),
            &beneath::join(&found.components),
            flags,
        )?)
    }

    /// Opens the regular file at `path` (absolute in the merged root), following links inside it.
    /// `None` when there is nothing.
    ///
    /// # Errors
    /// I/O errors, among them `InvalidInput` when it is not a regular file.
    pub fn open_file(&self, path: &Path) -> io::Result<Option<File>> {
        let components: Vec<Vec<u8>> = path
            .as_os_str()
            .as_bytes()
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(<[u8]>::to_vec)
            .collect();
        let canonical = match self.canonical(&components, true) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            other => other?,
        };
        let Some(found) = self.lookup(&canonical)? else {
            return Ok(None);
        };
        let layer = self.layers.get(found.layer).ok_or(Errno::NOENT)?;
        beneath::open_regular(layer.as_fd(), &beneath::join(&found.components)).map(Some)
    }
}

/// The directory that holds `dir` on top of `lowers`: the view while a layer is being unpacked.
pub(super) fn view_while_unpacking(dir: &Path, lowers: &[PathBuf]) -> io::Result<MergedView> {
    let mut all = vec![dir.to_path_buf()];
    all.extend_from_slice(lowers);
    MergedView::open(&all)
}
