//! How a command hands a prepared pod to a supervising process (`vmpod-supervise`) in a session of its own, with the pod's
//! lock and a report connection inherited.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pod::process::Inherited;
use crate::pod::registry::ReservedPod;
use crate::pod::roots::Roots;

/// Bytes of a report line.
const REPORT_BYTES: u64 = 64 * 1024;

/// How long the rest of a report may take whose beginning is there.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// What the supervisor tells the command that started it, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The agent has the pod.
    Started,
    /// The pod could not be started; it will be removed.
    Failed {
        /// The error with its causes.
        message: String,
    },
    /// The pod has ended and everything was taken back.
    Finished,
}

/// What the supervising process starts from.
#[derive(Debug)]
pub struct SuperviseStart {
    /// The roots.
    pub roots: Roots,
    /// Id of the pod.
    pub id: String,
    /// The pod's lock, held.
    pub lock: OwnedFd,
    /// Connection to whoever started the pod.
    pub report: UnixStream,
}

impl SuperviseStart {
    /// From the numbers on the command line. The calling process gets a session of its own.
    ///
    /// # Errors
    /// When a number is not an open descriptor.
    pub fn inherit(roots: Roots, id: String, lock: RawFd, report: RawFd) -> io::Result<Self> {
        // What is meant for the command's terminal is not meant for the pod, and no directory is kept busy.
        rustix::process::setsid()?;
        std::env::set_current_dir("/")?;
        for descriptor in [lock, report] {
            // SAFETY: fcntl on a number is harmless whether or not it is an open descriptor.
            if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if lock == report || lock < 3 || report < 3 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: both are open (checked above), differ, are no standard streams, and nothing in this process owns them
        // yet: they were inherited for this purpose.
        let (lock, report) = unsafe { (OwnedFd::from_raw_fd(lock), OwnedFd::from_raw_fd(report)) };
        Ok(Self {
            roots,
            id,
            lock,
            report: report.into(),
        })
    }
}

/// The supervisor as the command sees it that started it.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    report: BufReader<UnixStream>,
}

/// Starts the supervising process of `reserved`, whose config was written.
///
/// # Errors
/// When the process cannot be started; the pod is then still the caller's.
pub fn spawn(program: &Path, roots: &Roots, reserved: &ReservedPod) -> io::Result<Supervisor> {
    let (ours, theirs) = UnixStream::pair()?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(reserved.paths.supervisor_log())?;
    let inherited = Inherited::of(&[reserved.lock.as_fd(), theirs.as_fd()])?;
    // Nothing is done between fork and exec, so that the C library need not copy this process (posix_spawn(3)).
    let child = Command::new(program)
        .arg0("vmpod-supervise")
        .arg(&roots.run)
        .arg(&roots.state)
        .arg(&reserved.reservation.id)
        .arg(reserved.lock.as_raw_fd().to_string())
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    drop(inherited);
    Ok(Supervisor {
        child,
        report: BufReader::new(ours),
    })
}

impl Supervisor {
    /// The next report; `None` when the supervisor is gone.
    ///
    /// # Errors
    /// When the connection breaks or nothing comes within `limit` (`None`: any time).
    pub fn next_report(&mut self, limit: Option<Duration>) -> io::Result<Option<Report>> {
        self.report.get_ref().set_read_timeout(limit)?;
        let mut line = Vec::new();
        self.report
            .by_ref()
            .take(REPORT_BYTES)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(io::Error::other)
    }

    /// A report if there is one: `Some(None)` when the supervisor is gone.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn poll_report(&mut self) -> io::Result<Option<Option<Report>>> {
        if self.report.buffer().is_empty() {
            let mut polled = [nix::poll::PollFd::new(
                self.report.get_ref().as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            if nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO)? == 0 {
                return Ok(None);
            }
        }
        self.next_report(Some(REPORT_LIMIT)).map(Some)
    }

    /// What becomes readable when there is a report.
    #[must_use]
    pub fn report_descriptor(&self) -> BorrowedFd<'_> {
        self.report.get_ref().as_fd()
    }

    /// Process id of the supervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says that logs and status have been read: the supervisor may remove them. Waits for its end, at most `limit`.
    pub fn dismiss(mut self, limit: Duration) {
        drop(self.report);
        let deadline = std::time::Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The supervisor's end of the report connection. A command that is gone is no reason to stop: it was detached.
#[derive(Debug)]
pub(super) struct Reporter {
    stream: UnixStream,
}

impl Reporter {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    pub(super) fn send(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = self.stream.set_write_timeout(Some(Duration::from_secs(5)));
            let _ = self.stream.write_all(&line);
        }
    }

    /// Waits until the other end is closed, at most `limit`.
    pub(super) fn wait_closed(&mut self, limit: Duration) {
        let _ = self.stream.set_read_timeout(Some(limit));
        let _ = self.stream.read(&mut [0]);
    }
}
