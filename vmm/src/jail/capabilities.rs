//! What is left of root's privileges: nothing, except what serving files as root takes.
//!
//! Capabilities belong to threads. The control thread prepares the set while it is alone; file system workers keep it,
//! every other thread gives the rest up.

use std::io;

use super::{check, user};

/// What the file system device's workers need to serve any owner's files (capabilities(7)).
pub const SERVE_FILES: [u32; 9] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    2,  // CAP_DAC_READ_SEARCH
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    27, // CAP_MKNOD
    31, // CAP_SETFCAP
];

/// Linux has room for this many.
const CAPABILITIES: u32 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;
/// Ids change without a change of capabilities, now and for ever: SECBIT_NO_SETUID_FIXUP and its lock.
const SECURE_BITS: libc::c_ulong = 1 << 2 | 1 << 3;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets permitted and effective capabilities of the calling thread; inheritable ones are cleared, and with them ambient
/// ones.
fn set(kept: &[u32]) -> io::Result<()> {
    let mut words = [Words::default(); 2];
    for (index, word) in (0u32..).zip(&mut words) {
        let bits = kept
            .iter()
            .filter(|&&cap| cap / 32 == index)
            .fold(0, |bits, cap| bits | 1 << (cap % 32));
        word.effective = bits;
        word.permitted = bits;
    }
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    // SAFETY: version 3 reads one header and two sets of words, which both live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) })
}

/// For the process while it has one thread: keeps [`SERVE_FILES`] if `serves_files` and otherwise nothing, also as upper
/// bound of what an execve could gain; and becomes `user` if there is one.
///
/// # Errors
/// The process has not the privileges to begin with.
pub fn reduce(serves_files: bool, user: Option<u32>) -> io::Result<()> {
    let kept: &[u32] = if serves_files { &SERVE_FILES } else { &[] };
    // SAFETY: these calls have no memory arguments.
    unsafe {
        check(libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0))?;
        for cap in (0..CAPABILITIES).filter(|cap| !kept.contains(cap)) {
            let dropped = libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0);
            if dropped != 0 {
                let error = io::Error::last_os_error();
                // Beyond the last capability that this kernel knows.
                if error.raw_os_error() == Some(libc::EINVAL) {
                    break;
                }
                return Err(error);
            }
        }
        // Supplementary groups open doors as well.
        check(libc::setgroups(0, std::ptr::null()))?;
    }
    if let Some(user) = user {
        user::take_on(user)?;
    }
    set(kept)
}

/// For a thread that serves no files: gives up all capabilities.
///
/// # Errors
/// capset(2) failed.
pub fn give_up() -> io::Result<()> {
    set(&[])
}
