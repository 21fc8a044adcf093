//! A device's worker thread: has a name and a small stack, is stopped through an eventfd and hands back what it owned.
//!
//! Owned by the device between `activate` and `stop`. Does not know what the worker does.
//!
//! Devices are activated by vCPU threads, which in a confined process may not start threads and must not pass on their
//! rights: there a thread of its own, the spawner, starts the workers.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Stack of a worker in bytes. Workers keep their buffers on the heap.
pub const WORKER_STACK: usize = 128 << 10;
/// Stack of the spawner in bytes.
const SPAWNER_STACK: usize = 64 << 10;

/// Something for the spawner to do.
type Job = Box<dyn FnOnce() + Send>;

/// The spawner, once there is one.
struct Spawner {
    /// Shared by the vCPU threads that activate devices.
    jobs: Mutex<Sender<Job>>,
    /// Called by each worker first, with its name.
    on_start: fn(&str),
}

static SPAWNER: OnceLock<Spawner> = OnceLock::new();

/// Starts the spawner: a thread that calls `prepare` and then starts all further workers, which call `on_start` with
/// their name before they do anything else. Once per process; without it workers are started by whoever asks.
///
/// # Errors
/// The host lacks a thread.
pub fn start_spawner(prepare: fn(), on_start: fn(&str)) -> io::Result<()> {
    let (jobs, inbox) = channel::<Job>();
    let spawner = Spawner {
        jobs: Mutex::new(jobs),
        on_start,
    };
    if SPAWNER.set(spawner).is_err() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    Builder::new()
        .name("spawner".to_owned())
        .stack_size(SPAWNER_STACK)
        .spawn(move || {
            prepare();
            for job in inbox {
                job();
            }
        })?;
    Ok(())
}

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
        let spawner = SPAWNER.get();
        let on_start = spawner.map(|s| s.on_start);
        let name = name.to_owned();
        let start = move || {
            Builder::new()
                .name(name.clone())
                .stack_size(WORKER_STACK)
                .spawn(move || {
                    if let Some(on_start) = on_start {
                        on_start(&name);
                    }
                    run(seen)
                })
        };
        let thread = match spawner {
            None => start()?,
            Some(spawner) => {
                let gone = || io::Error::other("the thread that starts workers is gone");
                let (answer, started) = channel();
                let job: Job = Box::new(move || {
                    // The receiver waits below.
                    let _ = answer.send(start());
                });
                spawner
                    .jobs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .send(job)
                    .map_err(|_| gone())?;
                started.recv().map_err(|_| gone())??
            }
        };
        Ok(Self { stop, thread })
    }

    /// Ends the worker and returns what it returned; `None` if it panicked.
    pub fn stop(self) -> Option<T> {
        // Adding 1 to a fresh eventfd cannot block or fail.
        let _ = self.stop.write(1);
        self.thread.join().ok()
    }
}
