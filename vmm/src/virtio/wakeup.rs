//! What a queue worker sleeps on: the driver's notification and the request to stop.
//!
//! Used by worker threads. Does not read the queue, and does not know which device waits.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Why a worker woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// The driver notified the queue.
    Kicked,
    /// The worker shall end. Wins over a notification, which the next activation sees.
    Stopped,
}

/// Watches both descriptors for one worker.
#[derive(Debug)]
pub struct Waiter(Epoll);

const STOP: u64 = 0;
const KICK: u64 = 1;

impl Waiter {
    /// Watches `kick` and `stop`, which several workers can share.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new(kick: &EventFd, stop: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd: &EventFd, data, events| {
            let event = EpollEvent::new(events, data);
            epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
        };
        add(stop, STOP, EventSet::IN)?;
        // Each notification is an edge, and there is nothing to read then.
        add(kick, KICK, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        Ok(Self(epoll))
    }

    /// Sleeps until the driver notifies or `stop` becomes readable. Both are left readable.
    ///
    /// # Errors
    /// `epoll_wait` failed for another reason than a signal.
    pub fn wait(&self) -> io::Result<Wakeup> {
        let mut events = [EpollEvent::default(); 2];
        loop {
            match self.0.wait(-1, &mut events) {
                Ok(count) => {
                    let mut seen = events.iter().take(count);
                    return Ok(if seen.any(|event| event.data() == STOP) {
                        Wakeup::Stopped
                    } else {
                        Wakeup::Kicked
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn wait_kicked_and_stopped_reports_each_kick_once_and_stop_for_good() {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        // One of before counts too.
        kick.write(1).unwrap();
        let waiter = Waiter::new(&kick, &stop).unwrap();
        for _ in 0..3 {
            assert_eq!(waiter.wait().unwrap(), Wakeup::Kicked);
            kick.write(1).unwrap();
        }
        stop.write(1).unwrap();
        assert_eq!(waiter.wait().unwrap(), Wakeup::Stopped);
        assert_eq!(waiter.wait().unwrap(), Wakeup::Stopped);
        assert_eq!(kick.read().unwrap(), 4);
    }
}
