//! The line between the agent and a process that it has made, until that process executes its program.
//!
//! A pair of SOCK_SEQPACKET sockets with one-byte kinds. The child's end is closed by execve, so that the end of the
//! line after "start" means success and anything else means failure.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use super::program::{Program, Terminal};
use super::step::StepError;
use crate::byte_stream::ByteStream;

/// Longest message; an error sentence beyond it is cut.
const MESSAGE_BYTES: usize = 8192;

/// What the child says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromChild {
    /// Everything is made; the number of the terminal's master descriptor in the child, if there is one.
    Ready(Option<RawFd>),
    /// The namespaces exist: `createRuntime` hooks may run now.
    Hooks,
    /// It did not work, and the child is gone.
    Failed(String),
    /// The line has ended.
    Closed,
}

/// The child's end, blocking.
#[derive(Debug)]
pub struct ChildEnd {
    fd: OwnedFd,
}

/// The agent's end.
#[derive(Debug)]
pub struct ParentEnd {
    stream: ByteStream,
}

/// Makes a line.
pub fn pair() -> io::Result<(ParentEnd, ChildEnd)> {
    let mut fds = [-1; 2];
    // SAFETY: socketpair writes two descriptors into the array, which outlives the call.
    let result = unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and belong to nobody else.
    let [parent, child] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((
        ParentEnd {
            stream: ByteStream::new(parent)?,
        },
        ChildEnd { fd: child },
    ))
}

impl ParentEnd {
    /// The child's next message.
    pub async fn receive(&self) -> io::Result<FromChild> {
        let mut buffer = vec![0; MESSAGE_BYTES];
        let length = match self.stream.read(&mut buffer).await {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        let Some((kind, rest)) = buffer.get(..length).and_then(<[u8]>::split_first) else {
            return Ok(FromChild::Closed);
        };
        let text = String::from_utf8_lossy(rest);
        Ok(match kind {
            b'R' => FromChild::Ready(text.parse().ok()),
            b'H' => FromChild::Hooks,
            _ => FromChild::Failed(text.into_owned()),
        })
    }

    /// Lets the child go on from where it waits.
    pub async fn go(&self) -> io::Result<()> {
        self.stream.write_all(b"G").await
    }
}

impl ChildEnd {
    /// For [`crate::process::keep_descriptors`].
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Says something to the agent. A failure is of no use to anybody: the agent is gone.
    pub fn send(&self, message: &FromChild) {
        let mut bytes = match message {
            FromChild::Ready(None) => b"R".to_vec(),
            FromChild::Ready(Some(master)) => format!("R{master}").into_bytes(),
            FromChild::Hooks => b"H".to_vec(),
            FromChild::Failed(text) => format!("E{text}").into_bytes(),
            FromChild::Closed => return,
        };
        bytes.truncate(MESSAGE_BYTES);
        // SAFETY: the pointer and length are those of a live buffer.
        unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
            );
        }
    }

    /// Tells the agent how the preparations ended and waits for its word to execute. `None`: they failed, or the agent
    /// has let go.
    pub fn go_ahead(
        &self,
        prepared: Result<(Program, Option<Terminal>), StepError>,
    ) -> Option<Program> {
        match prepared {
            Ok((program, terminal)) => {
                // The terminal lives until the agent has taken its other side.
                let master = terminal.as_ref().map(|own| own.master.as_raw_fd());
                self.send(&FromChild::Ready(master));
                self.wait().then_some(program)
            }
            Err(StepError(text)) => {
                self.send(&FromChild::Failed(text));
                None
            }
        }
    }

    /// Waits for [`ParentEnd::go`]; false: the agent has let go of the line instead.
    pub fn wait(&self) -> bool {
        let mut byte = 0_u8;
        loop {
            // SAFETY: reads at most one byte into a live variable.
            let length = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut byte).cast(), 1) };
            if length < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return length == 1;
        }
    }
}
