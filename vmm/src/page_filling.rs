//! Copies pages into private memory that nobody has touched yet, many with a call: userfaultfd(2), ioctl_userfaultfd(2).
//!
//! A page of a private file mapping that is going to be written to would cost a fault that looks the file's page up, copies it
//! and maps the copy; here the kernel is told what is in it. Owned by who fills memory, before the guest runs; faults are
//! never waited for. Does not know what the pages are.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// userfaultfd(2): faults of the kernel itself are not ours to handle, which needs no privilege (Linux 5.11).
const USER_MODE_ONLY: libc::c_int = 1;

// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const REGISTER_MODE_MISSING: u64 = 1;
/// Nobody waits for the page.
const COPY_MODE_DONTWAKE: u64 = 1;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// Memory whose pages can be filled until the value is dropped. Nothing may touch those that are not there meanwhile: it would
/// wait for ever.
#[derive(Debug)]
pub struct PageFilling(File);

impl PageFilling {
    /// Takes hold of `length` bytes of this process's private mappings from `start` on, whole pages, which nobody touches.
    ///
    /// # Errors
    /// The host has no such call, or the memory is of another kind.
    pub fn of(start: *mut c_void, length: usize) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: the call has no memory arguments.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just created and belongs to nobody else.
        let filling = Self(unsafe { OwnedFd::from_raw_fd(fd) }.into());
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the request takes the structure of this layout.
        unsafe { filling.ask(UFFDIO_API, &raw mut api)? };
        let mut register = Register {
            start: start.addr() as u64,
            len: length as u64,
            mode: REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: as above; what is registered is not touched while this value lives, as the caller promises.
        unsafe { filling.ask(UFFDIO_REGISTER, &raw mut register)? };
        Ok(filling)
    }

    /// Fills `length` bytes at `to` with those at `from`. Pages that are there already stay.
    ///
    /// # Safety
    /// `from` is readable for `length` bytes; `to` is in the memory that was taken hold of, and nobody has a reference into it.
    ///
    /// # Errors
    /// The host is out of memory, or the range is of several mappings.
    pub unsafe fn fill(
        &self,
        to: *mut c_void,
        from: *const c_void,
        length: usize,
    ) -> io::Result<()> {
        const PAGE: u64 = 4096;
        let mut done = 0;
        while done < length as u64 {
            let mut copy = Copy {
                dst: to.addr() as u64 + done,
                src: from.addr() as u64 + done,
                len: length as u64 - done,
                mode: COPY_MODE_DONTWAKE,
                copy: 0,
            };
            // SAFETY: the request takes the structure of this layout; the caller vouches for both ranges.
            let asked = unsafe { self.ask(UFFDIO_COPY, &raw mut copy) };
            let Err(error) = asked else {
                return Ok(());
            };
            match (u64::try_from(copy.copy), error.raw_os_error()) {
                // Some were filled before the kernel had to stop, for a signal or for a page that is there.
                (Ok(filled), _) if filled > 0 => done += filled,
                (_, Some(libc::EEXIST)) => done += PAGE,
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// # Safety
    /// `argument` points to what `request` takes.
    unsafe fn ask<T>(&self, request: libc::c_ulong, argument: *mut T) -> io::Result<()> {
        // SAFETY: the caller vouches for the argument.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pages_are_filled_once_and_the_file_behind_stays_as_it_was() {
        const PAGES: usize = 8;
        // In memory, as the files of templates are.
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len((PAGES * 4096) as u64).unwrap();
        file.write_all_at(b"file", 3 * 4096).unwrap();
        // SAFETY: a new private mapping of the whole file.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let page = |n: usize| memory.wrapping_byte_add(n * 4096);
        // SAFETY: in the mapping. This page is there before the others.
        unsafe { page(4).cast::<u8>().write(b'4') };
        let source = vec![b's'; PAGES * 4096];
        let filling = PageFilling::of(memory, PAGES * 4096).unwrap();
        // SAFETY: both ranges are of five pages.
        unsafe {
            filling
                .fill(page(2), source.as_ptr().cast(), 5 * 4096)
                .unwrap()
        };
        drop(filling);
        // SAFETY: in the mapping, which nobody writes to any more.
        let seen = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), PAGES * 4096) };
        let firsts: Vec<u8> = seen.chunks(4096).map(|page| page[0]).collect();
        assert_eq!(firsts, *b"\0\0ss4ss\0");
        assert_eq!(seen[7 * 4096 - 1], b's');
        let mut unchanged = [0; 4];
        file.read_exact_at(&mut unchanged, 3 * 4096).unwrap();
        assert_eq!(&unchanged, b"file");
        // SAFETY: nobody uses the mapping any more.
        unsafe { libc::munmap(memory, PAGES * 4096) };
    }

    #[test]
    fn memory_that_is_not_there_cannot_be_taken_hold_of() {
        let nowhere = std::ptr::without_provenance_mut(4096);
        assert!(PageFilling::of(nowhere, 4096).is_err());
    }
}
