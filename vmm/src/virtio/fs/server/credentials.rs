//! Creating files as the guest's user, by the file-system ids of the calling thread alone.
//!
//! Belongs to one worker thread. The guest's kernel has already checked permissions, so that the thread keeps its
//! capabilities while it has other ids: they decide who owns the new file, whether the directory's group is inherited and
//! nothing else. Creating and then changing the owner would be simpler, but in directories that others on the host can
//! write to, it would change the owner of whatever they put in place.

use super::errno::Errno;

/// `SECBIT_NO_SETUID_FIXUP` (capabilities(7)): changing ids leaves capabilities alone.
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
/// `_LINUX_CAPABILITY_VERSION_3` of capget(2).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: effective, permitted, inheritable; low and high halves.
type CapData = [[u32; 3]; 2];

/// The ids and capabilities of this thread between requests.
#[derive(Debug)]
pub(super) struct Credentials {
    uid: u32,
    gid: u32,
    /// Set when the kernel takes capabilities away at a change of ids: they are then put back by hand.
    capabilities: Option<CapData>,
}

/// Sets one file-system id and returns the one before. An id of -1 changes nothing.
fn set_id(call: libc::c_long, id: u32) -> u32 {
    // SAFETY: setfsuid and setfsgid take a number, and as raw calls act on this thread only.
    unsafe { libc::syscall(call, id) as u32 }
}

fn capabilities() -> Result<CapData, Errno> {
    let header = CapHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = CapData::default();
    // SAFETY: header and data have the layouts that version 3 has, for this thread.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(data)
    }
}

fn set_capabilities(data: &CapData) -> Result<(), Errno> {
    let header = CapHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // SAFETY: as in `capabilities`.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

impl Credentials {
    /// Looks at the calling thread, and asks the kernel to leave its capabilities alone later on.
    pub(super) fn of_this_thread() -> Result<Self, Errno> {
        // SAFETY: prctl with numbers only; securebits belong to the thread.
        let fixed = unsafe {
            let bits = libc::prctl(libc::PR_GET_SECUREBITS);
            // A confined process has set the bit beforehand and may not ask again.
            bits >= 0
                && (libc::c_ulong::from(bits.unsigned_abs()) & NO_SETUID_FIXUP != 0
                    || libc::prctl(
                        libc::PR_SET_SECUREBITS,
                        libc::c_ulong::from(bits.unsigned_abs()) | NO_SETUID_FIXUP,
                    ) == 0)
        };
        Ok(Self {
            uid: set_id(libc::SYS_setfsuid, u32::MAX),
            gid: set_id(libc::SYS_setfsgid, u32::MAX),
            capabilities: if fixed { None } else { Some(capabilities()?) },
        })
    }

    /// Runs `create` with these ids.
    ///
    /// # Errors
    /// EINVAL for an id that is none; EPERM when this process may not take it; what `create` returns.
    pub(super) fn run_as<T>(
        &self,
        uid: u32,
        gid: u32,
        create: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        if uid == self.uid && gid == self.gid {
            return create();
        }
        let result = self.enter(uid, gid).and_then(|()| create());
        self.leave();
        result
    }

    fn enter(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        set_id(libc::SYS_setfsgid, gid);
        set_id(libc::SYS_setfsuid, uid);
        // The calls report no failure: asking again tells.
        if set_id(libc::SYS_setfsgid, u32::MAX) != gid
            || set_id(libc::SYS_setfsuid, u32::MAX) != uid
        {
            return Err(Errno::EPERM);
        }
        self.capabilities.as_ref().map_or(Ok(()), set_capabilities)
    }

    fn leave(&self) {
        set_id(libc::SYS_setfsuid, self.uid);
        set_id(libc::SYS_setfsgid, self.gid);
        if let Some(data) = &self.capabilities {
            // What was effective before is still permitted, so that it cannot be refused.
            let _ = set_capabilities(data);
        }
    }
}
