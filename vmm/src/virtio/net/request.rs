//! What the guest put on the rings, checked, and the receive buffers that wait for packets. No I/O.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::spec::{HEADER_BYTES, LONGEST_PACKET, NUM_BUFFERS_OFFSET, SHORTEST_FRAME, VLAN_BYTES};
use crate::virtio::chain::{ChainParts, IoVecs, MAX_PIECES, copy_in, total_len};

/// Bytes of the frame in a transmit chain; `None` when there can be none in it.
#[must_use]
pub fn frame_len(readable: &[VolatileSlice<'_>]) -> Option<usize> {
    let total = total_len(readable);
    let frame = total.checked_sub(HEADER_BYTES)?;
    (frame >= SHORTEST_FRAME && total <= LONGEST_PACKET).then_some(frame)
}

/// What was agreed on with the driver about packets to it.
#[derive(Clone, Copy, Debug)]
pub struct Receiving {
    /// Packets may span chains.
    pub mergeable: bool,
    /// Bytes of the longest packet that the wire should give, with its header.
    pub longest: usize,
}

impl Receiving {
    /// True when a read of `n` bytes into `room` bytes may have lost the end of a frame. A frame that fills the room
    /// exactly is taken for whole where one of full size has room; only a rare one with a VLAN tag is longer.
    #[must_use]
    pub fn is_cut(&self, n: usize, room: usize) -> bool {
        n > self.longest || (n == room && room + VLAN_BYTES < self.longest)
    }
}

/// A receive chain that waits.
#[derive(Clone, Copy, Debug)]
struct Posted {
    head: u16,
    bytes: usize,
    pieces: usize,
}

/// Receive chains taken from the ring and not used yet, oldest first.
///
/// They stay here from packet to packet: a large piece may need forty of them, a small one needs one.
#[derive(Debug, Default)]
pub struct ReceiveBuffers<'m> {
    chains: VecDeque<Posted>,
    /// Pieces of all chains, behind `first` that belong to none any more.
    pieces: Vec<VolatileSlice<'m>>,
    first: usize,
    bytes: usize,
}

impl<'m> ReceiveBuffers<'m> {
    /// Number of chains.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// True when there is no chain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Room in bytes: of all chains if packets may span them, else of the first.
    #[must_use]
    pub fn room(&self, mergeable: bool) -> usize {
        if mergeable {
            self.bytes
        } else {
            self.chains.front().map_or(0, |chain| chain.bytes)
        }
    }

    /// True when another chain cannot be used in one system call with those that are here.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pieces.len() - self.first >= MAX_PIECES
    }

    /// Adds a chain. False when it has no room for a packet header and a byte (section 5.1.6.3.1).
    pub fn push(&mut self, head: u16, parts: &ChainParts<'m>) -> bool {
        let bytes = total_len(&parts.writable);
        if bytes <= HEADER_BYTES {
            return false;
        }
        self.chains.push_back(Posted {
            head,
            bytes,
            pieces: parts.writable.len(),
        });
        self.pieces.extend_from_slice(&parts.writable);
        self.bytes += bytes;
        true
    }

    /// Where the next packet goes; returns the room in bytes, at most one more than the longest packet has.
    pub fn target(&self, receiving: Receiving, vectors: &mut IoVecs<'m>) -> usize {
        let room = self.room(receiving.mergeable).min(receiving.longest + 1);
        vectors.fill(self.pieces.get(self.first..).unwrap_or_default(), 0, room)
    }

    /// A packet of `len` bytes was put in: completes its header and moves its chains, with the bytes in each, to `used`.
    pub fn finish(&mut self, len: usize, used: &mut Vec<(u16, u32)>) {
        used.clear();
        let start = self.first;
        let mut left = len;
        while left > 0 {
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let n = left.min(chain.bytes);
            left -= n;
            // At most LONGEST_PACKET.
            used.push((chain.head, n as u32));
            self.first += chain.pieces;
            self.bytes -= chain.bytes;
        }
        // At most the number of entries of a ring. The host leaves this field alone.
        let count = (used.len() as u16).to_le_bytes();
        copy_in(
            self.pieces.get(start..).unwrap_or_default(),
            NUM_BUFFERS_OFFSET,
            &count,
        );
        if self.first > MAX_PIECES {
            self.pieces.drain(..self.first);
            self.first = 0;
        }
    }
}
