//! System calls on paths below one directory: nothing here can reach outside it or through a symbolic link.
//!
//! Thin: each function is one system call or two. Deciding what to do is the caller's.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// The attribute by which overlayfs knows that a directory hides the directories below it
/// (kernel documentation, filesystems/overlayfs, "whiteouts and opaque directories").
const OPAQUE: &str = "trusted.overlay.opaque";

/// Opens `path` (relative, `.` for the directory itself) below `root`, through real directories only.
pub(super) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // openat2(2): the kernel could not be sure that a concurrent rename led nowhere else.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens the directory `path` below `root` as a handle.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens a directory that the caller trusts, by its host path.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What `name` in `parent` is, without following it; `None` when there is nothing.
pub(super) fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kind of file that `stat` describes.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether this is overlayfs' mark for a removed name: a character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The path by which calls that take only paths reach an open object itself, even a symbolic link.
fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether a directory hides those below it.
pub(super) fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 2];
    matches!(rustix::fs::getxattr(fd_path(dir), OPAQUE, &mut value), Ok(1) if value[0] == b'y')
}

/// Makes a directory hide those below it.
pub(super) fn set_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::setxattr(fd_path(dir), OPAQUE, b"y", XattrFlags::empty())
}

/// Sets an extended attribute on an open object of any kind.
pub(super) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::fs::setxattr(fd_path(fd), name, value, XattrFlags::empty())
}

/// An extended attribute: name and value.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// All extended attributes of an open object that a layer may carry.
pub(super) fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX are both 64 KiB.
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::listxattr(fd_path(fd), &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names
        .get(..length)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
    {
        if !xattr_allowed(name) {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let size = rustix::fs::getxattr(fd_path(fd), name, &mut value)?;
        value.truncate(size);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Which attributes of an image may reach the host's file system: those of users, file capabilities and
/// POSIX access lists. Labels of security modules and overlayfs' own attributes (which could redirect lookups) may not.
pub(super) fn xattr_allowed(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// Removes `name` from `parent`, with everything below it when it is a directory. Follows no links.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    // A stack of open directories instead of recursion: depth is up to the archive.
    let Some(stat) = stat(parent, name)? else {
        return Ok(());
    };
    if kind(&stat) != FileType::Directory {
        return rustix::fs::unlinkat(parent, name, AtFlags::empty());
    }
    let open_child =
        |at: BorrowedFd<'_>, name: &[u8]| open(at, name, OFlags::RDONLY | OFlags::DIRECTORY);
    let mut stack = vec![(open_child(parent, name)?, name.to_vec())];
    while let Some((dir, name)) = stack.pop() {
        let mut deeper = None;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if child == b"." || child == b".." {
                continue;
            }
            match rustix::fs::unlinkat(&dir, child, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    deeper = Some((open_child(dir.as_fd(), child)?, child.to_vec()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(deeper) = deeper {
            stack.push((dir, name));
            stack.push(deeper);
            if stack.len() > 1024 {
                return Err(Errno::LOOP);
            }
        } else {
            let above = stack.last().map_or(parent, |(fd, _)| fd.as_fd());
            rustix::fs::unlinkat(above, &name[..], AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Opens a regular file below `root` for reading; anything else (a fifo would block) is refused.
pub(in super::super) fn open_regular(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<File> {
    let fd = open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    )?;
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// Components joined with slashes; empty for the root.
pub(super) fn join(components: &[Vec<u8>]) -> Vec<u8> {
    components.join(&b'/')
}
