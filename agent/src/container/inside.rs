//! Paths inside a container's root, resolved so that no symbolic link of an image or a volume leads out of it.
//!
//! All resolution is the kernel's (openat2 with RESOLVE_IN_ROOT); results are O_PATH descriptors and are used as such.
//! Source: openat2(2).

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};

/// Links to follow are resolved as if the root directory were `/`.
const RESOLVE_IN_ROOT: u64 = 0x10;
/// Resolution may not leave the starting directory at all.
const RESOLVE_BENEATH: u64 = 0x08;
/// Links in /proc that jump are refused.
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;

/// Attempts while somebody renames directories under the resolution (EAGAIN).
const ATTEMPTS: usize = 32;

/// Links that are followed to what is missing.
const MAXIMUM_LINKS: usize = 8;

/// What a mount point is made as when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An empty directory, mode 0755.
    Directory,
    /// An empty file.
    File,
}

fn openat2(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: libc::c_int,
    resolve: u64,
) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: open_how is plain data for which all zeroes is valid.
    let mut how: libc::open_how = unsafe { mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).unsigned_abs());
    how.resolve = resolve;
    for _ in 0..ATTEMPTS {
        // SAFETY: the path is NUL-terminated, the structure has the size given; both outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                mem::size_of::<libc::open_how>(),
            )
        };
        if result >= 0 {
            let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
            // SAFETY: the kernel returned a descriptor that nobody else owns.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        match Errno::last() {
            Errno::EAGAIN | Errno::EINTR => {}
            error => return Err(error.into()),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Opens `path` inside `root` with `flags` (O_CLOEXEC is added).
pub fn open(root: impl AsFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    openat2(
        root.as_fd(),
        path,
        flags.bits(),
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    )
}

/// Opens `path` as an O_PATH descriptor with `flags` below `directory`; a link that leads out, absolute ones included, is EXDEV.
pub fn open_beneath(directory: impl AsFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    openat2(
        directory.as_fd(),
        path,
        libc::O_PATH | flags.bits(),
        RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    )
}

/// An absolute path without `.` and `..`; `..` never climbs above the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

/// Opens `path` inside `root` as an O_PATH descriptor; what is missing is made, parents as directories and the last
/// component as `kind`. A link to what is not there has its target made, as other runtimes do.
pub fn open_or_make(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    open_or_make_through(root.as_fd(), &clean(path), kind, MAXIMUM_LINKS)
}

fn open_or_make_through(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
    links: usize,
) -> io::Result<OwnedFd> {
    let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
        return open(root, path, OFlag::O_PATH);
    };
    // A file is most often missing, so that it is made first: in a shared tree each look for it is asked of the host.
    if kind == Kind::Directory {
        match open(root, path, OFlag::O_PATH) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => return other,
        }
    }
    let parent = open_or_make_through(root, parent_path, Kind::Directory, links)?;
    let made = match kind {
        Kind::Directory => mkdirat(&parent, name, Mode::from_bits_truncate(0o755)),
        Kind::File => mknodat(
            &parent,
            name,
            SFlag::S_IFREG,
            Mode::from_bits_truncate(0o644),
            0,
        ),
    };
    match made {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match open(root, path, OFlag::O_PATH) {
        // The name is a link to nothing.
        Err(error) if made.is_err() && error.raw_os_error() == Some(libc::ENOENT) => {
            let left = links.checked_sub(1).ok_or(Errno::ELOOP)?;
            let target = readlinkat(&parent, name)?;
            let target = clean(&parent_path.join(target));
            open_or_make_through(root, &target, kind, left)
        }
        other => other,
    }
}

/// Whether an O_PATH descriptor refers to a directory.
pub fn is_directory(fd: impl AsFd) -> io::Result<bool> {
    let status = fstat(fd)?;
    Ok(status.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = fs::File::open(directory.path()).unwrap().into();
        (directory, fd)
    }

    #[test]
    fn mount_point_below_an_absolute_link_is_made_inside_the_root() {
        let (directory, fd) = root();
        symlink("/real", directory.path().join("link")).unwrap();
        fs::create_dir(directory.path().join("real")).unwrap();
        open_or_make(&fd, Path::new("/link/a/b"), Kind::Directory).unwrap();
        assert!(directory.path().join("real/a/b").is_dir());
    }

    #[test]
    fn mount_point_with_dots_stays_inside_the_root() {
        let (directory, fd) = root();
        open_or_make(&fd, Path::new("/../../x/./y/../z"), Kind::File).unwrap();
        assert!(directory.path().join("x/z").is_file());
    }

    #[test]
    fn mount_point_that_is_a_link_to_nothing_is_made_where_it_leads() {
        let (directory, fd) = root();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir(at("etc")).unwrap();
        symlink("../run/resolve/stub.conf", at("etc/resolv.conf")).unwrap();
        symlink("/run/lock", at("lock")).unwrap();
        open_or_make(&fd, Path::new("/etc/resolv.conf"), Kind::File).unwrap();
        assert!(at("run/resolve/stub.conf").is_file());
        open_or_make(&fd, Path::new("/lock/x"), Kind::Directory).unwrap();
        assert!(at("run/lock/x").is_dir());
        // Neither out of the root nor for ever.
        symlink("../../../../out", at("etc/out")).unwrap();
        open_or_make(&fd, Path::new("/etc/out"), Kind::File).unwrap();
        assert!(at("out").is_file());
        symlink("loop", at("loop")).unwrap();
        let error = open_or_make(&fd, Path::new("/loop"), Kind::File).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn file_that_is_there_is_kept_as_is_a_directory_in_its_place() {
        let (directory, fd) = root();
        fs::write(directory.path().join("file"), "x").unwrap();
        fs::create_dir(directory.path().join("directory")).unwrap();
        for name in ["file", "directory"] {
            let path = Path::new("/").join(name);
            open_or_make(&fd, &path, Kind::File).unwrap();
        }
        assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"x");
        assert!(directory.path().join("directory").is_dir());
    }

    #[test]
    fn source_with_a_link_that_leads_out_is_refused() {
        let (directory, fd) = root();
        symlink("/etc", directory.path().join("out")).unwrap();
        symlink("inner", directory.path().join("in")).unwrap();
        fs::write(directory.path().join("inner"), "x").unwrap();
        let error = open_beneath(&fd, Path::new("out/passwd"), OFlag::empty()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        open_beneath(&fd, Path::new("in"), OFlag::empty()).unwrap();
    }

    #[test]
    fn file_where_a_directory_is_needed_is_an_error() {
        let (directory, fd) = root();
        fs::write(directory.path().join("file"), "x").unwrap();
        let error = open_or_make(&fd, Path::new("/file/sub"), Kind::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }
}
