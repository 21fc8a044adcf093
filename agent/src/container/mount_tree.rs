//! Mounts as descriptors: open_tree(2), mount_setattr(2) and move_mount(2).
//!
//! A bind mount is made detached, given its attributes, and only then put in place: no moment exists at which the
//! mount is visible without its restrictions, and no path is resolved twice.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::mount::MsFlags;

use super::mount_options::AttributeChange;

const EMPTY: &CStr = c"";
const OPEN_TREE_CLONE: libc::c_int = 1;
const AT_RECURSIVE: libc::c_int = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_int = 0x40;

/// `struct mount_attr`, version 0 (include/uapi/linux/mount.h).
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A detached copy of the mount at `source`, with the mounts below it when `recursive`.
pub fn copy(source: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC
        | libc::AT_EMPTY_PATH
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty, NUL-terminated string.
    owned(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            source.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        )
    })
}

/// Puts a detached mount onto the directory or file `target`.
pub fn attach(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    // SAFETY: both paths are empty, NUL-terminated strings.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            target.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
}

fn change(tree: impl AsFd, attributes: &MountAttributes, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string; the structure has the size given and outlives the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const *attributes,
            mem::size_of::<MountAttributes>(),
        )
    })
}

/// Sets and clears attributes of a mount; with `recursive` of all mounts below it too.
pub fn set_attributes(
    tree: impl AsFd,
    attributes: AttributeChange,
    recursive: bool,
) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    change(
        tree,
        &MountAttributes {
            set: attributes.set,
            clear: attributes.clear,
            ..Default::default()
        },
        recursive,
    )
}

/// Changes the propagation of a mount; MS_REC in `propagation` means all mounts below it too.
pub fn set_propagation(tree: impl AsFd, propagation: MsFlags) -> io::Result<()> {
    change(
        tree,
        &MountAttributes {
            propagation: (propagation & !MsFlags::MS_REC).bits(),
            ..Default::default()
        },
        propagation.contains(MsFlags::MS_REC),
    )
}
