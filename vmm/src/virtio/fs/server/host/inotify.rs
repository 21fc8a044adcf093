//! inotify(7): watches of open files, and the events of all of them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, FdName, check, owned};

/// Bytes in front of the name in `struct inotify_event`.
const HEAD: usize = 16;
/// Bytes read at once: at least one event with the longest name.
const BUFFER: usize = 4096;

/// One event, as `struct inotify_event` has it.
#[derive(Debug)]
pub(in super::super) struct RawEvent<'a> {
    /// Watch descriptor; -1 when the queue has overflowed.
    pub(in super::super) wd: i32,
    pub(in super::super) mask: u32,
    pub(in super::super) cookie: u32,
    /// Without NULs; empty for an event on the file itself.
    pub(in super::super) name: &'a [u8],
}

/// A new, non-blocking queue of events.
///
/// # Errors
/// ENFILE when the host has no more of them for this user.
pub(in super::super) fn new() -> Result<OwnedFd, Errno> {
    // SAFETY: takes flags only.
    owned(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })
}

/// Watches an open file (O_PATH will do) for the events of `mask` too, and returns its watch descriptor, which is the same
/// for the same file. The working directory of the calling thread must be `/proc/self/fd`.
///
/// # Errors
/// ENOSPC when the host has no more watches for this user.
pub(in super::super) fn add(
    queue: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    mask: u32,
) -> Result<i32, Errno> {
    let name = FdName::new(file);
    let mask = mask | libc::IN_MASK_ADD;
    // SAFETY: the name is NUL-terminated.
    let wd = unsafe { libc::inotify_add_watch(queue.as_raw_fd(), name.as_c_str().as_ptr(), mask) };
    check(wd)?;
    Ok(wd)
}

/// Ends a watch. One that ended by itself is no matter.
pub(in super::super) fn remove(queue: BorrowedFd<'_>, wd: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::inotify_rm_watch(queue.as_raw_fd(), wd) };
}

/// Hands the next events to `each`. False when there are none.
pub(in super::super) fn read(queue: BorrowedFd<'_>, mut each: impl FnMut(&RawEvent<'_>)) -> bool {
    let mut buffer = [0u8; BUFFER];
    // SAFETY: the pointer and length are those of a live array.
    let n = unsafe { libc::read(queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let Some(mut rest) = usize::try_from(n).ok().and_then(|n| buffer.get(..n)) else {
        return false;
    };
    let number = |at: usize, bytes: &[u8]| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let found = !rest.is_empty();
    while let (Some(wd), Some(mask), Some(cookie), Some(len)) = (
        number(0, rest),
        number(4, rest),
        number(8, rest),
        number(12, rest),
    ) {
        let end = HEAD.saturating_add(len as usize);
        let Some(name) = rest.get(HEAD..end) else {
            break;
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        each(&RawEvent {
            wd: wd.cast_signed(),
            mask,
            cookie,
            name,
        });
        rest = rest.get(end..).unwrap_or_default();
    }
    found
}
