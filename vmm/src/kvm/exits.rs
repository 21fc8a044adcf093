//! Counts of exits to user space, by kind. Written by one vCPU thread each, read by the control thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of exits that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// Port access that is answered.
    Io,
    /// Port access that nothing answers.
    IoUnknown,
    /// Access to a virtio window.
    Mmio,
    /// Access to a physical address that nothing answers.
    MmioUnknown,
    /// HLT without in-kernel APIC.
    Hlt,
    /// A kick or another signal.
    Intr,
    /// Anything else.
    Other,
}

const NAMES: [&str; 7] = [
    "io",
    "io_unknown",
    "mmio",
    "mmio_unknown",
    "hlt",
    "intr",
    "other",
];

/// One vCPU's counts.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; NAMES.len()]);

impl ExitCounts {
    /// Counts one exit.
    pub fn add(&self, kind: ExitKind) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The count of one kind.
    #[must_use]
    pub fn of(&self, kind: ExitKind) -> u64 {
        self.0
            .get(kind as usize)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Kinds with their counts.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES
            .iter()
            .zip(&self.0)
            .map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
    }
}
