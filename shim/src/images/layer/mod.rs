//! Image layers: from a tar stream of a stranger to a directory that overlayfs takes as a lower layer.
//!
//! `tar_stream` reads archives within limits, `unpack` writes entries below one directory and nowhere else,
//! `merged` looks paths up across layers as an overlay mount would show them, `compression` undoes gzip and zstd.
//! Knows no image names, manifests or registries.

pub mod compression;
pub mod merged;
pub mod tar_stream;
pub mod unpack;

mod beneath;

pub(super) use beneath::open_regular as beneath_open_regular;

#[cfg(test)]
mod hostile_tests;

/// Bytes of a stranger as text that is safe on a terminal and not longer than a line or two.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text
        .chars()
        .take(160)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(160).is_some() {
        shown.push('…');
    }
    shown
}
