//! Skeleton: the guest agent.
