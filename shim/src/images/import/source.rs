//! Members of an image archive by name: files of a directory, or ranges of an uncompressed tar file.
//!
//! A compressed tar is first uncompressed into the caller's scratch directory, as layers are read out of order.
//! Links in the archive lead to other members only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::os::fd::AsFd;
use std::path::Path;

use super::super::layer::compression::{Compression, decompress};
use super::super::layer::tar_stream::{self, EntryKind};
use super::super::layer::unpack::UnpackLimits;
use super::super::layer::{beneath_open_regular, printable};
use super::ImportCause;

/// Most members of an archive of images; a layer has two or three.
const MEMBER_LIMIT: u64 = 200_000;
/// Links followed from one member to another.
const LINK_LIMIT: usize = 8;

/// An opened archive.
pub(super) enum Source {
    /// A directory, by its handle.
    Directory(File),
    /// A tar file and where its members are.
    Tar {
        file: File,
        members: HashMap<String, Member>,
    },
}

/// A member of a tar file.
pub(super) enum Member {
    /// Offset and length of its bytes.
    File(u64, u64),
    /// The member that a link leads to.
    Link(String),
}

/// A reader of one member.
pub(super) enum MemberReader {
    File(BufReader<File>),
    Range(BufReader<Take<File>>),
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(inner) => inner.read(buffer),
            Self::Range(inner) => inner.read(buffer),
        }
    }
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> ImportCause {
    move |source| ImportCause::Io { doing, source }
}

impl Source {
    /// Opens a directory or a tar file; a compressed one is uncompressed into `scratch`.
    pub(super) fn open(
        path: &Path,
        scratch: &Path,
        limits: &UnpackLimits,
    ) -> Result<Self, ImportCause> {
        let mut file = File::open(path).map_err(io("opening it"))?;
        let metadata = file.metadata().map_err(io("looking at it"))?;
        if metadata.is_dir() {
            return Ok(Self::Directory(file));
        }
        let mut start = [0; 4];
        let read = file.read(&mut start).map_err(io("reading it"))?;
        file.seek(SeekFrom::Start(0))
            .or_else(|error| {
                if metadata.is_file() {
                    Err(error)
                } else {
                    Ok(0)
                }
            })
            .map_err(io("reading it"))?;
        if Compression::sniff(start.get(..read).unwrap_or_default()) != Compression::None {
            file = uncompress(file, scratch, limits)?;
        }
        let mut members = HashMap::new();
        for entry in tar_stream::list(file.try_clone().map_err(io("reading it"))?, MEMBER_LIMIT)? {
            let Some(name) = normal(&entry.path, "") else {
                continue;
            };
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let member = match entry.kind {
                EntryKind::File { sparse: None } => Member::File(entry.data_offset, entry.size),
                // Old docker archives say by a link that a layer is the same as another's.
                EntryKind::Symlink => match normal(&entry.link, folder) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                EntryKind::HardLink => match normal(&entry.link, "") {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self::Tar { file, members })
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => {
                beneath_open_regular(directory.as_fd(), name.as_bytes()).is_ok()
            }
            Self::Tar { .. } => self.range(name).is_some(),
        }
    }

    /// Opens a member by its normalised name.
    pub(super) fn open_member(&self, name: &str) -> Result<MemberReader, ImportCause> {
        let missing = || ImportCause::Missing {
            member: printable(name.as_bytes()),
        };
        match self {
            Self::Directory(directory) => {
                match beneath_open_regular(directory.as_fd(), name.as_bytes()) {
                    Ok(file) => Ok(MemberReader::File(BufReader::new(file))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
                    Err(error) => Err(io("opening one of its files")(error)),
                }
            }
            Self::Tar { file, .. } => {
                let (offset, length) = self.range(name).ok_or_else(missing)?;
                // A handle of its own, as a duplicate would share the position.
                let mut own = reopen(file).map_err(io("opening it again"))?;
                own.seek(SeekFrom::Start(offset))
                    .map_err(io("reading it"))?;
                Ok(MemberReader::Range(BufReader::with_capacity(
                    128 << 10,
                    own.take(length),
                )))
            }
        }
    }

    /// A whole member, which must not be larger than `limit`.
    pub(super) fn read_member(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImportCause> {
        let mut bytes = Vec::new();
        self.open_member(name)?
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(io("reading one of its files"))?;
        if bytes.len() as u64 > limit {
            return Err(super::ManifestError::TooLarge {
                what: "document in the archive",
                limit,
            }
            .into());
        }
        Ok(bytes)
    }

    /// The number of bytes of a member.
    pub(super) fn size(&self, name: &str) -> Result<u64, ImportCause> {
        match self {
            Self::Directory(directory) => {
                let file =
                    beneath_open_regular(directory.as_fd(), name.as_bytes()).map_err(|_| {
                        ImportCause::Missing {
                            member: printable(name.as_bytes()),
                        }
                    })?;
                Ok(file
                    .metadata()
                    .map_err(io("looking at one of its files"))?
                    .len())
            }
            Self::Tar { .. } => {
                self.range(name)
                    .map(|(_, length)| length)
                    .ok_or_else(|| ImportCause::Missing {
                        member: printable(name.as_bytes()),
                    })
            }
        }
    }

    fn range(&self, name: &str) -> Option<(u64, u64)> {
        let Self::Tar { members, .. } = self else {
            return None;
        };
        let mut name = normal(name.as_bytes(), "")?;
        for _ in 0..LINK_LIMIT {
            match members.get(&name)? {
                Member::File(offset, length) => return Some((*offset, *length)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

fn reopen(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn uncompress(file: File, scratch: &Path, limits: &UnpackLimits) -> Result<File, ImportCause> {
    let mut plain = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(scratch.join("archive.tar"))
        .map_err(io("making a scratch file"))?;
    let mut stream = decompress(file)
        .map_err(io("uncompressing it"))?
        .take(limits.bytes.saturating_add(1));
    let written =
        io::copy(&mut stream, &mut plain).map_err(io("uncompressing it into the image store"))?;
    if written > limits.bytes {
        return Err(io("uncompressing it")(io::Error::other(format!(
            "it is larger than the limit of {} bytes",
            limits.bytes
        ))));
    }
    Ok(plain)
}

/// A member's name without `.` and `..`, taken relative to `folder`; `None` when it leads out of the archive or is not text.
fn normal(path: &[u8], folder: &str) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = if path.starts_with('/') {
        Vec::new()
    } else {
        folder.split('/').filter(|part| !part.is_empty()).collect()
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
