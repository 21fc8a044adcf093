//! Processes by identity rather than by number: a pid with the time it started, so that a number that was given to
//! somebody else is never signalled; and file locks that say who is alive.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process that is told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat` (proc(5)): clock ticks after boot at which it started.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// The process that has number `pid` now; `None` when there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    /// This very process.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).is_ok_and(|stat| {
            start_time(&stat) == Some(self.start_time)
                && !matches!(state(&stat), Some('Z' | 'X' | 'x'))
        })
    }

    /// A descriptor of it; `None`: it has ended.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        // Opened before the identity is checked: what it names can then not change any more.
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(descriptor)
    }

    /// Kills it and waits until it is gone, at most `limit`. Returns whether it is gone.
    #[must_use]
    pub fn kill_and_wait(&self, limit: Duration) -> bool {
        let Some(descriptor) = self.open() else {
            return true;
        };
        let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// A process of which no thread runs, until this is dropped.
#[derive(Debug)]
pub struct Stopped(OwnedFd);

impl Stopped {
    /// Stops `process` (SIGSTOP), and waits at most `limit` until all its threads stand still. `None`: they do not, or it
    /// has ended.
    #[must_use]
    pub fn stop(process: ProcessIdentity, limit: Duration) -> Option<Self> {
        let descriptor = process.open()?;
        pidfd_send_signal(&descriptor, Signal::STOP).ok()?;
        // Goes on when this is dropped, also where it is not returned.
        let stopped = Self(descriptor);
        let deadline = Instant::now() + limit;
        while !stands_still(process.pid) {
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Some(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended needs none.
        let _ = pidfd_send_signal(&self.0, Signal::CONT);
    }
}

/// Whether each thread of process `pid` is stopped, or has ended.
fn stands_still(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        std::fs::read_to_string(thread.path().join("stat"))
            .map_or(true, |stat| matches!(state(&stat), Some('T' | 'Z' | 'X')))
    })
}

/// Descriptors that programs inherit which are started while this lives. Also those that another thread starts: to be used
/// by programs that start others from one thread.
#[derive(Debug)]
pub struct Inherited<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Inherited<'a> {
    /// Has them inherited under their own numbers.
    ///
    /// # Errors
    /// fcntl(2) failed.
    pub fn of(descriptors: &[BorrowedFd<'a>]) -> io::Result<Self> {
        let mut inherited = Self(Vec::new());
        for descriptor in descriptors {
            fcntl_setfd(descriptor, FdFlags::empty())?;
            inherited.0.push(*descriptor);
        }
        Ok(inherited)
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        for descriptor in &self.0 {
            // It is open, which is all that could be wrong.
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
    }
}

/// Whether there is a process of number `pid` that runs: one that has ended and whose parent has not asked for that yet
/// does not.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(state(&stat), Some('Z' | 'X' | 'x')))
}

fn after_name(stat: &str) -> Option<&str> {
    // The name in brackets may hold anything, brackets and spaces too: the last bracket ends it.
    stat.rsplit_once(')').map(|(_, rest)| rest)
}

fn start_time(stat: &str) -> Option<u64> {
    after_name(stat)?.split_whitespace().nth(19)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    after_name(stat)?.split_whitespace().next()?.chars().next()
}

/// Opens `path` for a lock, making it where it is not; the descriptor is closed on exec.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Takes the lock at `path`, waiting for it.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn lock(path: &Path) -> io::Result<File> {
    let file = open_lock(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Takes the lock at `path` if nobody holds it.
///
/// # Errors
/// When the file cannot be opened; a lock that somebody holds is `Ok(None)`.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = open_lock(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether somebody holds the lock at `path`. A file that is not there is held by nobody.
#[must_use]
pub fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    matches!(
        flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_stands_still_until_it_is_let_go_and_one_that_ended_never_does() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = ProcessIdentity::of(pid).unwrap();
        let stopped = Stopped::stop(process, Duration::from_secs(30)).unwrap();
        assert!(stands_still(pid));
        drop(stopped);
        let deadline = Instant::now() + Duration::from_secs(30);
        while stands_still(pid) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Stopped::stop(process, Duration::from_secs(1)).is_none());
    }

    #[test]
    fn process_that_has_ended_and_was_not_waited_for_does_not_run() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(is_running(child.id()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_running(child.id()) {
            assert!(Instant::now() < deadline, "a killed process still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Path::new("/proc").join(child.id().to_string()).exists());
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }

    #[test]
    fn process_that_ended_is_not_alive() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id().cast_signed()).unwrap();
        assert!(identity.is_alive());
        let other = ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity
        };
        assert!(!other.is_alive());
        assert!(other.kill_and_wait(Duration::from_secs(1)));
        assert!(
            identity.is_alive(),
            "a process with another start time was killed"
        );
        assert!(identity.kill_and_wait(Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(!identity.is_alive());
    }

    #[test]
    fn stat_with_brackets_in_the_name_is_read() {
        let stat =
            "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21".to_owned();
        assert_eq!(start_time(&stat), Some(4242));
        assert_eq!(state(&stat), Some('S'));
    }

    #[test]
    fn lock_held_is_seen_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        assert!(!is_locked(&path));
        let held = lock(&path).unwrap();
        assert!(is_locked(&path));
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(!is_locked(&path));
        assert!(try_lock(&path).unwrap().is_some());
    }
}
