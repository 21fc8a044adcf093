//! The thread of the notification queue: tells the guest what others change on the host. Owns the queue from activation
//! until it is told to stop.
//!
//! Wakes up for the host's events, for events that a request worker came across, and for buffers that the guest gives.
//! What to tell is decided in [`super::server`].

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::fuse::{NotifyWatchOut, OutHeader, notification};
use super::server::{Event, Server};
use crate::virtio::chain::{ChainParts, copy_in, total_len};
use crate::virtio::ring::Ring;
use crate::virtio::{ActiveQueue, DeviceCounters, GuestMemory, Interrupt, StoppedQueue};

/// What the notifier gets.
pub(super) struct Notifier {
    pub(super) server: Arc<Server>,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) counters: Arc<DeviceCounters>,
    pub(super) queue: ActiveQueue,
}

impl Notifier {
    /// Tells events until told to stop, then gives the queue back. Events that come meanwhile wait.
    pub(super) fn run(self, stop: &EventFd) -> StoppedQueue {
        let memory = Arc::clone(&self.memory);
        let counters = Arc::clone(&self.counters);
        let mut ring = Ring::new(
            self.queue,
            &memory,
            self.interrupt,
            Arc::clone(&self.counters),
        );
        let mut parts = ChainParts::default();
        loop {
            self.server.collect_events();
            tell(&self.server, &mut ring, &mut parts, &counters);
            let (wake, host) = self.server.watches().descriptors();
            match wait(stop.as_raw_fd(), ring.kick_fd(), wake, host) {
                Some(false) => ring.acknowledge_kick(),
                Some(true) | None => return ring.into_stopped(),
            }
        }
    }
}

/// Tells what there is, as far as the guest has given buffers.
fn tell<'m>(
    server: &Server,
    ring: &mut Ring<'m>,
    parts: &mut ChainParts<'m>,
    counters: &DeviceCounters,
) {
    loop {
        ring.disable_notifications();
        while server.watches().has_next() {
            let Some(taken) = ring.take(parts) else {
                break;
            };
            let written = match taken.fault {
                None => server.watches().next().map_or(0, |event| {
                    DeviceCounters::add(&counters.requests, 1);
                    write(&event, parts).unwrap_or_else(|| {
                        DeviceCounters::add(&counters.errors, 1);
                        0
                    })
                }),
                Some(_) => 0,
            };
            ring.add_used(taken.head, written);
        }
        ring.signal();
        if !ring.enable_notifications() || !server.watches().has_next() {
            return;
        }
    }
}

/// Writes an event into a buffer; `None` when it is too small, which is the guest's loss.
fn write(event: &Event, parts: &ChainParts<'_>) -> Option<u32> {
    let head = size_of::<OutHeader>();
    let fixed = size_of::<NotifyWatchOut>();
    let len = head + fixed + event.name.len();
    if total_len(&parts.writable) < len {
        return None;
    }
    let header = OutHeader {
        len: u32::try_from(len).ok()?,
        error: notification::WATCH,
        unique: 0,
    };
    let out = NotifyWatchOut {
        nodeid: event.node,
        owner: event.owner,
        mask: event.mask,
        cookie: event.cookie,
        namelen: u32::try_from(event.name.len()).ok()?,
    };
    copy_in(&parts.writable, 0, header.as_slice());
    copy_in(&parts.writable, head, out.as_slice());
    copy_in(&parts.writable, head + fixed, &event.name);
    Some(header.len)
}

/// Sleeps until one of these is readable. True for `stop`; `None` when the host cannot wait.
fn wait(stop: RawFd, kick: RawFd, wake: RawFd, host: Option<RawFd>) -> Option<bool> {
    // poll(2) passes over negative numbers.
    let mut fds = [stop, kick, wake, host.unwrap_or(-1)].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        // SAFETY: `fds` is an array of four initialised pollfd and outlives the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 4, -1) } >= 0 {
            return Some(fds[0].revents != 0);
        }
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return None;
        }
    }
}
