//! Extended attributes and POSIX ACLs: GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.

use std::ffi::CStr;
use std::os::fd::AsFd;

use super::errno::Errno;
use super::host;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{GetxattrIn, GetxattrOut, InHeader, SetxattrIn, flag};
use crate::virtio::fs::request::{Arguments, NAME_MAX};

/// Largest value, and largest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_SIZE: u32 = 64 << 10;

/// The next text, as the name of an attribute.
fn attribute<'a>(args: &mut Arguments<'a>) -> Result<&'a CStr, Errno> {
    let name = args.text()?;
    if name.is_empty() || name.count_bytes() > NAME_MAX {
        return Err(Errno::ERANGE);
    }
    Ok(name)
}

/// Labels of the host's security modules are no business of the guest's. File capabilities are kept with the file and mean
/// the same in the guest.
fn may_change(name: &CStr) -> Result<(), Errno> {
    let name = name.to_bytes();
    if name.starts_with(b"security.") && name != b"security.capability" {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

/// Answers with what `fill` puts into a buffer of `size` bytes, or for 0 with the bytes it would need.
fn put_sized(
    thread: &mut ServerThread<'_>,
    size: u32,
    fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    if size == 0 {
        let size = u32::try_from(fill(&mut [])?).map_err(|_| Errno::ERANGE)?;
        thread.put(&GetxattrOut { size, padding: 0 });
        return Ok(());
    }
    thread.reply.resize(size.min(MAX_SIZE) as usize, 0);
    let filled = fill(&mut thread.reply);
    thread.reply.truncate(*filled.as_ref().unwrap_or(&0));
    filled.map(drop)
}

impl Server {
    pub(super) fn getxattr(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let get: GetxattrIn = args.take()?;
        let name = attribute(&mut args)?;
        let inode = self.node(header)?;
        let fd = inode.fd()?;
        put_sized(thread, get.size, |into| {
            host::xattr::get(fd.as_fd(), name, into)
        })
    }

    pub(super) fn listxattr(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let list: GetxattrIn = args.take()?;
        let inode = self.node(header)?;
        let fd = inode.fd()?;
        put_sized(thread, list.size, |into| {
            host::xattr::list(fd.as_fd(), into)
        })
    }

    pub(super) fn setxattr(
        &self,
        _thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let set: SetxattrIn = args.take()?;
        let name = attribute(&mut args)?;
        if set.size > MAX_SIZE {
            return Err(Errno::E2BIG);
        }
        let value = args.bytes(set.size)?;
        self.writable()?;
        may_change(name)?;
        let inode = self.node(header)?;
        let fd = inode.fd()?;
        host::xattr::set(fd.as_fd(), name, value, set.flags.cast_signed())?;
        if set.setxattr_flags & flag::SETXATTR_ACL_KILL_SGID != 0 {
            let mode = u32::from(host::stat(fd.as_fd())?.0.stx_mode) & 0o7777;
            if mode & libc::S_ISGID != 0 {
                host::chmod(self.proc_fds.as_fd(), fd.as_fd(), mode & !libc::S_ISGID)?;
            }
        }
        Ok(())
    }

    pub(super) fn removexattr(
        &self,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let name = attribute(&mut args)?;
        self.writable()?;
        may_change(name)?;
        let inode = self.node(header)?;
        host::xattr::remove(inode.fd()?.as_fd(), name)
    }
}
