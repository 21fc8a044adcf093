//! Reads a chain of the request queue as the spans to fill (VIRTIO 1.3 section 5.4.6). No I/O.

use vm_memory::VolatileSlice;

use super::spec::REQUEST_BYTES;
use crate::virtio::chain::{ChainParts, window};

/// A request that the driver must not make (VIRTIO 1.3 section 5.4.6.1): a buffer that only the device may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entropy request has a buffer that is not device-writable")]
pub struct ReadableBuffer;

/// The spans to fill, at most [`REQUEST_BYTES`] together.
pub fn parse<'m>(parts: &ChainParts<'m>) -> Result<Vec<VolatileSlice<'m>>, ReadableBuffer> {
    if !parts.readable.is_empty() {
        return Err(ReadableBuffer);
    }
    Ok(window(&parts.writable, 0, REQUEST_BYTES as usize).collect())
}
