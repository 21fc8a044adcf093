//! Why a machine ended.

use serde::{Deserialize, Serialize};

/// Why a machine ended, as far as the VMM saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ExitReason {
    /// A `stop` request.
    Stopped,
    /// SIGTERM or SIGINT to the VMM.
    Terminated {
        /// Signal number.
        signal: i32,
    },
    /// The guest asked for a reset (keyboard controller command 0xFE): how a Linux guest ends in order.
    Reset,
    /// The guest kernel panicked: its console said so before the reset.
    Panic {
        /// The panic line of the console.
        message: String,
    },
    /// A vCPU faulted with no handler left (KVM_EXIT_SHUTDOWN).
    TripleFault,
    /// KVM could not go on (KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY, or an ioctl's error).
    Hypervisor {
        /// What KVM said.
        message: String,
    },
    /// A device worker met an error of the host that it cannot survive.
    Device {
        /// Device name.
        device: String,
        /// The error chain.
        message: String,
    },
    /// The control connection closed: the pod host is gone.
    HostGone,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Terminated { signal } => write!(f, "the VMM was ended by signal {signal}"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panic { message } => write!(f, "the guest kernel panicked: {message}"),
            Self::TripleFault => {
                f.write_str("a vCPU of the guest faulted beyond recovery (triple fault)")
            }
            Self::Hypervisor { message } => write!(f, "KVM could not go on: {message}"),
            Self::Device { device, message } => write!(f, "device {device} failed: {message}"),
            Self::HostGone => f.write_str("the pod host went away"),
        }
    }
}
