//! Writes the entries of one layer's tar stream into one directory, ready to be an overlayfs lower layer.
//!
//! Every path is taken relative to the layer's directory and opened through real directories only
//! (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`). A parent that is a symbolic link is resolved by
//! [`super::merged`] within the image's own root, as a container engine that unpacks onto a mounted overlay would see it.
//! OCI whiteouts become overlay whiteouts (character device 0:0) and opaque directories (OCI image spec, "Layer").
//! Does not clean up: the caller unpacks into a temporary directory and throws it away on error.

mod attributes;
mod fault;
mod hard_link;
mod whiteout;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use thiserror::Error;

use attributes::{copy_attributes, times_of};
use fault::{During, Fault, Step, refused};
use hard_link::LinkSource;

use super::beneath;
use super::merged::{DEPTH_LIMIT, MergedView, view_while_unpacking};
use super::printable;
use super::tar_stream::{EntryKind, Streamed, TarEntry, TarError, TarStream};

/// Prefix of the names by which a layer removes names of the layers below (OCI image spec, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Names that aufs left in old layers; they mean nothing here.
const AUFS: &[u8] = b".wh..wh.";

/// How much a layer may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of file content, and bytes of the uncompressed tar stream.
    pub bytes: u64,
    /// Entries, with extension headers counted.
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
        }
    }
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries written.
    pub entries: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The stream is not a good tar archive.
    #[error("the layer's archive is damaged or hostile")]
    Tar(#[from] TarError),
    /// An entry asks for something outside the layer, or for nonsense.
    #[error("the layer's entry {path} is refused: {reason}")]
    Refused {
        /// The entry, made printable.
        path: String,
        /// Why.
        reason: String,
    },
    /// More than [`UnpackLimits::bytes`].
    #[error("the layer unpacks to more than the limit of {limit} bytes (at {path}); refused")]
    TooLarge {
        /// The entry that passed the limit.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// No space, inodes or quota left.
    #[error(
        "the disk that holds {store} is full (while writing {path} of a layer); free space there, or remove images that no pod uses with `vmpod image rm` and `vmpod gc`"
    )]
    DiskFull {
        /// The directory being filled.
        store: PathBuf,
        /// The entry.
        path: String,
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("writing {path} of the layer into {store} failed: {doing}")]
    Write {
        /// The directory being filled.
        store: PathBuf,
        /// The entry.
        path: String,
        /// The step that failed.
        doing: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Unpacks the (uncompressed) tar stream of one layer into the empty directory `dir`, on top of the unpacked
/// layers `lowers` (top-most first). Stops at the archive's end mark; what follows it is left unread.
///
/// # Errors
/// [`UnpackError`]; `dir` is then half filled and has to be thrown away.
pub fn unpack<R: Read>(
    reader: R,
    dir: &Path,
    lowers: &[PathBuf],
    limits: &UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let mut layer = Layer::start(dir, lowers, *limits)?;
    let mut stream = TarStream::new(Streamed(reader), limits.entries);
    while let Some(entry) = stream.next_entry()? {
        layer.apply(&entry, &mut stream)?;
    }
    layer.finish()
}

/// The layer being written.
struct Layer {
    dir: PathBuf,
    root: OwnedFd,
    /// This layer's directory on top of the lower ones.
    view: MergedView,
    /// The lower ones only.
    lowers: MergedView,
    limits: UnpackLimits,
    done: Unpacked,
    /// Directory times are set last, as writing into a directory changes its own.
    directory_times: BTreeMap<Vec<u8>, Timestamps>,
    /// The directory of the entry before, which is mostly that of the next one too.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
}

impl Layer {
    fn start(dir: &Path, lowers: &[PathBuf], limits: UnpackLimits) -> Result<Self, UnpackError> {
        let failed = |doing| {
            let store = dir.to_path_buf();
            move |source| UnpackError::Write {
                store,
                path: "/".into(),
                doing,
                source,
            }
        };
        let root = beneath::open_root(dir)
            .map_err(io::Error::from)
            .map_err(failed("opening its directory"))?;
        let view = view_while_unpacking(dir, lowers).map_err(failed("opening the layers"))?;
        let lowers = MergedView::open(lowers).map_err(failed("opening the layers below"))?;
        let mut layer = Self {
            dir: dir.to_path_buf(),
            root,
            view,
            lowers,
            limits,
            done: Unpacked {
                bytes: 0,
                entries: 0,
            },
            directory_times: BTreeMap::new(),
            last_parent: None,
        };
        // A layer without an entry for its root leaves the root as it was below.
        layer
            .copy_directory_below(
                &[],
                layer_root_dup(&layer)
                    .map_err(failed("opening its directory"))?
                    .as_fd(),
            )
            .map_err(|fault| layer.explain(fault, b"/"))?;
        Ok(layer)
    }

    fn explain(&self, fault: Fault, path: &[u8]) -> UnpackError {
        let (store, path) = (self.dir.clone(), printable(path));
        match fault {
            Fault::Refused(reason) => UnpackError::Refused { path, reason },
            Fault::TooLarge => UnpackError::TooLarge {
                path,
                limit: self.limits.bytes,
            },
            Fault::Tar(error) => UnpackError::Tar(error),
            Fault::Step(Step(doing, source)) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    UnpackError::DiskFull {
                        store,
                        path,
                        source,
                    }
                }
                _ => UnpackError::Write {
                    store,
                    path,
                    doing,
                    source,
                },
            },
        }
    }

    fn apply(&mut self, entry: &TarEntry, data: &mut impl Read) -> Result<(), UnpackError> {
        self.done.entries += 1;
        self.apply_entry(entry, data)
            .map_err(|fault| self.explain(fault, &entry.path))
    }

    fn apply_entry(&mut self, entry: &TarEntry, data: &mut impl Read) -> Result<(), Fault> {
        let components = clean(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            if entry.kind != EntryKind::Directory {
                return refused("it would replace the root directory");
            }
            let root = self.root_fd()?;
            return self.set_attributes(entry, &root, b"");
        };
        if name.starts_with(WHITEOUT) {
            return self.apply_whiteout(name, parents);
        }
        // The target is looked up before anything of the same name is removed: it may be that very name.
        let source = match entry.kind {
            EntryKind::HardLink => Some(self.hard_link_source(&entry.link)?),
            _ => None,
        };
        let (parent_path, parent) = self.parent(parents)?;
        let path = child_path(&parent_path, name);
        let existing = beneath::stat(parent.as_fd(), name).during("looking at what is there")?;
        match (existing, &source) {
            (Some(old), Some(LinkSource::Here { stat, .. }))
                if old.st_ino == stat.st_ino && old.st_dev == stat.st_dev =>
            {
                self.keep_parent(parent_path, parent);
                return Ok(());
            }
            (Some(old), _)
                if beneath::kind(&old) == FileType::Directory
                    && entry.kind == EntryKind::Directory => {}
            (Some(_), _) => {
                self.last_parent = None;
                beneath::remove_tree(parent.as_fd(), name)
                    .during("replacing what an earlier entry left")?;
            }
            (None, _) => {}
        }
        let at = At {
            parent: parent.as_fd(),
            name,
            path: &path,
        };
        match &entry.kind {
            EntryKind::File { sparse } => self.write_file(entry, sparse.as_deref(), &at, data)?,
            EntryKind::Directory => {
                let made = make_directory(at.parent, name)?;
                let fd = beneath::open(at.parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .during("opening the new directory")?;
                if made && existing.is_some() {
                    // What stood here (a file, a whiteout) hid the directory of the layers below: so must this one.
                    beneath::set_opaque(fd.as_fd()).during(
                        "marking the directory opaque (does the file system have trusted xattrs?)",
                    )?;
                }
                self.set_attributes(entry, &fd, &path)?;
            }
            EntryKind::Symlink => {
                if entry.link.is_empty() {
                    return refused("it is a symbolic link to nothing");
                }
                rustix::fs::symlinkat(&entry.link[..], at.parent, name)
                    .during("making the symbolic link")?;
                self.set_attributes_at(entry, &at)?;
            }
            EntryKind::HardLink => match source {
                Some(LinkSource::Here {
                    parent, name: old, ..
                }) => {
                    rustix::fs::linkat(
                        &parent,
                        OsStr::from_bytes(&old),
                        at.parent,
                        name,
                        AtFlags::empty(),
                    )
                    .during("making the hard link")?;
                }
                Some(LinkSource::Below(components)) => self.copy_from_below(&components, &at)?,
                None => {}
            },
            EntryKind::Fifo => self.make_node(entry, FileType::Fifo, 0, &at)?,
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                let kind = if entry.kind == EntryKind::CharDevice {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                self.make_node(entry, kind, device, &at)?;
            }
        }
        self.keep_parent(parent_path, parent);
        Ok(())
    }

    fn keep_parent(&mut self, path: Vec<u8>, fd: OwnedFd) {
        self.last_parent = Some((path, fd));
    }

    fn root_fd(&self) -> Result<OwnedFd, Fault> {
        layer_root_dup(self).during("opening the layer's directory")
    }

    /// The directory for an entry with these parents, made where it is missing, and its canonical path.
    fn parent(&mut self, parents: &[Vec<u8>]) -> Result<(Vec<u8>, OwnedFd), Fault> {
        let path = beneath::join(parents);
        if let Some((last, fd)) = self.last_parent.take()
            && last == path
        {
            return Ok((last, fd));
        }
        match beneath::open_dir(self.root.as_fd(), &path) {
            Ok(fd) => return Ok((path, fd)),
            // Something is missing, is a link, or is no directory: go through it component by component.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(error).during("opening its directory"),
        }
        let canonical = match self.view.canonical(parents, true) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return refused("one of its parents is not a directory");
            }
            other => other.during("resolving its directory")?,
        };
        for depth in 1..=canonical.len() {
            self.ensure_directory(canonical.get(..depth).unwrap_or_default())?;
        }
        let path = beneath::join(&canonical);
        let fd = beneath::open_dir(self.root.as_fd(), &path).during("opening its directory")?;
        Ok((path, fd))
    }

    /// Makes one canonical directory of this layer, whose parent exists. It looks as it does in the layers below.
    fn ensure_directory(&mut self, components: &[Vec<u8>]) -> Result<(), Fault> {
        let Some((name, parents)) = components.split_last() else {
            return Ok(());
        };
        let parent = beneath::open_dir(self.root.as_fd(), &beneath::join(parents))
            .during("opening its directory")?;
        let existing = beneath::stat(parent.as_fd(), name).during("looking at its directory")?;
        match existing {
            Some(stat) if beneath::kind(&stat) == FileType::Directory => return Ok(()),
            Some(stat) if beneath::is_whiteout(&stat) => {
                rustix::fs::unlinkat(&parent, &name[..], AtFlags::empty())
                    .during("replacing a whiteout")?;
            }
            Some(_) => return refused("one of its parents is not a directory"),
            None => {}
        }
        make_directory(parent.as_fd(), name)?;
        let fd = beneath::open(parent.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
            .during("opening its directory")?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
            .during("setting the mode of its directory")?;
        if existing.is_some() {
            return beneath::set_opaque(fd.as_fd()).during("marking its directory opaque");
        }
        self.copy_directory_below(components, fd.as_fd())
    }

    /// Gives a directory of this layer the attributes that it has in the layers below, where it exists there.
    fn copy_directory_below(
        &mut self,
        components: &[Vec<u8>],
        fd: BorrowedFd<'_>,
    ) -> Result<(), Fault> {
        let Some(found) = self
            .lowers
            .lookup(components)
            .during("looking into the layers below")?
        else {
            return Ok(());
        };
        if found.kind() != FileType::Directory {
            return Ok(());
        }
        let below = self
            .lowers
            .open_found(&found, OFlags::RDONLY | OFlags::DIRECTORY)
            .during("opening a directory below")?;
        copy_attributes(&found.stat, below.as_fd(), fd)?;
        self.directory_times
            .insert(beneath::join(components), times_of(&found.stat));
        Ok(())
    }

    fn account(&mut self, bytes: u64) -> Result<(), Fault> {
        self.done.bytes = self.done.bytes.saturating_add(bytes);
        if self.done.bytes > self.limits.bytes {
            Err(Fault::TooLarge)
        } else {
            Ok(())
        }
    }

    fn finish(self) -> Result<Unpacked, UnpackError> {
        for (path, times) in &self.directory_times {
            // A later entry may have replaced the directory: then its times are nobody's.
            let Ok(fd) = beneath::open(self.root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)
            else {
                continue;
            };
            rustix::fs::futimens(&fd, times)
                .during("setting its time")
                .map_err(|fault| self.explain(fault, path))?;
        }
        Ok(self.done)
    }
}

/// Where an entry is written.
struct At<'a> {
    parent: BorrowedFd<'a>,
    name: &'a [u8],
    /// The canonical path in the layer.
    path: &'a [u8],
}

/// The components of an archive's path: relative, without `.`; absolute paths count from the image's root.
fn clean(path: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    let parts: Vec<Vec<u8>> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect();
    if parts.iter().any(|part| part == b"..") {
        return refused("its path goes up with `..`");
    }
    if parts.len() > DEPTH_LIMIT {
        return refused(format!(
            "its path is more than {DEPTH_LIMIT} directories deep"
        ));
    }
    Ok(parts)
}

fn child_path(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

fn layer_root_dup(layer: &Layer) -> io::Result<OwnedFd> {
    Ok(beneath::open(
        layer.root.as_fd(),
        b"",
        OFlags::RDONLY | OFlags::DIRECTORY,
    )?)
}

/// Whether the directory was made; `false` when it was there.
fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Fault> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error).during("making the directory"),
    }
}
