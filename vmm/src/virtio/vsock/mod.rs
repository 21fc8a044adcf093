//! virtio-vsock device (VIRTIO 1.3 section 5.10), emulated here and surfaced on the host as Unix sockets.
//!
//! A host client connects to the device's socket, writes `CONNECT <port>\n` and reads `OK <port>\n`; from then on it
//! talks to the guest's listener on that port. A guest that connects to port N of the host (context id 2) reaches the
//! Unix listener at the same path with `_N` behind it. Stream sockets only; one thread; no data is copied on its way
//! unless a host reader is slow.
//!
//! The device owns the host sockets between activations: they outlive a pause, and end with a reset of the driver.
//! It does not know what is spoken over the streams.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use virtio_queue::QueueT;
use vmm_sys_util::epoll::Epoll;

use self::guest_side::TransportReset;
use self::host_sockets::HostSockets;
use self::worker::{Host, Rings, Worker};
use super::device::{ActivateError, Activation, DeviceCounters, StoppedQueue, VirtioDevice};
use super::ring::{Ring, take_queue};
use super::worker_thread::WorkerThread;

mod connection;
mod guest_side;
mod host_side;
mod host_sockets;
mod request;
mod send_buffer;
pub mod spec;
mod table;
mod worker;

#[cfg(test)]
mod tests;

pub use connection::BUFFER_BYTES;
pub use host_sockets::VsockError;
pub use table::{ANSWER_LIMIT, MAX_SOCKETS};

/// Receive, transmit, events. The guest fills all of the first with buffers when it boots, 13,000 instructions and a page or
/// two each; the connections' own windows are larger than what 64 hold.
const QUEUE_SIZES: [u16; 3] = [64, 256, 8];

/// What the worker gives back; nothing when it never got the host sockets.
type Finished = Option<(Host, Vec<StoppedQueue>)>;

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    name: String,
    guest_cid: u32,
    counters: Arc<DeviceCounters>,
    /// Absent while active.
    host: Option<Host>,
    worker: Option<WorkerThread<Finished>>,
    was_active: bool,
    /// The driver comes from a snapshot and knows of no connection that would have to be reset.
    without_connections: bool,
}

impl Vsock {
    /// Listens at `uds_path`, mode 0600, replacing a stale socket. Host clients wait there until the guest is ready.
    ///
    /// # Errors
    /// `guest_cid` is reserved (0 to 2, or 4294967295), or the socket cannot be made.
    pub fn new(name: String, guest_cid: u32, uds_path: &Path) -> Result<Self, VsockError> {
        if !(3..u32::MAX).contains(&guest_cid) {
            return Err(VsockError::GuestCid { cid: guest_cid });
        }
        Ok(Self {
            name,
            guest_cid,
            counters: Arc::default(),
            host: Some(Host::new(HostSockets::bind(uds_path)?)),
            worker: None,
            was_active: false,
            without_connections: false,
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        spec::DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        spec::F_STREAM | spec::F_INDIRECT_DESC | spec::F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_vsock_config` is the guest's context id alone (section 5.10.4).
        let config = u64::from(self.guest_cid).to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start
                .checked_add(i)
                .and_then(|at| config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            mut queues,
            ..
        } = activation;
        let rx = take_queue(&mut queues, spec::RX_QUEUE)?;
        let tx = take_queue(&mut queues, spec::TX_QUEUE)?;
        let event = take_queue(&mut queues, spec::EVENT_QUEUE).ok();
        let failed = |what| move |source| ActivateError::Host { what, source };
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;

        let fresh = [&rx, &tx]
            .iter()
            .all(|active| active.queue.next_avail() == 0 && active.queue.next_used() == 0);
        // A driver that is under way has met another device before: the machine was restored from a snapshot.
        let restored = !fresh && !self.was_active && !self.without_connections;
        let counters = Arc::clone(&self.counters);
        let guest_cid = u64::from(self.guest_cid);
        let (give, given) = mpsc::channel::<Host>();
        // The sockets go to the thread only once it exists, so that a failure leaves them here.
        let worker = WorkerThread::spawn(&self.name, move |stop| {
            let mut host = given.recv().ok()?;
            if fresh {
                host.forget_guest();
            } else if restored {
                host.transport_reset = TransportReset::Due;
            }
            let ring = |active| {
                Ring::new(
                    active,
                    &memory,
                    Arc::clone(&interrupt),
                    Arc::clone(&counters),
                )
            };
            let rings = Rings {
                rx: ring(rx),
                tx: ring(tx),
                event: event.map(ring),
            };
            let worker = Worker::new(host, rings, guest_cid, Arc::clone(&counters), epoll);
            Some(worker.run(stop.as_raw_fd()))
        })
        .map_err(failed("start the thread of the socket device"))?;
        let lost = || io::Error::other("an earlier worker ended without giving it back");
        let host = self
            .host
            .take()
            .ok_or_else(|| failed("use the listening socket of the socket device")(lost()))?;
        if let Err(mpsc::SendError(host)) = give.send(host) {
            self.host = Some(host);
        }
        self.worker = Some(worker);
        self.was_active = true;
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        let Some((host, queues)) = self
            .worker
            .take()
            .and_then(|worker| worker.stop().flatten())
        else {
            return Vec::new();
        };
        self.host = Some(host);
        queues
    }

    fn saved(&self) -> Vec<u8> {
        // A device that is lost, or a reset that is under way, are no reason to keep quiet.
        let quiet = self.host.as_ref().is_some_and(Host::is_quiet);
        let port = self.host.as_ref().map_or(0, |host| host.table.next_port());
        let mut bytes = vec![u8::from(quiet)];
        bytes.extend(port.to_le_bytes());
        bytes
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), &'static str> {
        let wrong = "a socket device keeps a flag and a port";
        let [quiet @ (0 | 1), port @ ..] = saved else {
            return Err(wrong);
        };
        let port = u32::from_le_bytes(port.try_into().map_err(|_| wrong)?);
        self.without_connections = *quiet == 1;
        if let Some(host) = &mut self.host {
            // A port that the guest has seen does not come back at once: it may still be closing that connection.
            host.table.continue_ports(port);
        }
        Ok(())
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.stop();
    }
}
