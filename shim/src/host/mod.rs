//! The host itself: how much it can hold, where the parts of vmpod lie, and whether it can run pods at all.

pub mod bundle;
pub mod capacity;
pub mod check;
pub mod disk_room;
pub mod install;
