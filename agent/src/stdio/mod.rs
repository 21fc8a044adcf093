//! Standard streams of processes: pipes or a terminal on one side, the host's connections on the other.
//!
//! Nothing is read from a pipe while nobody is connected: the bytes wait there, and the writer blocks as it would on
//! any full pipe. What was read but not yet accepted by a connection is kept for the next one. Owned by the engine;
//! the copying runs in the task of the connection.

mod input;
mod output;
mod tail;

pub use input::Input;
pub use output::Output;
pub use tail::Tail;

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use vmpod_agent_protocol::messages::Stdio;
use vmpod_agent_protocol::stream::StdioStream;

use crate::byte_stream::ByteStream;
use crate::container::StandardStreams;

/// The agent's side of a process's streams. Streams that nobody asked for are absent.
#[derive(Clone, Debug, Default)]
pub struct ProcessStreams {
    stdin: Option<Arc<Input>>,
    stdout: Option<Arc<Output>>,
    stderr: Option<Arc<Output>>,
}

/// Makes the pipes that `wanted` asks for: the process's ends and the agent's.
pub fn pipes(wanted: &Stdio, tail: &Tail) -> io::Result<(StandardStreams, ProcessStreams)> {
    let mut process = StandardStreams::default();
    let mut agent = ProcessStreams::default();
    if wanted.terminal {
        return Ok((process, agent));
    }
    if wanted.stdin {
        let (read, write) = pipe()?;
        process.stdin = Some(read);
        agent.stdin = Some(Arc::new(Input::pipe(write, wanted.keep_stdin)?));
    }
    if wanted.stdout {
        let (read, write) = pipe()?;
        process.stdout = Some(write);
        agent.stdout = Some(Arc::new(Output::new(ByteStream::reader(read)?, tail)));
    }
    if wanted.stderr {
        let (read, write) = pipe()?;
        process.stderr = Some(write);
        agent.stderr = Some(Arc::new(Output::new(ByteStream::reader(read)?, tail)));
    }
    Ok((process, agent))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: pipe2 writes two descriptors into the array, which outlives the call.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and belong to nobody else.
    let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((read, write))
}

impl ProcessStreams {
    /// The streams of a process with a terminal, whose master is `master`.
    pub fn terminal(master: OwnedFd, tail: &Tail) -> io::Result<Self> {
        let input = master.try_clone()?;
        Ok(ProcessStreams {
            stdin: Some(Arc::new(Input::terminal(input)?)),
            stdout: Some(Arc::new(Output::new(ByteStream::reader(master)?, tail))),
            stderr: None,
        })
    }

    /// Standard input, when it is connectable.
    pub fn input(&self) -> Option<&Arc<Input>> {
        self.stdin.as_ref()
    }

    /// An output stream, when it is connectable.
    pub fn output(&self, stream: StdioStream) -> Option<&Arc<Output>> {
        match stream {
            StdioStream::Stdin => None,
            StdioStream::Stdout => self.stdout.as_ref(),
            StdioStream::Stderr => self.stderr.as_ref(),
        }
    }

    /// The output streams that exist.
    pub fn outputs(&self) -> Vec<Arc<Output>> {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Sets the size of the terminal; false: there is none.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<bool> {
        match &self.stdin {
            Some(input) => input.resize(rows, columns),
            None => Ok(false),
        }
    }

    /// Whether all output has been handed over and its end seen.
    pub fn is_drained(&self) -> bool {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .all(|output| output.is_drained())
    }

    /// Moves what has been written so far, and nobody has fetched, into the tail; for a container that has ended.
    pub fn look_ahead(&self) {
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output.look_ahead();
        }
    }
}

/// TIOCSWINSZ.
pub fn resize(terminal: RawFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    if unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the other side of a connection has gone altogether (and not only stopped sending).
pub(crate) fn is_gone(connection: &ByteStream) -> bool {
    let mut poll = libc::pollfd {
        fd: connection.raw(),
        events: 0,
        revents: 0,
    };
    // SAFETY: poll reads and writes one structure, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}
