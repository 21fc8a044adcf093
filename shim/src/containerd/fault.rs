//! Errors as containerd knows them: a kind (the gRPC code that its error definitions stand for) and a sentence.

use containerd_shim_protos::ttrpc::{self, Code, get_status};

use super::guest_spec::SpecError;
use super::settings::SettingsError;
use super::stdio::StdioError;
use super::task_state::{Operation, Refusal, TaskState};
use crate::pod::agent::AgentError;
use crate::pod::boot::BootError;
use crate::pod::journal::chain;
use crate::pod::tree::{TreeError, is_missing};

/// An operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Kind.
    pub code: Code,
    /// What was tried, on what, why it failed.
    pub message: String,
}

impl Fault {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// It is there already.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// It is not in the state for this.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// vmpod does not do this.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// Everything else.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Code::UNKNOWN, message)
    }

    /// `error` with its causes, when `what` was tried.
    pub fn because(what: &str, error: &dyn std::error::Error) -> Self {
        Self::unknown(format!("{what}: {}", chain(error)))
    }

    /// `operation` is not allowed on `what`.
    #[must_use]
    pub fn refused(operation: Operation, what: &str, state: TaskState, why: Refusal) -> Self {
        match why {
            // containerd's clients look for these words.
            Refusal::Gone => Self::not_found(format!("{what}: process already finished")),
            Refusal::State => Self::precondition(format!(
                "cannot {} {what}, which is {}",
                operation.word(),
                state.word()
            )),
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        Self::RpcStatus(get_status(fault.code, fault.message))
    }
}

impl From<AgentError> for Fault {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::Refused { code, .. } => *code,
            _ => Code::UNAVAILABLE,
        };
        Self::new(code, chain(&error))
    }
}

impl From<SpecError> for Fault {
    fn from(error: SpecError) -> Self {
        let code = match error {
            SpecError::Type { .. } => Code::INVALID_ARGUMENT,
            SpecError::HostNamespace { .. }
            | SpecError::HostDevice { .. }
            | SpecError::Hook { .. } => Code::FAILED_PRECONDITION,
        };
        Self::new(code, chain(&error))
    }
}

impl From<SettingsError> for Fault {
    fn from(error: SettingsError) -> Self {
        Self::because("cannot use vmpod's settings", &error)
    }
}

impl From<StdioError> for Fault {
    fn from(error: StdioError) -> Self {
        let code = match &error {
            StdioError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Code::NOT_FOUND
            }
            StdioError::Scheme { .. } => Code::INVALID_ARGUMENT,
            _ => Code::UNKNOWN,
        };
        Self::new(code, chain(&error))
    }
}

impl From<TreeError> for Fault {
    fn from(error: TreeError) -> Self {
        let code = if is_missing(&error) {
            Code::NOT_FOUND
        } else {
            Code::UNKNOWN
        };
        Self::new(code, chain(&error))
    }
}

impl From<BootError> for Fault {
    fn from(error: BootError) -> Self {
        Self::unknown(format!("cannot start the pod's machine: {}", chain(&error)))
    }
}

impl From<super::bundle::BundleError> for Fault {
    fn from(error: super::bundle::BundleError) -> Self {
        Self::invalid(chain(&error))
    }
}
