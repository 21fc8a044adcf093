//! Page lists from the guest, checked. No I/O.

use vm_memory::VolatileSlice;

use super::spec::PAGE_BYTES;
use crate::virtio::chain::{copy_out, total_len};

/// Most pages that one chain may list. Linux lists 256.
pub const MAX_LISTED: usize = 4096;

/// Neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest address of the first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Reads a list of page numbers, 32 bits each, and joins neighbours. Returns the bytes of the list that were left out:
/// those beyond [`MAX_LISTED`] and an incomplete last number.
pub fn parse_pages(readable: &[VolatileSlice<'_>], runs: &mut Vec<Run>) -> usize {
    runs.clear();
    let total = total_len(readable);
    let count = (total / 4).min(MAX_LISTED);
    let mut bytes = vec![0; count * 4];
    copy_out(readable, 0, &mut bytes);
    let mut pages: Vec<u32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|number| u32::from_le_bytes(*number))
        .collect();
    // Linux lists neighbours in falling order as often as in rising.
    pages.sort_unstable();
    pages.dedup();
    for page in pages {
        let start = u64::from(page) * PAGE_BYTES;
        match runs.last_mut() {
            Some(run) if run.start + run.len == start => run.len += PAGE_BYTES,
            _ => runs.push(Run {
                start,
                len: PAGE_BYTES,
            }),
        }
    }
    total - count * 4
}
