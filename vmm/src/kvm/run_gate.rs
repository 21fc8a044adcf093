//! Where vCPU threads learn whether to run, stand still or end.
//!
//! Shared by the control thread, which asks, and the vCPU threads, which obey. Asking alone does not get a thread out of
//! the guest: `vcpu_thread` kicks it afterwards.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the control thread asks of the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Run the guest.
    Run,
    /// Stand still.
    Pause,
    /// Leave the thread.
    Stop,
}

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// The gate.
#[derive(Debug, Default)]
pub struct RunGate {
    /// Read on every pass of a vCPU thread, so without the lock.
    wanted: AtomicU8,
    /// vCPU threads that stand still. Shared by all of them and the control thread.
    standing: Mutex<usize>,
    changed: Condvar,
}

impl RunGate {
    /// What is wanted now.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            RUN => Wanted::Run,
            PAUSE => Wanted::Pause,
            _ => Wanted::Stop,
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // The count is right at every unlock, so a panicked holder leaves no harm.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks. Once `Stop` was asked it stays.
    pub fn ask(&self, wanted: Wanted) {
        let _standing = self.lock();
        if self.wanted.load(Ordering::Relaxed) != STOP {
            let value = match wanted {
                Wanted::Run => RUN,
                Wanted::Pause => PAUSE,
                Wanted::Stop => STOP,
            };
            self.wanted.store(value, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// For a vCPU thread: stands still as long as `Pause` is wanted; returns what is wanted then.
    pub fn stand(&self) -> Wanted {
        let mut standing = self.lock();
        *standing += 1;
        self.changed.notify_all();
        while self.wanted() == Wanted::Pause {
            standing = self
                .changed
                .wait(standing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *standing -= 1;
        self.wanted()
    }

    /// For a vCPU thread that ends: it stands for good, so that nobody waits for it.
    pub fn leave(&self) {
        *self.lock() += 1;
        self.changed.notify_all();
    }

    /// For the control thread: waits until `count` threads stand, or `Pause` is no longer wanted.
    pub fn wait_standing(&self, count: usize) {
        let mut standing = self.lock();
        while *standing < count && self.wanted() == Wanted::Pause {
            standing = self
                .changed
                .wait(standing)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn gate_paused_holds_all_threads_until_asked_to_run_and_stop_ends_them() {
        let gate = Arc::new(RunGate::default());
        let turns = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, turns) = (Arc::clone(&gate), Arc::clone(&turns));
                std::thread::spawn(move || {
                    loop {
                        match gate.wanted() {
                            Wanted::Run => {
                                turns.fetch_add(1, Ordering::Relaxed);
                            }
                            Wanted::Pause => {
                                gate.stand();
                            }
                            Wanted::Stop => break,
                        }
                    }
                })
            })
            .collect();
        gate.ask(Wanted::Pause);
        gate.wait_standing(3);
        let before = turns.load(Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(turns.load(Ordering::Relaxed), before);
        gate.ask(Wanted::Run);
        while turns.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
        gate.ask(Wanted::Pause);
        gate.wait_standing(3);
        gate.ask(Wanted::Stop);
        gate.ask(Wanted::Run);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
