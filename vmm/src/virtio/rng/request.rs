//! Parses a chain of the request queue into the spans to fill (VIRTIO 1.3 section 5.4.6). No I/O.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::spec::REQUEST_BYTES;

/// A request that the driver must not make (VIRTIO 1.3 section 5.4.6.1): a buffer that only the device may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entropy request has a buffer that is not device-writable")]
pub struct ReadableBuffer;

/// The spans of guest memory to fill, at most [`REQUEST_BYTES`] together. Addresses are as the driver gave them: whether
/// they lie in memory shows when they are written.
pub fn parse(
    chain: DescriptorChain<&GuestMemoryMmap<()>>,
) -> Result<Vec<(GuestAddress, u32)>, ReadableBuffer> {
    let mut spans = Vec::new();
    let mut room = REQUEST_BYTES;
    for descriptor in chain {
        if !descriptor.is_write_only() {
            return Err(ReadableBuffer);
        }
        let length = descriptor.len().min(room);
        if length > 0 {
            spans.push((descriptor.addr(), length));
            room -= length;
        }
    }
    Ok(spans)
}
