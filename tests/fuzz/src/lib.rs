//! What the targets share: bytes of a fuzzer read as choices, a guest that puts chains on rings, and a directory whose
//! loss is no loss.
//!
//! A target is one program in `targets/`; libFuzzer's `main` calls it with one input after the other. It fails by a
//! panic, a sanitizer's complaint, or an invariant of its own that does not hold.

mod feed;
mod guest;
mod scratch;

pub use feed::Feed;
pub use guest::{Guest, descriptors};
pub use scratch::Scratch;
