//! The interrupt of a device behind MMIO: a status register and a line (VIRTIO 1.3 section 4.2.3.4).
//!
//! Raised by any worker thread, acknowledged by vCPU threads. The eventfd is wired to the interrupt controller by the
//! machine.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::registers::interrupt;
use crate::virtio::{Interrupt, InterruptKind};

/// Interrupt of one device.
#[derive(Debug)]
pub struct MmioInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    line: EventFd,
    /// The driver need not acknowledge ([`super::registers::VENDOR_PLAIN`]).
    plain: bool,
}

impl MmioInterrupt {
    /// Nothing pending. `plain` says that each interrupt has an edge, whether or not the one before was acknowledged.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new(plain: bool) -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            plain,
        })
    }

    /// What is pending: bits of the InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Changes with each configuration change.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Takes over what was pending in a machine that was saved. The line is not raised by it.
    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.status.store(
            status & (interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE),
            Ordering::SeqCst,
        );
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Descriptor of the line: a write of 1 is an edge.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}

impl Interrupt for MmioInterrupt {
    fn raise(&self, kind: InterruptKind) -> io::Result<()> {
        let bit = match kind {
            InterruptKind::Queue(_) => interrupt::USED_BUFFER,
            InterruptKind::Config => {
                self.generation.fetch_add(1, Ordering::SeqCst);
                interrupt::CONFIG_CHANGE
            }
        };
        // A bit that is still pending has its edge under way: the driver looks at the rings only after it has
        // acknowledged, so it will see what is there now.
        if self.status.fetch_or(bit, Ordering::SeqCst) & bit == 0 || self.plain {
            self.line.write(1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupt_raised_again_before_it_is_acknowledged_is_one_edge() {
        let interrupt = MmioInterrupt::new(false).unwrap();
        interrupt.raise(InterruptKind::Queue(0)).unwrap();
        interrupt.raise(InterruptKind::Queue(1)).unwrap();
        assert_eq!(interrupt.line().read().unwrap(), 1);
        assert_eq!(interrupt.status(), 1);
        interrupt.raise(InterruptKind::Config).unwrap();
        assert_eq!(interrupt.line().read().unwrap(), 1);
        assert_eq!((interrupt.status(), interrupt.generation()), (3, 1));
        interrupt.acknowledge(1);
        assert_eq!(interrupt.status(), 2);
        interrupt.raise(InterruptKind::Queue(0)).unwrap();
        assert_eq!(interrupt.line().read().unwrap(), 1);
    }

    #[test]
    fn interrupt_that_is_plain_is_an_edge_each_time_and_shows_in_the_status() {
        let interrupt = MmioInterrupt::new(true).unwrap();
        for _ in 0..3 {
            interrupt.raise(InterruptKind::Queue(0)).unwrap();
            assert_eq!(interrupt.line().read().unwrap(), 1);
            assert_eq!(interrupt.status(), 1);
        }
    }
}
