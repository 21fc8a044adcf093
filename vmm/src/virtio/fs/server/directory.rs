//! Listings: READDIR and READDIRPLUS.
//!
//! The host's directory offsets are passed on as they are. Entries that the host gave and that do not fit into a reply are
//! kept with the open directory for the next one.

use std::ffi::CStr;
use std::sync::Arc;

use vm_memory::ByteValued;

use super::errno::Errno;
use super::handle_table::{Handle, Listing};
use super::host;
use super::inode::Inode;
use super::policy::CachePolicy;
use super::{MAX_TRANSFER, Server, ServerThread};
use crate::virtio::fs::fuse::{Dirent, EntryOut, InHeader, ReadIn};
use crate::virtio::fs::request::Arguments;

/// Bytes of entries asked from the host at once; the largest entry has 280.
const HOST_BATCH: usize = 16 << 10;
/// Offset of the name in `struct linux_dirent64` (getdents64(2)).
const HOST_NAME: usize = 19;

/// One entry as getdents64(2) gives it.
struct HostEntry<'a> {
    inode: u64,
    next: i64,
    kind: u8,
    name: &'a [u8],
    /// Name with its NUL.
    c_name: &'a CStr,
    /// Bytes of the record.
    len: usize,
}

fn parse(bytes: &[u8]) -> Option<HostEntry<'_>> {
    let inode = u64::from_ne_bytes(*bytes.first_chunk()?);
    let next = i64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let len = usize::from(u16::from_ne_bytes(*bytes.get(16..)?.first_chunk()?));
    let kind = *bytes.get(18)?;
    let c_name = CStr::from_bytes_until_nul(bytes.get(HOST_NAME..len)?).ok()?;
    Some(HostEntry {
        inode,
        next,
        kind,
        name: c_name.to_bytes(),
        c_name,
        len,
    })
}

impl Listing {
    /// Makes the next entry the one at `offset`.
    fn seek(&mut self, handle: &Handle, offset: i64) -> Result<(), Errno> {
        // Offset 0 is also how the guest asks for a fresh listing.
        if self.offset != Some(offset) || (offset == 0 && !self.entries.is_empty()) {
            self.entries.clear();
            self.at = 0;
            self.offset = None;
            host::seek(handle.fd(), offset, libc::SEEK_SET)?;
            self.offset = Some(offset);
        }
        Ok(())
    }

    /// The next entry, from the host if none is left; `None` at the end.
    fn peek(&mut self, handle: &Handle) -> Result<Option<HostEntry<'_>>, Errno> {
        if self.at >= self.entries.len() {
            self.at = 0;
            self.entries.resize(HOST_BATCH, 0);
            let read = host::read_entries(handle.fd(), &mut self.entries);
            self.entries.truncate(*read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(None);
            }
        }
        let rest = self.entries.get(self.at..).unwrap_or_default();
        parse(rest).map(Some).ok_or(Errno::EIO)
    }

    fn consume(&mut self, len: usize, next: i64) {
        self.at += len;
        self.offset = Some(next);
    }
}

impl Server {
    pub(super) fn readdir(
        &self,
        thread: &mut ServerThread<'_>,
        args: Arguments<'_>,
        room: usize,
    ) -> Result<(), Errno> {
        self.list(thread, args, room, None)
    }

    pub(super) fn readdirplus(
        &self,
        thread: &mut ServerThread<'_>,
        header: &InHeader,
        args: Arguments<'_>,
        room: usize,
    ) -> Result<(), Errno> {
        let parent = self.directory(header.nodeid)?;
        self.list(thread, args, room, Some(&parent))
    }

    /// Appends entries to the reply while they fit. With a parent each is preceded by what a lookup would have given.
    fn list(
        &self,
        thread: &mut ServerThread<'_>,
        mut args: Arguments<'_>,
        room: usize,
        plus: Option<&Arc<Inode>>,
    ) -> Result<(), Errno> {
        let read: ReadIn = args.take()?;
        let size = room.min(read.size.min(MAX_TRANSFER) as usize);
        let handle = self.handles.get(read.fh)?;
        let mut listing = handle.listing()?;
        listing.seek(&handle, read.offset.cast_signed())?;
        let listed = self.append(thread, &handle, &mut listing, size, plus);
        listing.settle();
        listed
    }

    fn append(
        &self,
        thread: &mut ServerThread<'_>,
        handle: &Handle,
        listing: &mut Listing,
        size: usize,
        plus: Option<&Arc<Inode>>,
    ) -> Result<(), Errno> {
        let fixed = size_of::<Dirent>() + plus.map_or(0, |_| size_of::<EntryOut>());
        loop {
            // An error after the first entry is left for the next request.
            let entry = match listing.peek(handle) {
                Ok(Some(entry)) => entry,
                Err(error) if thread.reply.is_empty() => return Err(error),
                Ok(None) | Err(_) => return Ok(()),
            };
            let needed = (fixed + entry.name.len()).next_multiple_of(8);
            if thread.reply.len() + needed > size {
                return if thread.reply.is_empty() {
                    Err(Errno::EINVAL)
                } else {
                    Ok(())
                };
            }
            if let Some(parent) = plus {
                thread.put(&self.entry_of(parent, &entry));
            }
            let dirent = Dirent {
                ino: entry.inode,
                off: entry.next.cast_unsigned(),
                namelen: entry.name.len() as u32,
                kind: u32::from(entry.kind),
            };
            thread.reply.extend_from_slice(dirent.as_slice());
            thread.reply.extend_from_slice(entry.name);
            let padded = thread.reply.len().next_multiple_of(8);
            thread.reply.resize(padded, 0);
            let (len, next) = (entry.len, entry.next);
            listing.consume(len, next);
        }
    }

    /// What a lookup of the entry gives. Node 0 makes the guest look it up by itself when it needs to: for the directory
    /// itself and its parent, for what cannot be referenced now, and for shared directories, where the guest would look
    /// it up again in any case.
    fn entry_of(&self, parent: &Arc<Inode>, entry: &HostEntry<'_>) -> EntryOut {
        if parent.policy() == CachePolicy::Shared || matches!(entry.name, b"." | b"..") {
            return EntryOut::default();
        }
        self.find_new(parent, entry.c_name)
            .map_or_else(|_| EntryOut::default(), |found| self.entry(parent, &found))
    }
}
