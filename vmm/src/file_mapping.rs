//! Part of a file in this process's memory, to be read: aligned so that the host can map it in huge pages. It holds what
//! guests have, and core dumps leave it out as they do guest memory.
//!
//! Owned by who needs it mapped: the machine, for what its guest has of the file. The file belongs to the host's
//! administrator, who does not shorten it while it is in use.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Reserved address space with a file mapped into it, shared and read-only.
#[derive(Debug)]
pub struct FileMapping {
    reserved: *mut c_void,
    reserved_bytes: usize,
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the mapping belongs to the value, and memory that nobody writes to can be read by any thread.
unsafe impl Send for FileMapping {}
// SAFETY: as above.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps `bytes` of `file` from `offset` on; both are whole pages. What lies beyond the end of the file must not be
    /// touched, the rest of its last page excepted, which is zero (mmap(2)).
    ///
    /// # Errors
    /// mmap(2) failed, or the part cannot be addressed.
    pub fn map(file: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        const HUGE: usize = HUGE_PAGE as usize;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let reserved_bytes = bytes.checked_add(HUGE).ok_or(io::ErrorKind::FileTooLarge)?;
        let map = |at: *mut c_void, length, protection, flags, descriptor, offset| {
            // SAFETY: either a new mapping where the kernel likes, or one over part of that, which is ours alone.
            let at = unsafe { libc::mmap(at, length, protection, flags, descriptor, offset) };
            if at == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok(at)
            }
        };
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let nowhere = std::ptr::null_mut();
        let reserved = map(nowhere, reserved_bytes, libc::PROT_NONE, reserve, -1, 0)?;
        let start =
            reserved.wrapping_byte_add(reserved.addr().next_multiple_of(HUGE) - reserved.addr());
        // Dropped, and with it the reservation, if the file cannot be mapped.
        let mapping = Self {
            reserved,
            reserved_bytes,
            start,
            bytes,
        };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        map(
            start,
            bytes,
            libc::PROT_READ,
            flags,
            file.as_raw_fd(),
            offset,
        )?;
        // SAFETY: all of it is this mapping, and the advice changes no contents.
        if unsafe { libc::madvise(start, bytes, libc::MADV_DONTDUMP) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Address of the first byte; the beginning of a huge page.
    #[must_use]
    pub fn address(&self) -> *mut c_void {
        self.start
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Has the host gather the file's pages into huge pages, as far as it can and the mapping holds whole ones. It can
    /// where the file lies in memory (tmpfs), since Linux 6.1; otherwise all stays as it is, which is slower and no mistake.
    pub fn collapse(&self) {
        let huge = HUGE_PAGE as usize;
        for at in (0..self.bytes / huge).map(|block| block * huge) {
            // SAFETY: the block lies in the mapping, and the advice changes no contents.
            unsafe { libc::madvise(self.start.wrapping_byte_add(at), huge, libc::MADV_COLLAPSE) };
        }
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the whole reservation is this value's, and nothing refers to it any more.
        unsafe { libc::munmap(self.reserved, self.reserved_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn mapping_holds_the_files_bytes_from_its_offset_on_and_zeros_to_the_end_of_the_page() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"second", 0x1000).unwrap();
        let mapping = FileMapping::map(&file, 0x1000, 0x1000).unwrap();
        assert_eq!(mapping.address().addr() % HUGE_PAGE as usize, 0);
        assert_eq!(mapping.bytes(), 0x1000);
        mapping.collapse();
        let mut expected = vec![0u8; 0x1000];
        expected[..6].copy_from_slice(b"second");
        // SAFETY: the file's second page is mapped.
        let found = unsafe { std::slice::from_raw_parts(mapping.address().cast::<u8>(), 0x1000) };
        assert_eq!(found, expected);
    }

    #[test]
    fn mapping_of_what_cannot_be_mapped_fails_and_leaves_nothing() {
        let directory = File::open("/").unwrap();
        assert!(FileMapping::map(&directory, 0, 0x1000).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(FileMapping::map(&file, 0, u64::MAX - 0xfff).is_err());
        assert!(FileMapping::map(&file, 1, 0x1000).is_err());
    }
}
