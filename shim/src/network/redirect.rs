//! Traffic control that joins two links: whatever comes in at the one goes out at the other (tc-mirred(8), action
//! redirect). Numbers and layouts are those of include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h and
//! tc_act/tc_mirred.h.

use super::netlink::{
    self, Attributes, Family, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NetlinkError,
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

/// Handle and parent of the ingress queueing discipline.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;

const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;

/// Priority of the filter, and all protocols (ETH_P_ALL) in network order.
const FILTER_INFO: u32 = 1 << 16 | 0x0300;

/// `struct tcmsg` of link `index`.
fn head(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut head = [0; 20];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&handle.to_ne_bytes());
    head[12..16].copy_from_slice(&parent.to_ne_bytes());
    head[16..].copy_from_slice(&info.to_ne_bytes());
    head
}

/// What comes in at link `from` goes out at link `to`.
fn one_way(from: u32, to: u32) -> [Message; 2] {
    let new = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    // `struct tc_mirred`: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let mut mirred = Vec::new();
    for number in [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to] {
        mirred.extend_from_slice(&u32::to_ne_bytes(number));
    }
    let action = Attributes::new().text(TCA_ACT_KIND, "mirred").nested(
        TCA_ACT_OPTIONS,
        &Attributes::new().bytes(TCA_MIRRED_PARMS, &mirred),
    );
    // Actions are numbered from 1.
    let actions = Attributes::new().nested(1, &action);
    let filter = Attributes::new().text(TCA_KIND, "matchall").nested(
        TCA_OPTIONS,
        &Attributes::new().nested(TCA_MATCHALL_ACT, &actions),
    );
    [
        Message::new(
            RTM_NEWQDISC,
            new,
            &head(from, INGRESS_HANDLE, INGRESS_PARENT, 0),
            &Attributes::new().text(TCA_KIND, "ingress"),
            "add a queueing discipline for what comes in",
        ),
        Message::new(
            RTM_NEWTFILTER,
            new,
            &head(from, 0, INGRESS_HANDLE, FILTER_INFO),
            &filter,
            "redirect what comes in (modules cls_matchall and act_mirred)",
        ),
    ]
}

/// Joins links `one` and `other` of this network namespace.
pub(super) fn join(one: u32, other: u32) -> Result<(), NetlinkError> {
    let messages = [one_way(one, other), one_way(other, one)].concat();
    netlink::exchange(Family::Route, &messages).map(drop)
}

/// Takes what [`join`] did away from link `index`; nothing there is no error.
pub(super) fn part(index: u32) -> Result<(), NetlinkError> {
    let message = Message::new(
        RTM_DELQDISC,
        NLM_F_ACK,
        &head(index, INGRESS_HANDLE, INGRESS_PARENT, 0),
        &Attributes::new(),
        "remove the queueing discipline for what comes in",
    );
    match netlink::exchange(Family::Route, &[message]) {
        Err(error)
            if matches!(
                error.number(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}
