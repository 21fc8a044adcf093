//! Content and attributes of one entry: bytes, holes, owner, mode, extended attributes, times.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::beneath;
use super::super::tar_stream::{EntryKind, TarEntry, TarError};
use super::fault::{During, Fault};
use super::{At, Layer};

impl Layer {
    pub(super) fn write_file(
        &mut self,
        entry: &TarEntry,
        sparse: Option<&[(u64, u64)]>,
        at: &At<'_>,
        data: &mut impl Read,
    ) -> Result<(), Fault> {
        // Claimed sizes are counted before a byte is written; a false claim ends as a cut archive.
        self.account(entry.size)?;
        let mut file = create_file(at)?;
        match sparse {
            None => copy_exactly(data, &mut file, entry.size)?,
            Some(segments) => {
                for (offset, length) in segments {
                    file.seek(SeekFrom::Start(*offset))
                        .during("seeking in the sparse file")?;
                    copy_exactly(data, &mut file, *length)?;
                }
                file.set_len(entry.size)
                    .during("setting the size of the sparse file")?;
            }
        }
        self.set_attributes(entry, &OwnedFd::from(file), at.path)
    }

    /// Owner first, as chown clears setuid bits and file capabilities; times last.
    pub(super) fn set_attributes(
        &mut self,
        entry: &TarEntry,
        fd: &OwnedFd,
        path: &[u8],
    ) -> Result<(), Fault> {
        rustix::fs::fchown(
            fd,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .during("setting its owner")?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).during("setting its mode")?;
        for (name, value) in entry
            .xattrs
            .iter()
            .filter(|(name, _)| beneath::xattr_allowed(name))
        {
            beneath::set_xattr(fd.as_fd(), name, value).during("setting an extended attribute")?;
        }
        let times = times(entry);
        if entry.kind == EntryKind::Directory {
            self.directory_times.insert(path.to_vec(), times);
            return Ok(());
        }
        rustix::fs::futimens(fd, &times).during("setting its time")
    }

    /// For what cannot be opened without an effect: links and device nodes, fifos.
    pub(super) fn set_attributes_at(&self, entry: &TarEntry, at: &At<'_>) -> Result<(), Fault> {
        let fd = beneath::open(at.parent, at.name, OFlags::PATH | OFlags::NOFOLLOW)
            .during("opening it")?;
        if entry.kind != EntryKind::Symlink {
            rustix::fs::chownat(
                at.parent,
                at.name,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .during("setting its owner")?;
            rustix::fs::chmodat(
                at.parent,
                at.name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .during("setting its mode")?;
        }
        for (name, value) in entry
            .xattrs
            .iter()
            .filter(|(name, _)| beneath::xattr_allowed(name))
        {
            match beneath::set_xattr(fd.as_fd(), name, value) {
                // xattr(7): user attributes exist on files and directories only.
                Err(Errno::PERM | Errno::NOTSUP) => {}
                other => other.during("setting an extended attribute")?,
            }
        }
        set_owner_and_times(at, entry.uid, entry.gid, &times(entry))
    }

    pub(super) fn make_node(
        &self,
        entry: &TarEntry,
        kind: FileType,
        device: u64,
        at: &At<'_>,
    ) -> Result<(), Fault> {
        rustix::fs::mknodat(at.parent, at.name, kind, Mode::empty(), device)
            .during("making the device node (only root may)")?;
        if kind == FileType::CharacterDevice && device == 0 {
            // A whiteout by another way: it hides the name and carries nothing else.
            return Ok(());
        }
        self.set_attributes_at(entry, at)
    }
}

pub(super) fn create_file(at: &At<'_>) -> Result<File, Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at.parent, at.name, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .during("making the file")
}

/// Copies `count` bytes; the reader's own errors (a cut archive, a decompressor's) are told from the disk's.
pub(super) fn copy_exactly(data: &mut impl Read, file: &mut File, count: u64) -> Result<(), Fault> {
    let mut buffer = vec![0_u8; usize::try_from(count.min(128 << 10)).unwrap_or(0)];
    let mut left = count;
    while left > 0 {
        let want = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let chunk = buffer.get_mut(..want).unwrap_or_default();
        let read = match data.read(chunk) {
            Ok(0) => {
                return Err(Fault::Tar(TarError::Truncated {
                    what: "a file".into(),
                    offset: count - left,
                }));
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(Fault::Tar(TarError::Read {
                    offset: count - left,
                    source,
                }));
            }
        };
        file.write_all(chunk.get(..read).unwrap_or_default())
            .during("writing its content")?;
        left -= read as u64;
    }
    Ok(())
}

pub(super) fn copy_attributes(
    stat: &Stat,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
) -> Result<(), Fault> {
    rustix::fs::fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
    .during("setting its owner")?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .during("setting its mode")?;
    for (name, value) in beneath::xattrs(from).during("reading extended attributes below")? {
        beneath::set_xattr(to, &name, &value).during("setting an extended attribute")?;
    }
    Ok(())
}

pub(super) fn set_owner_and_times(
    at: &At<'_>,
    uid: u32,
    gid: u32,
    times: &Timestamps,
) -> Result<(), Fault> {
    rustix::fs::chownat(
        at.parent,
        at.name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .during("setting its owner")?;
    rustix::fs::utimensat(at.parent, at.name, times, AtFlags::SYMLINK_NOFOLLOW)
        .during("setting its time")
}

pub(super) fn times_of(stat: &Stat) -> Timestamps {
    #[expect(
        clippy::cast_possible_wrap,
        reason = "nanoseconds are below a thousand million"
    )]
    let nanos = stat.st_mtime_nsec as i64;
    both(Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: nanos,
    })
}

pub(super) fn times(entry: &TarEntry) -> Timestamps {
    both(Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: i64::from(entry.mtime.1),
    })
}

pub(super) fn both(time: Timespec) -> Timestamps {
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
