//! The one thread of an active balloon: gives pages back to the host, and owns the queues until it is stopped.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Shared;
use super::request::{Run, parse_pages};
use super::spec::PAGE_BYTES;
use crate::virtio::chain::ChainParts;
use crate::virtio::device::{DeviceCounters, StoppedQueue};
use crate::virtio::ring::Ring;

/// Chains of one queue that are handled in a row; each may cost many system calls.
const BATCH: usize = 16;

const STOP: u64 = u64::MAX;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Lists pages that the guest gives away.
    Inflate,
    /// Lists pages that it takes back.
    Deflate,
    /// Its buffers are free memory.
    Report,
}

/// The state of the thread.
pub struct Worker<'m> {
    pub rings: Vec<(Role, Ring<'m>)>,
    pub memory: &'m GuestMemoryMmap<()>,
    pub shared: Arc<Shared>,
    pub counters: Arc<DeviceCounters>,
    pub epoll: Epoll,
}

impl<'m> Worker<'m> {
    /// Works until `stop` becomes readable.
    pub fn run(mut self, stop: RawFd) -> Vec<StoppedQueue> {
        if self.watch_all(stop).is_ok() {
            self.serve();
        } else {
            DeviceCounters::add(&self.counters.errors, 1);
        }
        self.rings
            .into_iter()
            .map(|(_, ring)| ring.into_stopped())
            .collect()
    }

    fn watch_all(&self, stop: RawFd) -> io::Result<()> {
        let add = |fd, data| {
            let event = EpollEvent::new(EventSet::IN, data);
            self.epoll.ctl(ControlOperation::Add, fd, event)
        };
        add(stop, STOP)?;
        for ((_, ring), at) in self.rings.iter().zip(0..) {
            add(ring.kick_fd(), at)?;
        }
        Ok(())
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::default(); 8];
        let mut parts = ChainParts::default();
        let mut runs = Vec::new();
        let mut busy = true;
        loop {
            let ready = match self.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
                Ok(n) => events.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a mistake of this program could lead here; stopping keeps the rings consistent.
                Err(_) => return,
            };
            for event in ready {
                match usize::try_from(event.data()).map(|at| self.rings.get(at)) {
                    Ok(Some((_, ring))) => ring.acknowledge_kick(),
                    _ => return,
                }
            }
            busy = false;
            for at in 0..self.rings.len() {
                busy |= self.drain(at, &mut parts, &mut runs);
            }
        }
    }

    /// Handles chains of one queue. Returns true when there may be more.
    fn drain(&mut self, at: usize, parts: &mut ChainParts<'m>, runs: &mut Vec<Run>) -> bool {
        let Some((role, ring)) = self.rings.get_mut(at) else {
            return false;
        };
        ring.disable_notifications();
        let mut more = true;
        for _ in 0..BATCH {
            let Some(taken) = ring.take(parts) else {
                more = ring.enable_notifications();
                break;
            };
            DeviceCounters::add(&self.counters.requests, 1);
            let (shared, memory) = (&self.shared, self.memory);
            match role {
                Role::Report => {
                    let freed = discard(&parts.writable, shared);
                    shared.reported_bytes.fetch_add(freed, Ordering::Relaxed);
                }
                Role::Inflate => {
                    let left_out = parse_pages(&parts.readable, runs);
                    if left_out > 0 {
                        shared.refused_ranges.fetch_add(1, Ordering::Relaxed);
                    }
                    let freed: u64 = runs
                        .iter()
                        .map(|run| discard_run(memory, run, shared))
                        .sum();
                    shared.inflated_bytes.fetch_add(freed, Ordering::Relaxed);
                }
                // The guest just uses them again: the host gives a page at the first touch.
                Role::Deflate => {}
            }
            ring.add_used(taken.head, 0);
        }
        ring.signal();
        more
    }
}

fn discard_run(memory: &GuestMemoryMmap<()>, run: &Run, shared: &Shared) -> u64 {
    let slices = usize::try_from(run.len)
        .ok()
        .and_then(|len| {
            memory
                .get_slices(GuestAddress(run.start), len, Permissions::Write)
                .ok()
        })
        .and_then(|slices| slices.collect::<Result<Vec<_>, _>>().ok());
    let Some(slices) = slices else {
        shared.refused_ranges.fetch_add(1, Ordering::Relaxed);
        return 0;
    };
    discard(&slices, shared)
}

/// Gives whole pages back to the host; what is not made of whole pages is refused. Returns the bytes given back.
fn discard(pieces: &[VolatileSlice<'_>], shared: &Shared) -> u64 {
    let mut freed = 0;
    for piece in pieces {
        let start = piece.ptr_guard_mut().as_ptr();
        let len = piece.len() as u64;
        // Regions begin at page borders of both sides.
        let whole = (start as u64).is_multiple_of(PAGE_BYTES) && len.is_multiple_of(PAGE_BYTES);
        // SAFETY: the range is guest memory, mapped for as long as the slice lives; only the guest's contents go, and the
        // guest asked for that.
        if whole && unsafe { libc::madvise(start.cast(), piece.len(), libc::MADV_DONTNEED) } == 0 {
            freed += len;
        } else {
            shared.refused_ranges.fetch_add(1, Ordering::Relaxed);
        }
    }
    freed
}
