//! Attributes: GETATTR, STATX, SETATTR.

use std::os::fd::{AsFd, BorrowedFd};

use super::errno::Errno;
use super::host::{self, Stat};
use super::inode::{ContentStamp, Inode};
use super::policy::CachePolicy;
use super::{Server, ServerThread};
use crate::virtio::fs::fuse::{
    Attr, AttrOut, GetattrIn, InHeader, SetattrIn, Statx, StatxIn, StatxOut, SxTime, flag,
};
use crate::virtio::fs::request::Arguments;

/// Mode bits that chmod(2) changes.
const PERMISSIONS: u32 = 0o7777;

/// Attributes as FUSE gives them.
pub(super) fn attr(stat: &Stat) -> Attr {
    let s = &stat.0;
    Attr {
        ino: s.stx_ino,
        size: s.stx_size,
        blocks: s.stx_blocks,
        // Times before 1970 travel as two's complement.
        atime: s.stx_atime.tv_sec.cast_unsigned(),
        mtime: s.stx_mtime.tv_sec.cast_unsigned(),
        ctime: s.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: s.stx_atime.tv_nsec,
        mtimensec: s.stx_mtime.tv_nsec,
        ctimensec: s.stx_ctime.tv_nsec,
        mode: u32::from(s.stx_mode),
        nlink: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        rdev: encode_device(s.stx_rdev_major, s.stx_rdev_minor),
        blksize: s.stx_blksize,
        flags: 0,
    }
}

fn attr_out(inode: &Inode, stat: &Stat) -> AttrOut {
    AttrOut {
        attr_valid: inode.place().attribute_seconds(),
        attr_valid_nsec: 0,
        dummy: 0,
        attr: attr(stat),
    }
}

/// The guest kernel's 32-bit device number: minor in bits 0 to 7 and 20 to 31, major in bits 8 to 19.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

fn time(t: &libc::statx_timestamp) -> SxTime {
    SxTime {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
        reserved: 0,
    }
}

/// Clears the set-user-id bit, and the set-group-id bit of a file that its group may execute, as the host's kernel does for
/// a user without CAP_FSETID.
pub(super) fn kill_privileges(proc_fds: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = host::stat(fd)?;
    if stat.kind() != libc::S_IFREG {
        return Ok(());
    }
    let mode = u32::from(stat.0.stx_mode) & PERMISSIONS;
    let mut kept = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        kept &= !libc::S_ISGID;
    }
    if kept == mode {
        return Ok(());
    }
    host::chmod(proc_fds, fd, kept)
}

impl Server {
    pub(super) fn getattr(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let get: GetattrIn = args.take()?;
        let inode = self.node(header)?;
        let stat = host::stat(inode.fd()?.as_fd())?;
        let mut out = attr_out(&inode, &stat);
        // With a handle this comes before a read(2), and the guest drops the pages it has if the time is another one. The
        // host's clock of file times advances in ticks, and a second write within one leaves no trace: until the tick is
        // surely over, the guest is told a time that differs each time. What stat(2) asks for has no handle.
        if get.getattr_flags & flag::GETATTR_FH != 0
            && inode.is_file()
            && inode.policy() == CachePolicy::Shared
            && ContentStamp::of(&stat).is_fresh()
        {
            out.attr.mtimensec = inode.distinct_nanos(out.attr.mtimensec);
        }
        thread.put(&out);
        Ok(())
    }

    fn put_attr(thread: &mut ServerThread<'_>, inode: &Inode) -> Result<(), Errno> {
        let stat = host::stat(inode.fd()?.as_fd())?;
        thread.put(&attr_out(inode, &stat));
        Ok(())
    }

    pub(super) fn statx(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let _: StatxIn = args.take()?;
        let inode = self.node(header)?;
        let s = host::stat(inode.fd()?.as_fd())?.0;
        thread.put(&StatxOut {
            attr_valid: inode.place().attribute_seconds(),
            stat: Statx {
                mask: s.stx_mask & (libc::STATX_BASIC_STATS | libc::STATX_BTIME),
                blksize: s.stx_blksize,
                attributes: s.stx_attributes,
                nlink: s.stx_nlink,
                uid: s.stx_uid,
                gid: s.stx_gid,
                mode: s.stx_mode,
                ino: s.stx_ino,
                size: s.stx_size,
                blocks: s.stx_blocks,
                attributes_mask: s.stx_attributes_mask,
                atime: time(&s.stx_atime),
                btime: time(&s.stx_btime),
                ctime: time(&s.stx_ctime),
                mtime: time(&s.stx_mtime),
                rdev_major: s.stx_rdev_major,
                rdev_minor: s.stx_rdev_minor,
                ..Statx::default()
            },
            ..StatxOut::default()
        });
        Ok(())
    }

    pub(super) fn setattr(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let set: SetattrIn = args.take()?;
        self.writable()?;
        let inode = self.node(header)?;
        let fd = inode.fd()?;
        let fd = fd.as_fd();
        let wants = |bit: u32| set.valid & bit != 0;
        // The owner first: changing it clears bits of the mode that the same request may set.
        if wants(flag::FATTR_UID | flag::FATTR_GID) {
            let id = |bit, id| if wants(bit) { id } else { u32::MAX };
            host::chown(
                fd,
                id(flag::FATTR_UID, set.uid),
                id(flag::FATTR_GID, set.gid),
            )?;
        }
        if wants(flag::FATTR_MODE) {
            host::chmod(self.proc_fds.as_fd(), fd, set.mode & PERMISSIONS)?;
        }
        if wants(flag::FATTR_SIZE) {
            self.set_size(&inode, &set)?;
        }
        if wants(flag::FATTR_ATIME | flag::FATTR_MTIME) {
            host::set_times(fd, &times(&set))?;
        }
        Self::put_attr(thread, &inode)
    }

    fn set_size(&self, inode: &Inode, set: &SetattrIn) -> Result<(), Errno> {
        let size = i64::try_from(set.size).map_err(|_| Errno::EINVAL)?;
        let handle = if set.valid & flag::FATTR_FH != 0 {
            self.handles.file(set.fh).ok()
        } else {
            None
        };
        // A handle that cannot write is no use; ftruncate says EINVAL then, and the file is opened for it.
        match handle.map(|h| host::truncate(h.fd(), size)) {
            Some(Ok(())) => {}
            _ => {
                let file = self.reopen(inode, libc::O_WRONLY)?;
                host::truncate(file.as_fd(), size)?;
            }
        }
        if set.valid & flag::FATTR_KILL_SUIDGID != 0 {
            kill_privileges(self.proc_fds.as_fd(), inode.fd()?.as_fd())?;
        }
        Ok(())
    }
}

/// The times for utimensat(2).
fn times(set: &SetattrIn) -> [libc::timespec; 2] {
    let one = |given, now, sec: u64, nsec: u32| libc::timespec {
        tv_sec: sec.cast_signed(),
        tv_nsec: if set.valid & given == 0 {
            libc::UTIME_OMIT
        } else if set.valid & now != 0 {
            libc::UTIME_NOW
        } else {
            // What the special values look like is not a time.
            i64::from(nsec.min(999_999_999))
        },
    };
    [
        one(
            flag::FATTR_ATIME,
            flag::FATTR_ATIME_NOW,
            set.atime,
            set.atimensec,
        ),
        one(
            flag::FATTR_MTIME,
            flag::FATTR_MTIME_NOW,
            set.mtime,
            set.mtimensec,
        ),
    ]
}
