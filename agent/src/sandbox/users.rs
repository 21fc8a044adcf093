//! The pod's own user namespace, and the namespaces that belong to it.
//!
//! A user namespace has power over those namespaces alone that were made in it: root of a pod may set up its own network
//! only if that is not the one that the guest has booted with. A short-lived child makes the namespaces in one clone; the
//! agent, which keeps all its rights over them, moves the network cards there, and then itself, so that whatever it does
//! for the pod (addresses, probes, forwarded ports) it does where the containers are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Uid, seteuid};
use vmpod_agent_protocol::messages::{SandboxConfig, UserNamespace};

use super::netlink;
use super::network::{self, Link};
use crate::boot::loopback_up;
use crate::container::{At as _, PodUsers, StepError};
use crate::process::{CloneRequest, Reaper, clone_process, keep_descriptors, send_signal};

/// Makes the namespaces and enters all but the user namespace itself. The cards of `request` come along, down and with their
/// names; their links are `links`.
pub fn enter(
    reaper: &Reaper,
    users: &UserNamespace,
    request: &SandboxConfig,
    links: &HashMap<String, Link>,
) -> Result<PodUsers, StepError> {
    let (keeper, _exit) = reaper
        .watch(|| {
            let request = CloneRequest {
                namespaces: libc::CLONE_NEWUSER
                    | libc::CLONE_NEWNET
                    | libc::CLONE_NEWIPC
                    | libc::CLONE_NEWUTS,
                ..Default::default()
            };
            clone_process(&request, wait_for_the_end)
        })
        .at(|| "make the pod's user namespace")?;
    let moved = (|| {
        for (file, first, count) in [
            ("uid_map", users.first_uid, users.uids),
            ("gid_map", users.first_gid, users.gids),
        ] {
            fs::write(
                format!("/proc/{}/{file}", keeper.pid),
                format!("0 {first} {count}\n"),
            )
            .at(|| format!("write the {file} of the pod's user namespace"))?;
        }
        let namespace = File::open(format!("/proc/{}/ns/user", keeper.pid))
            .at(|| "open the pod's user namespace")?;
        let cards = network::moves(request, links, keeper.pid);
        netlink::send(&cards).map_err(|error| StepError(error.to_string()))?;
        setns(
            &keeper.pidfd,
            CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
        )
        .at(|| "enter the pod's namespaces")?;
        loopback_up().at(|| "bring the pod's loopback interface up")?;
        Ok(PodUsers::new(namespace.into(), users.clone()))
    })();
    // The namespaces stay as long as somebody is in them or has them open.
    let _ = send_signal(&keeper.pidfd, libc::SIGKILL);
    moved
}

/// Does something as root of the pod: settings of its IPC namespace may be changed by nobody else, whatever his capabilities
/// (ipc/ipc_sysctl.c, `ipc_permissions`).
pub fn as_root_of_pod<T>(
    users: &UserNamespace,
    action: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    seteuid(Uid::from_raw(users.first_uid))?;
    let done = action();
    // Root is the real user all the time, so that this cannot be refused; capabilities come back with it.
    seteuid(Uid::from_raw(0))?;
    done
}

/// The child: holds the namespaces until the agent has them.
fn wait_for_the_end() -> libc::c_int {
    keep_descriptors(&mut []);
    // SAFETY: both take integers only or nothing.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        loop {
            libc::pause();
        }
    }
}
