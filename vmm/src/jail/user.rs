//! Who the process is: a user of its own instead of root, so that what it may touch without capabilities is next to
//! nothing, and processes of root and of other machines are not its to signal or trace.
//!
//! The file system's workers serve as root all the same, by their file-system ids: that is who the guest's root is.

use std::io;

use super::check;

/// Makes `id` the user and group of the process while it has one thread. Capabilities stay as they are if
/// SECBIT_NO_SETUID_FIXUP is set (capabilities(7)).
///
/// # Errors
/// The process has not the privileges.
pub fn take_on(id: u32) -> io::Result<()> {
    let mut signal: libc::c_int = 0;
    // SAFETY: the first call writes one int that outlives it; the others have no memory arguments.
    unsafe {
        check(libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))?;
        // A change of ids forgets it (prctl(2)). A parent that died meanwhile shows as the end of the control connection.
        check(libc::prctl(
            libc::PR_SET_PDEATHSIG,
            signal as libc::c_ulong,
            0,
            0,
            0,
        ))
    }
}

/// Makes root the owner of what the calling thread does in file systems, and nothing else.
///
/// # Errors
/// The thread has no CAP_SETUID and CAP_SETGID.
pub fn serve_as_root() -> io::Result<()> {
    const ASK: u32 = u32::MAX;
    // SAFETY: these take a number, and as raw calls act on this thread only.
    let refused = unsafe {
        libc::syscall(libc::SYS_setfsgid, 0);
        libc::syscall(libc::SYS_setfsuid, 0);
        // They report no failure: asking again tells.
        libc::syscall(libc::SYS_setfsgid, ASK) != 0 || libc::syscall(libc::SYS_setfsuid, ASK) != 0
    };
    if refused {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}
