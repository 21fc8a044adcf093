//! The pod's own user namespace, as the engine knows it: containers are born into it, and what the agent makes for them
//! belongs to their users.
//!
//! Who makes the namespace is no matter here (`sandbox::users` does). Ids of the pod begin at 0; as the guest counts them,
//! they begin somewhere else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::{Uid, fchown};
use vmpod_agent_protocol::messages::UserNamespace;

use super::program::StandardStreams;
use super::step::{At as _, StepError};

/// A user namespace that the pod's containers share, and which ids of the guest it has.
#[derive(Debug)]
pub struct PodUsers {
    namespace: OwnedFd,
    ids: UserNamespace,
}

impl PodUsers {
    /// The namespace behind a descriptor, with ids that [`check_users`] found good.
    pub fn new(namespace: OwnedFd, ids: UserNamespace) -> Self {
        PodUsers { namespace, ids }
    }

    /// Gives the pipes of a process to the user that it will be: in the namespace nobody could, as they are the agent's.
    pub(super) fn own_streams(&self, streams: &StandardStreams, uid: u32) -> Result<(), StepError> {
        let Some(owner) = guest_id(self.ids.first_uid, self.ids.uids, uid) else {
            return Err(outside(uid, self.ids.uids));
        };
        for pipe in streams.raw() {
            // SAFETY: the descriptor is one of `streams`, which outlives this.
            let pipe = unsafe { BorrowedFd::borrow_raw(pipe) };
            fchown(pipe, Some(Uid::from_raw(owner)), None)
                .at(|| format!("give the standard streams to user {uid}"))?;
        }
        Ok(())
    }
}

impl AsFd for PodUsers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn outside(id: u32, count: u32) -> StepError {
    StepError(format!(
        "id {id} is not in the pod's user namespace, which has the ids 0 to {}",
        count.saturating_sub(1)
    ))
}

/// What the guest calls id `id` of a pod that has `count` of them, from `first` up; `None`: the pod has no such id.
pub fn guest_id(first: u32, count: u32, id: u32) -> Option<u32> {
    (id < count).then(|| first.checked_add(id)).flatten()
}

/// Checks that ids can be mapped so.
pub fn check_users(users: &UserNamespace) -> Result<(), String> {
    for (what, first, count) in [
        ("user", users.first_uid, users.uids),
        ("group", users.first_gid, users.gids),
    ] {
        // The last id of all stands for none.
        if count == 0 || first.checked_add(count).is_none() {
            return Err(format!(
                "{count} {what} ids from {first} up cannot be those of a user namespace"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_the_namespace_have_no_guest_id() {
        assert_eq!(guest_id(65_536, 65_536, 0), Some(65_536));
        assert_eq!(guest_id(65_536, 65_536, 65_535), Some(131_071));
        assert_eq!(guest_id(65_536, 65_536, 65_536), None);
        assert_eq!(guest_id(u32::MAX, 2, 1), None);
    }

    #[test]
    fn ranges_that_are_empty_or_reach_too_far_are_refused() {
        let users = |first_uid, uids| UserNamespace {
            first_uid,
            uids,
            first_gid: 1,
            gids: 1,
            ..Default::default()
        };
        check_users(&users(65_536, 65_536)).unwrap();
        check_users(&users(0, u32::MAX)).unwrap();
        for (first, count) in [(65_536, 0), (1, u32::MAX), (u32::MAX, 1)] {
            assert!(
                check_users(&users(first, count)).is_err(),
                "{first} {count}"
            );
        }
    }
}
