//! The supervising process: the library does everything.

use anyhow::Context;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::supervisor::{self, SuperviseStart};

use crate::cli::SuperviseArguments;

/// Runs a pod to its end.
pub fn supervise(roots: Roots, arguments: SuperviseArguments) -> anyhow::Result<u8> {
    let start =
        SuperviseStart::inherit(roots, arguments.id, arguments.lock_fd, arguments.report_fd)
            .context("cannot take over the pod: `supervise` is started by `vmpod run`")?;
    Ok(u8::from(!supervisor::supervise(start)))
}
