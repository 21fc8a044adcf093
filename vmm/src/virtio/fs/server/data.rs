//! File contents: READ and WRITE straight between the host's files and guest memory, COPY_FILE_RANGE, FALLOCATE, LSEEK.

use std::os::fd::AsFd;

use vm_memory::VolatileSlice;

use super::errno::Errno;
use super::host;
use super::{Answer, MAX_TRANSFER, Request, Server, ServerThread, attributes};
use crate::virtio::fs::fuse::{
    CopyFileRangeIn, FallocateIn, LseekIn, LseekOut, OutHeader, ReadIn, WriteIn, WriteOut, flag,
};
use crate::virtio::fs::request::Arguments;

/// Most bytes of one COPY_FILE_RANGE, so that a queue is not held up for long; the guest asks for the rest.
const MAX_COPY: u64 = 64 << 20;

fn offset(value: u64) -> Result<i64, Errno> {
    i64::try_from(value).map_err(|_| Errno::EINVAL)
}

impl Server {
    pub(super) fn read<'m>(
        &self,
        thread: &mut ServerThread<'m>,
        mut args: Arguments<'_>,
        request: &Request<'_, 'm>,
    ) -> Result<Answer, Errno> {
        let read: ReadIn = args.take()?;
        let at = offset(read.offset)?;
        let handle = self.handles.file(read.fh)?;
        let size = request.room.min(read.size.min(MAX_TRANSFER) as usize);
        thread
            .vectors
            .fill(request.space, size_of::<OutHeader>(), size);
        let n = thread.vectors.read_from_at(handle.fd(), at)?;
        Ok(Answer::Written(n))
    }

    pub(super) fn write<'m>(
        &self,
        thread: &mut ServerThread<'m>,
        mut args: Arguments<'_>,
        request: &Request<'_, 'm>,
    ) -> Result<(), Errno> {
        let write: WriteIn = args.take()?;
        self.writable()?;
        let at = offset(write.offset)?;
        let handle = self.handles.file(write.fh)?;
        let (pieces, start, len): (&[VolatileSlice<'m>], _, _) = request.data;
        if write.size > MAX_TRANSFER || write.size as usize > len {
            return Err(Errno::EINVAL);
        }
        thread.vectors.fill(pieces, start, write.size as usize);
        // Appending is up to the host, which knows the end of the file even if others write to it. Pages that are written
        // back have their place already.
        let from_cache = write.write_flags & flag::WRITE_CACHE != 0;
        let appends = write.flags.cast_signed() & libc::O_APPEND != 0 && !from_cache;
        let n = if appends {
            thread
                .vectors
                .write_to_at_with(handle.fd(), at, libc::RWF_APPEND)?
        } else {
            thread.vectors.write_to_at(handle.fd(), at)?
        };
        if write.write_flags & flag::WRITE_KILL_SUIDGID != 0 {
            attributes::kill_privileges(self.proc_fds.as_fd(), handle.fd())?;
        }
        thread.put(&WriteOut {
            // Not above `write.size`.
            size: n as u32,
            padding: 0,
        });
        Ok(())
    }

    pub(super) fn copy_file_range(
        &self,
        thread: &mut ServerThread<'_>,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let copy: CopyFileRangeIn = args.take()?;
        self.writable()?;
        if copy.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let from = self.handles.file(copy.fh_in)?;
        let to = self.handles.file(copy.fh_out)?;
        let len = copy.len.min(MAX_COPY) as usize;
        let n = host::copy_range(
            (from.fd(), offset(copy.off_in)?),
            (to.fd(), offset(copy.off_out)?),
            len,
        )?;
        attributes::kill_privileges(self.proc_fds.as_fd(), to.fd())?;
        thread.put(&WriteOut {
            // Not above MAX_COPY.
            size: n as u32,
            padding: 0,
        });
        Ok(())
    }

    pub(super) fn fallocate(&self, mut args: Arguments<'_>) -> Result<(), Errno> {
        let allocate: FallocateIn = args.take()?;
        self.writable()?;
        let handle = self.handles.file(allocate.fh)?;
        host::allocate(
            handle.fd(),
            allocate.mode.cast_signed(),
            offset(allocate.offset)?,
            offset(allocate.length)?,
        )
    }

    pub(super) fn lseek(
        &self,
        thread: &mut ServerThread<'_>,
        mut args: Arguments<'_>,
    ) -> Result<(), Errno> {
        let seek: LseekIn = args.take()?;
        let whence = seek.whence.cast_signed();
        // Positions are the guest's business; the host only knows where data and holes are.
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(Errno::EINVAL);
        }
        let handle = self.handles.file(seek.fh)?;
        let at = host::seek(handle.fd(), offset(seek.offset)?, whence)?;
        thread.put(&LseekOut {
            offset: at.cast_unsigned(),
        });
        Ok(())
    }
}
