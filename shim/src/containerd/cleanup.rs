//! The `delete` action: the serving process is gone, and containerd wants what it left behind to go as well. Idempotent.

use std::fs;
use std::time::Duration;

use containerd_shim::{DeleteResponse, Flags};
use containerd_shim_protos::protobuf::{Message, MessageField};

use super::bundle::{OciBundle, Role};
use super::launch::socket_path;
use super::sandbox::{Place, take_back};
use super::tasks::KILLED;
use super::timestamp;
use crate::pod::clock;
use crate::pod::registry;
use crate::pod::roots::Roots;

/// How long a serving process that is about to go may still take.
const GOING: Duration = Duration::from_secs(5);

/// Does the action. Returns what is to be written to standard output.
#[must_use]
pub fn delete(flags: &Flags, roots: Roots) -> Vec<u8> {
    let bundle = if flags.bundle.is_empty() {
        std::env::current_dir().unwrap_or_default()
    } else {
        flags.bundle.clone().into()
    };
    let role = OciBundle::read(&bundle).map(|bundle| bundle.role);
    // What a container had of its own was in the mount namespace of the serving process: it is gone with that.
    if !matches!(role, Ok(Role::Member(_))) {
        let place = Place::of(roots, &flags.namespace, &flags.id);
        if place.paths.run.exists() && registry::wait_unattended(&place.paths, GOING) {
            take_back(&place.paths);
        }
        let address = containerd_shim::socket_address(&flags.address, &flags.namespace, &flags.id);
        let _ = fs::remove_file(socket_path(&address));
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(clock::now_ns())),
        ..Default::default()
    };
    // Numbers alone: there is nothing that could not be encoded.
    response.write_to_bytes().unwrap_or_default()
}
