//! Skeleton: the machine.
