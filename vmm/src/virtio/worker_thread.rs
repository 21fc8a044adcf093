//! A device's worker thread: has a name and a small stack, is stopped through an eventfd and hands back what it owned.
//!
//! Owned by the device between `activate` and `stop`. Does not know what the worker does.

use std::io;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Stack of a worker in bytes. Workers keep their buffers on the heap.
pub const WORKER_STACK: usize = 128 << 10;

/// A running worker that returns a `T` at its end.
#[derive(Debug)]
pub struct WorkerThread<T> {
    stop: EventFd,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts `run` on a thread named `name` (cut to 15 bytes by the kernel). `run` has to return soon after the eventfd
    /// it gets becomes readable.
    ///
    /// # Errors
    /// The host lacks a descriptor or a thread.
    pub fn spawn(name: &str, run: impl FnOnce(EventFd) -> T + Send + 'static) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let seen = stop.try_clone()?;
        let thread = Builder::new()
            .name(name.to_owned())
            .stack_size(WORKER_STACK)
            .spawn(move || run(seen))?;
        Ok(Self { stop, thread })
    }

    /// Ends the worker and returns what it returned; `None` if it panicked.
    pub fn stop(self) -> Option<T> {
        // Adding 1 to a fresh eventfd cannot block or fail.
        let _ = self.stop.write(1);
        self.thread.join().ok()
    }
}
