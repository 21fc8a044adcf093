//! The ids of a pod that has a user namespace of its own: plain data, told to the supervisor and to the agent.

use serde::{Deserialize, Serialize};
use vmpod_agent_protocol::messages as m;

/// How many ids a pod has, as a kubelet gives them out.
pub const IDS: u32 = 1 << 16;

/// Where the ids of pods begin that nobody else gives any. All pods have the same, as no two share a kernel: they are ids of
/// the pod's own machine, and files on the host have the pod's.
const FIRST: u32 = 1 << 16;

/// Ids from 0 up of the pod, and what its machine calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRanges {
    /// What the pod's user 0 is.
    pub first_uid: u32,
    /// How many users there are.
    pub uids: u32,
    /// What the pod's group 0 is.
    pub first_gid: u32,
    /// How many groups there are.
    pub gids: u32,
}

impl Default for IdRanges {
    fn default() -> Self {
        Self {
            first_uid: FIRST,
            uids: IDS,
            first_gid: FIRST,
            gids: IDS,
        }
    }
}

/// The same, as the agent is told.
#[must_use]
pub fn users_of(ids: IdRanges) -> m::UserNamespace {
    m::UserNamespace {
        first_uid: ids.first_uid,
        uids: ids.uids,
        first_gid: ids.first_gid,
        gids: ids.gids,
        ..Default::default()
    }
}
