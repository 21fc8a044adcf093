//! The end of the machine: the first reason that is reported stands.
//!
//! Shared by whatever can end the machine (vCPU threads, signals, the control connection) and the control thread, which
//! waits for it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmpod_vmm_api::ExitReason;

/// Why the machine ends, once it does.
#[derive(Debug)]
pub struct Ending {
    /// Shared by all who report and the control thread.
    reason: Mutex<Option<ExitReason>>,
    reported: EventFd,
}

impl Ending {
    /// No reason yet.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            reported: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Reports a reason. Later ones are dropped: what follows an end is its consequence.
    pub fn report(&self, reason: ExitReason) {
        let mut slot = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(reason);
            // A counter at its maximum is readable too.
            let _ = self.reported.write(1);
        }
    }

    /// The reason, if there is one.
    #[must_use]
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Descriptor that becomes and stays readable with the first report.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.reported.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_reported_twice_keeps_the_first_reason() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.reason(), None);
        ending.report(ExitReason::TripleFault);
        ending.report(ExitReason::Reset);
        assert_eq!(ending.reason(), Some(ExitReason::TripleFault));
    }
}
