//! A copy of a mount of the host that is nowhere yet: open_tree(2). It gets its attributes before it is put into the tree,
//! because the VMM has the tree in a mount namespace of its own: what is mounted appears there at once, and what is
//! changed afterwards does not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MoveMountFlags, OpenTreeFlags, mount_bind, mount_bind_recursive, move_mount, open_tree,
};

use super::mapped_users::MappedUsers;

/// `struct mount_attr` of mount_setattr(2), which has no wrapper.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The copy. It goes when it is dropped without having been attached.
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

impl From<OwnedFd> for DetachedMount {
    /// A mount that was made anew: fsmount(2).
    fn from(mount: OwnedFd) -> Self {
        Self(mount)
    }
}

impl DetachedMount {
    /// A copy of what is seen at `source`, symbolic links followed; `recursive`: with the mounts below it.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn of(source: &Path, recursive: bool) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(Self(open_tree(CWD, source, flags)?))
    }

    /// A copy of what is seen at `source` alone, in the mount namespace of the calling thread.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn of_open(source: &OwnedFd) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Self(open_tree(source, c"", flags)?))
    }

    /// What the host mounts below the source from now on appears in the copy as well, or does not. Nothing goes back.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn follow_host(&self, follows: bool) -> io::Result<()> {
        self.change(
            Attributes {
                propagation: if follows {
                    libc::MS_SLAVE
                } else {
                    libc::MS_PRIVATE
                },
                ..Attributes::default()
            },
            true,
        )
    }

    /// Write-protects it; `recursive`: and all mounts below it.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn protect(&self, recursive: bool) -> io::Result<()> {
        self.change(
            Attributes {
                set: libc::MOUNT_ATTR_RDONLY,
                ..Attributes::default()
            },
            recursive,
        )
    }

    /// Takes the effect of set-user-id bits and device nodes away, and the right to write where it is `read_only`.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn restrict(&self, read_only: bool) -> io::Result<()> {
        let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if read_only {
            set |= libc::MOUNT_ATTR_RDONLY;
        }
        self.change(
            Attributes {
                set,
                ..Attributes::default()
            },
            false,
        )
    }

    /// Shows its files with the ids that `users` have for them, those of the mounts below it too where their file systems can
    /// be shown so: there are some that cannot, like proc.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn show_to(&self, users: &MappedUsers) -> io::Result<()> {
        let mapped = |recursive| {
            self.change(
                Attributes {
                    set: libc::MOUNT_ATTR_IDMAP,
                    user_namespace: u64::try_from(users.as_fd().as_raw_fd()).unwrap_or(u64::MAX),
                    ..Attributes::default()
                },
                recursive,
            )
        };
        mapped(true).or_else(|_| mapped(false)).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EINVAL) => io::Error::other(
                    "its file system cannot be shown to a pod with a user namespace (hostUsers: false): id-mapped mounts are \
                     supported by ext4, xfs, btrfs and, from Linux 6.3, tmpfs, but not by overlay, NFS and 9p",
                ),
                _ => error,
            }
        })
    }

    /// Puts it onto `target`, a directory or file.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn attach(self, target: &Path) -> io::Result<()> {
        Ok(move_mount(
            self.0.as_fd(),
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?)
    }

    /// Puts it onto `target`, which may be of another mount namespace than the one that it was copied in, if that is the calling
    /// thread's.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn attach_open(self, target: &OwnedFd) -> io::Result<()> {
        Ok(move_mount(
            self.0.as_fd(),
            c"",
            target,
            c"",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )?)
    }

    fn change(&self, attributes: Attributes, recursive: bool) -> io::Result<()> {
        let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the path is an empty string with its NUL; the structure has the size that is given and outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<Attributes>(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Mounts what is at `source` at `target`, where there are `users` with the ids that they have for its files; `recursive`: with
/// the mounts below.
///
/// # Errors
/// As mount(2), and as mount_setattr(2), in words where the file system is the reason.
pub fn bind(
    source: &Path,
    recursive: bool,
    users: Option<&MappedUsers>,
    target: &Path,
) -> io::Result<()> {
    let Some(users) = users else {
        let bound = if recursive {
            mount_bind_recursive(source, target)
        } else {
            mount_bind(source, target)
        };
        return Ok(bound?);
    };
    let copy = DetachedMount::of(source, recursive)?;
    copy.show_to(users)?;
    copy.attach(target)
}
