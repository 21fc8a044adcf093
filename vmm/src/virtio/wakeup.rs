//! What a queue worker sleeps on: the driver's notification and the request to stop.
//!
//! Used by worker threads. Does not read the queue, and does not know which device waits.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

/// Why a worker woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// The driver notified the queue; the notification has been consumed.
    Kicked,
    /// The worker shall end. Wins over a notification, which then stays readable for the next activation.
    Stopped,
}

/// Sleeps until the driver notifies or `stop` becomes readable. `stop` is left readable, so that several workers can
/// share one.
///
/// # Errors
/// `poll` or the read of the notification failed for another reason than a signal.
pub fn wait(kick: &EventFd, stop: &EventFd) -> io::Result<Wakeup> {
    let watched = |fd: &EventFd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [watched(stop), watched(kick)];
    loop {
        // SAFETY: `fds` is an array of two initialised pollfd and outlives the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if fds[0].revents != 0 {
            return Ok(Wakeup::Stopped);
        }
        match kick.read() {
            Ok(_) => return Ok(Wakeup::Kicked),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn wait_kicked_and_stopped_reports_stop_and_keeps_the_kick() {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        kick.write(1).unwrap();
        assert_eq!(wait(&kick, &stop).unwrap(), Wakeup::Kicked);
        kick.write(1).unwrap();
        stop.write(1).unwrap();
        assert_eq!(wait(&kick, &stop).unwrap(), Wakeup::Stopped);
        assert_eq!(wait(&kick, &stop).unwrap(), Wakeup::Stopped);
        assert_eq!(kick.read().unwrap(), 1);
    }
}
