//! virtio-net device (VIRTIO 1.3 section 5.1) on a tap: one queue pair, offloads, mergeable receive buffers.
//!
//! The tap is opened by the caller and belongs to the device; one worker thread moves frames straight between it and guest
//! memory. The device knows nothing of addresses other than the MAC it announces and, if it is told, whom the guest may
//! send as.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;

use vmm_sys_util::epoll::Epoll;

use self::request::Receiving;
pub use self::sender::Sender;
use self::tap::Tap;
pub use self::tap::Wire;
use self::uplink::Uplink;
pub use self::uplink::{OwnNetwork, UplinkControl};
use self::worker::Worker;
use super::device::{ActivateError, Activation, DeviceCounters, StoppedQueue, VirtioDevice};
use super::ring::{Ring, take_queue};
use super::worker_thread::WorkerThread;

mod request;
mod sender;
pub mod spec;
mod tap;
mod uplink;
mod worker;

#[cfg(test)]
mod tests;

const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It does not take the settings that the device needs.
    #[error(
        "net: could not set up the descriptor given as a tap; it must be opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    Tap {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What the worker gives back; nothing when it never got the wire.
type Finished = Option<(Box<dyn Wire>, Vec<StoppedQueue>)>;

/// The network device.
pub struct Net {
    name: String,
    config: [u8; spec::CONFIG_BYTES],
    mtu: u16,
    features: u64,
    /// Absent when the guest may send as anybody.
    sender: Option<Arc<Sender>>,
    /// Absent when nothing waits for the way out.
    uplink: Option<Uplink>,
    counters: Arc<DeviceCounters>,
    /// Absent while active.
    wire: Option<Box<dyn Wire>>,
    worker: Option<WorkerThread<Finished>>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this MAC address and MTU (bytes of IP packet) on a tap opened with IFF_TAP, IFF_NO_PI and
    /// IFF_VNET_HDR. The tap becomes non-blocking.
    ///
    /// # Errors
    /// The descriptor is not such a tap.
    pub fn new(name: String, tap: OwnedFd, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        let tap = Tap::new(tap).map_err(|source| NetError::Tap { source })?;
        Ok(Self::on_wire(name, Box::new(tap), mac, mtu))
    }

    /// Lets the guest send as `sender` and as nobody else.
    #[must_use]
    pub fn only_as(mut self, sender: Sender) -> Self {
        self.sender = Some(Arc::new(sender));
        self
    }

    /// Holds what goes beyond `network` until the control opens the way.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn holding_beyond(mut self, network: OwnNetwork) -> io::Result<(Self, UplinkControl)> {
        let (uplink, control) = Uplink::closed(network)?;
        self.uplink = Some(uplink);
        Ok((self, control))
    }

    /// A card on anything that keeps packet borders.
    #[must_use]
    pub fn on_wire(name: String, wire: Box<dyn Wire>, mac: [u8; 6], mtu: u16) -> Self {
        let mut features = spec::F_CSUM
            | spec::F_GUEST_CSUM
            | spec::F_MTU
            | spec::F_MAC
            | spec::F_GUEST_TSO4
            | spec::F_GUEST_TSO6
            | spec::F_GUEST_ECN
            | spec::F_HOST_TSO4
            | spec::F_HOST_TSO6
            | spec::F_HOST_ECN
            | spec::F_MRG_RXBUF
            | spec::F_STATUS
            | spec::F_INDIRECT_DESC
            | spec::F_EVENT_IDX;
        if wire.has_udp_segmentation() {
            features |= spec::F_GUEST_USO4 | spec::F_GUEST_USO6 | spec::F_HOST_USO;
        }
        let mut config = [0; spec::CONFIG_BYTES];
        // `struct virtio_net_config` (section 5.1.4): mac, status, max_virtqueue_pairs, mtu.
        let fields = mac
            .into_iter()
            .chain(spec::LINK_UP.to_le_bytes())
            .chain(1u16.to_le_bytes())
            .chain(mtu.to_le_bytes());
        for (to, from) in config.iter_mut().zip(fields) {
            *to = from;
        }
        Self {
            name,
            config,
            mtu,
            features,
            sender: None,
            uplink: None,
            counters: Arc::default(),
            wire: Some(wire),
            worker: None,
        }
    }

    fn receiving(&self, features: u64) -> Receiving {
        const LARGE: u64 =
            spec::F_GUEST_TSO4 | spec::F_GUEST_TSO6 | spec::F_GUEST_USO4 | spec::F_GUEST_USO6;
        let longest = if features & LARGE == 0 {
            spec::HEADER_BYTES + spec::ETHERNET_BYTES + usize::from(self.mtu)
        } else {
            spec::LONGEST_PACKET
        };
        Receiving {
            mergeable: features & spec::F_MRG_RXBUF != 0,
            longest,
        }
    }
}

impl VirtioDevice for Net {
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
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start
                .checked_add(i)
                .and_then(|at| self.config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            interrupt,
            features,
            mut queues,
        } = activation;
        let failed = |what| move |source| ActivateError::Host { what, source };
        let rx = take_queue(&mut queues, spec::RX_QUEUE)?;
        let tx = take_queue(&mut queues, spec::TX_QUEUE)?;
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let lost = || io::Error::other("an earlier worker ended without giving it back");
        self.wire
            .as_ref()
            .ok_or_else(lost)
            .and_then(|wire| wire.set_offloads(features))
            .map_err(failed("set the offloads of the tap"))?;

        let receiving = self.receiving(features);
        let sender = self.sender.clone();
        let uplink = self.uplink.clone();
        let counters = Arc::clone(&self.counters);
        let (give, given) = mpsc::channel();
        // The wire goes to the thread only once it exists, so that a failure leaves it here.
        let worker = WorkerThread::spawn(&self.name, move |stop| {
            let wire = given.recv().ok()?;
            let ring = |active| {
                Ring::new(
                    active,
                    &memory,
                    Arc::clone(&interrupt),
                    Arc::clone(&counters),
                )
            };
            let worker = Worker {
                wire,
                rx: ring(rx),
                tx: ring(tx),
                receiving,
                sender,
                uplink,
                counters: Arc::clone(&counters),
                epoll,
            };
            Some(worker.run(stop.as_raw_fd()))
        })
        .map_err(failed("start the thread of the network device"))?;
        if let Some(wire) = self.wire.take()
            && let Err(mpsc::SendError(wire)) = give.send(wire)
        {
            self.wire = Some(wire);
        }
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        let Some((wire, queues)) = self
            .worker
            .take()
            .and_then(|worker| worker.stop().flatten())
        else {
            return Vec::new();
        };
        self.wire = Some(wire);
        queues
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}
