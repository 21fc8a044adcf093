//! Requests, replies and events on the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ExitReason, MachineConfig, TouchedPages};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Build and boot the machine. Once per process.
    Create(Box<MachineConfig>),
    /// Stop all vCPUs. Idempotent.
    Pause,
    /// Let them run again. Idempotent.
    Resume,
    /// Write the machine to its `snapshot_to` directory. It stands still meanwhile, and goes on then if it ran. Once per
    /// machine.
    Snapshot,
    /// Add a block device to a machine that runs. The descriptor of its file comes with the request's bytes
    /// (SCM_RIGHTS), open for reading, and for writing unless `read_only`.
    AttachBlock {
        /// What the guest finds the device by: 1 to 20 bytes.
        serial: String,
        /// Whether the guest may only read.
        read_only: bool,
    },
    /// Which pages of its snapshot the machine has written to since it was saved, or went on from it. Once per machine, and
    /// only when there is no such knowledge beside the snapshot yet.
    Touched,
    /// Let what the guest sends beyond its own network leave from now on ([`crate::NetConfig::own_network`]). Idempotent.
    OpenUplink,
    /// End the machine and the process.
    Stop,
    /// What this machine is and how it is.
    Info,
    /// Counters.
    Metrics,
}

/// A line from the VMM: the answer to a request, or an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// Something that happened by itself.
    Event(Event),
    /// The answer to the oldest open request.
    Reply(Reply),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Request::Info`].
    Info(MachineInfo),
    /// Answer to [`Request::Metrics`].
    Metrics(Metrics),
    /// Answer to [`Request::AttachBlock`].
    Attached(Attached),
    /// Answer to [`Request::Touched`].
    Touched {
        /// The pages.
        pages: TouchedPages,
    },
    /// Not done.
    Error {
        /// What was tried, on what, why it failed.
        message: String,
    },
}

/// Where a device that was attached to a running machine is: what its driver has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Physical address of its virtio-mmio window.
    pub address: u64,
    /// Bytes of the window.
    pub size: u64,
    /// Its interrupt line.
    pub irq: u32,
}

/// Something that happened by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The machine ended; the process ends next.
    Exited {
        /// Why.
        exit: ExitReason,
    },
    /// The guest sends something beyond its own network, which waits for [`Request::OpenUplink`]. Once.
    UplinkWanted,
}

/// Life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// No `create` yet.
    Empty,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
    /// The machine ended.
    Exited,
}

/// Answer to [`Request::Info`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// The pod's id; empty before `create`.
    pub id: String,
    /// Version of the VMM.
    pub version: String,
    /// State.
    pub state: MachineState,
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Process id of the VMM.
    pub pid: u32,
}

/// Counters since `create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Exits to user space by kind (`io`, `mmio`, `hlt`, `intr`, ...), all vCPUs together.
    pub vcpu_exits: BTreeMap<String, u64>,
    /// Bytes of guest memory that are resident on the host.
    pub memory_resident_bytes: u64,
    /// Bytes that the balloon's page reporting gave back.
    pub memory_reported_bytes: u64,
    /// Per device name (`fs0`, `net0`, `vsock0`, `rng0`, `balloon0`, `blk0`).
    pub devices: BTreeMap<String, DeviceMetrics>,
}

/// Counters of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    /// Requests or packets done.
    pub requests: u64,
    /// Payload bytes from host to guest.
    pub read_bytes: u64,
    /// Payload bytes from guest to host.
    pub written_bytes: u64,
    /// Malformed or failed requests.
    pub errors: u64,
    /// Frames that the guest is not allowed to send ([`crate::SenderConfig`]).
    #[serde(default)]
    pub dropped: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Queue notifications received.
    pub notifications: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_golden_bytes() {
        assert_eq!(
            serde_json::to_string(&Request::Pause).unwrap(),
            r#"{"request":"pause"}"#
        );
        let event = Message::Event(Event::Exited {
            exit: ExitReason::Panic {
                message: "m".into(),
            },
        });
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"event":"exited","exit":{"reason":"panic","message":"m"}}"#
        );
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), event);
        let event = Message::Event(Event::UplinkWanted);
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"event":"uplink_wanted"}"#);
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), event);
        let reply: Message = serde_json::from_str(r#"{"reply":"done"}"#).unwrap();
        assert_eq!(reply, Message::Reply(Reply::Done));
    }
}
