//! The VMM process of a pod: its start, its control connection, its end. Owned by the pod's supervisor.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use vmpod_vmm_api::{
    Attached, Event, ExitReason, LINE_BYTES, MachineConfig, Message, Reply, Request, TouchedPages,
};

use super::process::{Inherited, ProcessIdentity};
use super::process_space;

/// How long the VMM may take to answer a request.
const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// How long the last words of a VMM that has ended may be on their way.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Messages that wait to be read; the VMM sends one for each request and one at its end.
const MESSAGES: usize = 16;

/// The VMM does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The process cannot be started.
    #[error("cannot start the VMM {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The control connection broke.
    #[error("cannot send {request} to the VMM")]
    Send {
        /// The request.
        request: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("the VMM did not answer {request} within {} s", REPLY_LIMIT.as_secs())]
    Silent {
        /// The request.
        request: &'static str,
    },
    /// The VMM said no.
    #[error("the VMM refused {request}: {message}")]
    Refused {
        /// The request.
        request: &'static str,
        /// Its words.
        message: String,
    },
    /// The VMM ended instead of answering.
    #[error("the VMM ended before it answered {request}: {end}")]
    Ended {
        /// The request.
        request: &'static str,
        /// How.
        end: MachineEnd,
    },
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineEnd {
    /// What the VMM said before it went; `None` when it said nothing.
    pub reason: Option<ExitReason>,
    /// Status of the process; `None` when it could not be had.
    pub status: Option<ExitStatus>,
}

impl std::fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(reason) = &self.reason {
            return reason.fmt(f);
        }
        match self.status {
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => write!(f, "the VMM process was killed by signal {signal}"),
                (None, Some(code)) => {
                    write!(
                        f,
                        "the VMM process exited with code {code} and gave no reason"
                    )
                }
                (None, None) => f.write_str("the VMM process ended"),
            },
            None => f.write_str("the VMM process ended"),
        }
    }
}

/// A running VMM.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    identity: Option<ProcessIdentity>,
    writer: OwnedWriteHalf,
    messages: mpsc::Receiver<Message>,
    replies: VecDeque<Reply>,
    reason: Option<ExitReason>,
    /// The guest sends something beyond its network, and nobody has taken note.
    uplink_wanted: bool,
}

/// Something that a running machine does by itself.
#[derive(Debug)]
pub enum MachineNews {
    /// It sends something beyond its own network, which waits for [`Vmm::open_uplink`].
    UplinkWanted,
    /// It has ended.
    Ended(MachineEnd),
}

/// What a VMM is started with.
#[derive(Debug)]
pub struct VmmStart<'a> {
    /// The program.
    pub program: &'a Path,
    /// File that takes its standard error.
    pub log: &'a Path,
    /// Member list of the cgroup that it joins before it is asked for anything.
    pub cgroup: Option<&'a File>,
    /// Whether it is the only process that it sees.
    pub alone: bool,
    /// Descriptors that it inherits under their own numbers: taps.
    pub inherited: Vec<BorrowedFd<'a>>,
}

impl Vmm {
    /// Starts the process. It dies with the calling thread, and is killed when the value is dropped.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(start: VmmStart<'_>) -> Result<Self, VmmError> {
        let fail = |source| VmmError::Start {
            program: start.program.to_owned(),
            source,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(start.log)
            .map_err(fail)?;
        let inherited = start.inherited.iter().copied().chain([theirs.as_fd()]);
        let inherited = Inherited::of(&inherited.collect::<Vec<_>>()).map_err(fail)?;
        // Nothing is done between fork and exec, so that the C library need not copy this process (posix_spawn(3)). The
        // VMM itself asks to die with its parent; where that died before, the end of the connection tells it.
        let mut command = Command::new(start.program);
        command
            .arg("--control-fd")
            .arg(theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().map_err(fail)?))
            .stderr(Stdio::from(log))
            // It reads none, and what an administrator's shell holds is not for a process that guests attack.
            .env_clear()
            .kill_on_drop(true);
        let child = if start.alone {
            process_space::spawn_in_own(|| command.spawn())
        } else {
            command.spawn()
        }
        .map_err(fail)?;
        drop(inherited);
        drop(theirs);
        // Before it has taken its first order, and with that any memory for the guest or any thread.
        if let (Some(mut members), Some(pid)) = (start.cgroup, child.id()) {
            members
                .write_all(pid.to_string().as_bytes())
                .map_err(fail)?;
        }
        let identity = child
            .id()
            .and_then(|pid| ProcessIdentity::of(pid.cast_signed()));
        let (reader, writer) = UnixStream::from_std(ours).map_err(fail)?.into_split();
        let (sender, messages) = mpsc::channel(MESSAGES);
        tokio::spawn(read_messages(reader, sender));
        Ok(Self {
            child,
            identity,
            writer,
            messages,
            replies: VecDeque::new(),
            reason: None,
            uplink_wanted: false,
        })
    }

    /// Which process it is.
    #[must_use]
    pub fn identity(&self) -> Option<ProcessIdentity> {
        self.identity
    }

    /// Builds and boots the machine.
    ///
    /// # Errors
    /// When the VMM refuses, ends or does not answer.
    pub async fn create(&mut self, config: MachineConfig) -> Result<(), VmmError> {
        self.request("create", &Request::Create(Box::new(config)))
            .await
    }

    /// Writes the machine to the directory that its configuration names; it goes on then.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn snapshot(&mut self) -> Result<(), VmmError> {
        self.request("snapshot", &Request::Snapshot).await
    }

    /// Attaches a block device to the running machine: `file`, which the guest finds by `serial`, 1 to 20 bytes.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn attach_block(
        &mut self,
        file: &File,
        serial: &str,
        read_only: bool,
    ) -> Result<Attached, VmmError> {
        let request = Request::AttachBlock {
            serial: serial.to_owned(),
            read_only,
        };
        match self
            .ask("attach_block", &request, Some(file.as_fd()))
            .await?
        {
            Reply::Attached(attached) => Ok(attached),
            _ => Err(VmmError::Refused {
                request: "attach_block",
                message: "it answered something else".to_owned(),
            }),
        }
    }

    /// Which pages of its template the machine has written to; nothing that it says is relied upon. Once.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn touched(&mut self) -> Result<TouchedPages, VmmError> {
        let told = match self.ask("touched", &Request::Touched, None).await? {
            Reply::Touched { pages } => pages.checked(),
            _ => None,
        };
        told.ok_or_else(|| VmmError::Refused {
            request: "touched",
            message: "it answered with something that is no list of pages".to_owned(),
        })
    }

    /// Lets the guest send beyond its own network.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn open_uplink(&mut self) -> Result<(), VmmError> {
        self.request("open_uplink", &Request::OpenUplink).await
    }

    /// Ends the machine.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn stop(&mut self) -> Result<(), VmmError> {
        self.request("stop", &Request::Stop).await
    }

    async fn request(&mut self, name: &'static str, request: &Request) -> Result<(), VmmError> {
        self.ask(name, request, None).await.map(drop)
    }

    /// Asks, handing `descriptor` over.
    async fn ask(
        &mut self,
        name: &'static str,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Reply, VmmError> {
        let send = |source| VmmError::Send {
            request: name,
            source,
        };
        let mut line = serde_json::to_vec(request).map_err(|e| send(io::Error::other(e)))?;
        line.push(b'\n');
        if line.len() > LINE_BYTES {
            return Err(send(io::Error::other(format!(
                "the request of {} bytes exceeds the control line's limit of {LINE_BYTES}",
                line.len()
            ))));
        }
        // A VMM that went at once closes the connection: its end says more than the broken pipe.
        let sent = match descriptor {
            None => self.writer.write_all(&line).await,
            Some(descriptor) => self.send_with(&line, descriptor).await,
        };
        let answer = timeout(REPLY_LIMIT, async {
            loop {
                if let Some(reply) = self.replies.pop_front() {
                    return Some(reply);
                }
                if !self.take_message().await {
                    return None;
                }
            }
        })
        .await
        .map_err(|_| VmmError::Silent { request: name })?;
        match answer {
            Some(Reply::Error { message }) => Err(VmmError::Refused {
                request: name,
                message: super::status::bounded(&message),
            }),
            Some(reply) => Ok(reply),
            None => match timeout(REPLY_LIMIT, self.ended()).await {
                Ok(end) => Err(VmmError::Ended { request: name, end }),
                Err(_) => Err(match sent {
                    Err(source) => send(source),
                    Ok(()) => VmmError::Silent { request: name },
                }),
            },
        }
    }

    /// Sends `line` with a descriptor at its first byte.
    async fn send_with(&mut self, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let sent = self
            .writer
            .as_ref()
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let descriptors = [descriptor];
                ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
                let parts = [IoSlice::new(line)];
                Ok(sendmsg(
                    self.writer.as_ref(),
                    &parts,
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )?)
            })
            .await?;
        match line.get(sent..) {
            Some(rest) if !rest.is_empty() => self.writer.write_all(rest).await,
            _ => Ok(()),
        }
    }

    /// Takes one message in; `false` when the connection has ended.
    async fn take_message(&mut self) -> bool {
        let message = self.messages.recv().await;
        self.absorb(message)
    }

    fn absorb(&mut self, message: Option<Message>) -> bool {
        match message {
            Some(Message::Event(Event::Exited { exit })) => self.reason = Some(exit),
            Some(Message::Event(Event::UplinkWanted)) => self.uplink_wanted = true,
            Some(Message::Reply(reply)) => {
                if self.replies.len() < MESSAGES {
                    self.replies.push_back(reply);
                }
            }
            None => return false,
        }
        true
    }

    /// Waits for the process to end. Cancel safe.
    pub async fn ended(&mut self) -> MachineEnd {
        loop {
            if let Some(end) = self.message_or_end().await {
                return end;
            }
        }
    }

    /// Waits for something to happen. Cancel safe.
    pub async fn news(&mut self) -> MachineNews {
        loop {
            if std::mem::take(&mut self.uplink_wanted) {
                return MachineNews::UplinkWanted;
            }
            if let Some(end) = self.message_or_end().await {
                return MachineNews::Ended(end);
            }
        }
    }

    /// Takes one message in, or notes the end of the process.
    async fn message_or_end(&mut self) -> Option<MachineEnd> {
        let status = tokio::select! {
            // The last words come before the end of the process: they are read first.
            biased;
            message = self.messages.recv() => {
                if self.absorb(message) {
                    return None;
                }
                self.child.wait().await.ok()
            }
            status = self.child.wait() => {
                // What was said before the end is on its way still.
                while let Ok(true) = timeout(LAST_WORDS, self.take_message()).await {}
                status.ok()
            }
        };
        Some(MachineEnd {
            reason: self.reason.clone(),
            status,
        })
    }

    /// Kills the process and waits for its end, at most `limit`.
    pub async fn kill(&mut self, limit: Duration) -> Option<MachineEnd> {
        let _ = self.child.start_kill();
        timeout(limit, self.ended()).await.ok()
    }
}

async fn read_messages(reader: OwnedReadHalf, sender: mpsc::Sender<Message>) {
    let mut reader = BufReader::with_capacity(4096, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let bound = LINE_BYTES as u64;
        match (&mut reader).take(bound).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            return;
        }
        match serde_json::from_slice(&line) {
            Ok(message) => {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a control line of the VMM is not a message");
                return;
            }
        }
    }
}
