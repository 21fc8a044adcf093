//! The control thread: takes requests, owns the machine, tells how it ended.
//!
//! It is the process's main thread. It answers from one place, so requests of several clients never overlap.

mod connection;
mod signals;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use vmpod_vmm_api::{
    Event, ExitReason, MachineConfig, MachineInfo, MachineState, Message, Metrics, Reply, Request,
};

use self::connection::{Connection, Incoming};
pub use self::signals::Signals;
use crate::ending::Ending;
use crate::machine::{BuiltMachine, CreateError, Machine};
use crate::virtio::net::UplinkControl;

/// Clients at once on a listening socket; more are turned away.
const MAX_CLIENTS: usize = 8;

/// Where requests come from.
#[derive(Debug)]
pub enum Source {
    /// One connection to the pod host; its end is the end of the machine.
    Host(UnixStream),
    /// Any number of clients, which come and go.
    Listener(UnixListener),
}

/// Control could not be set up or failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The descriptor is no socket.
    #[error(
        "use descriptor {fd} as control socket; pass the number of an inherited Unix stream socket"
    )]
    Descriptor {
        /// The number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The path cannot be listened on.
    #[error("listen on control socket {path}")]
    Listen {
        /// The path.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The machine could not be created.
    #[error("create the machine")]
    Create(#[source] CreateError),
    /// Something of the host.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Source {
    /// The inherited socket `fd`.
    ///
    /// # Errors
    /// It is no open socket.
    pub fn inherited(fd: RawFd) -> Result<Self, ControlError> {
        let fail = |source| ControlError::Descriptor { fd, source };
        if fd <= 2 {
            return Err(fail(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        // SAFETY: fcntl on a number that is no descriptor fails without effect.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(fail(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is open, and the command line gives it to this process to own.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
        stream.local_addr().map_err(fail)?;
        Ok(Self::Host(stream))
    }

    /// A new socket at `path`.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn listen(path: &Path) -> Result<Self, ControlError> {
        let listener = UnixListener::bind(path)
            .and_then(|l| l.set_nonblocking(true).map(|()| l))
            .map_err(|source| ControlError::Listen {
                path: path.display().to_string(),
                source,
            })?;
        Ok(Self::Listener(listener))
    }
}

/// The state of the control thread.
#[derive(Debug)]
struct Control {
    listener: Option<UnixListener>,
    clients: Vec<Connection>,
    signals: Signals,
    ending: Arc<Ending>,
    machine: Option<Machine>,
}

/// Serves requests until the machine ends or nobody is left to ask for one; returns why it ended.
///
/// # Errors
/// The machine could not be created, or the host lacks a descriptor.
pub fn serve(source: Source, signals: Signals) -> Result<ExitReason, ControlError> {
    let host = |what| move |source| ControlError::Host { what, source };
    let mut control = Control {
        listener: None,
        clients: Vec::new(),
        signals,
        ending: Arc::new(Ending::new().map_err(host("create an eventfd"))?),
        machine: None,
    };
    match source {
        Source::Host(stream) => control
            .clients
            .push(Connection::new(stream).map_err(host("set up the control socket"))?),
        Source::Listener(listener) => control.listener = Some(listener),
    }
    let result = control.run();
    // vCPUs and devices end before anyone is told, so that what they hold is free then and the console log complete.
    if let Some(machine) = &mut control.machine {
        machine.stop();
    }
    match result {
        Ok(exit) => {
            let event = Message::Event(Event::Exited { exit: exit.clone() });
            for client in &mut control.clients {
                // Whoever is gone does not need to know.
                let _ = client.send(&event);
            }
            Ok(exit)
        }
        Err(error) => Err(error),
    }
}

impl Control {
    fn run(&mut self) -> Result<ExitReason, ControlError> {
        loop {
            let ready = self.wait().map_err(|source| ControlError::Host {
                what: "wait for requests",
                source,
            })?;
            if let Some(reason) = self.ending.reason() {
                return Ok(reason);
            }
            if let Some(signal) = self.signals.take() {
                return Ok(ExitReason::Terminated { signal });
            }
            self.tell_wanted_uplinks();
            // From the last, because a closed connection is removed.
            for index in (0..self.clients.len()).rev() {
                if ready.get(index).copied().unwrap_or(false)
                    && let Some(reason) = self.serve_client(index)?
                {
                    return Ok(reason);
                }
            }
            self.accept();
        }
    }

    /// Waits until something can be done; tells for each client whether it has sent something.
    fn wait(&self) -> io::Result<Vec<bool>> {
        use std::os::fd::AsRawFd;
        let watched = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds: Vec<libc::pollfd> = self.clients.iter().map(|c| watched(c.fd())).collect();
        fds.push(watched(self.ending.fd()));
        fds.push(watched(self.signals.fd()));
        fds.extend(self.uplinks().iter().map(|u| watched(u.wanted_fd())));
        let sleeping = self.machine.as_ref().map(Machine::sleeping_kicks);
        fds.extend(sleeping.iter().flatten().map(|&fd| watched(fd)));
        if let Some(listener) = &self.listener {
            fds.push(watched(listener.as_raw_fd()));
        }
        // SAFETY: the pointer and length are those of a live vector of pollfd.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if let Some(machine) = &self.machine
            && sleeping.is_some_and(|kicks| !kicks.is_empty())
        {
            let is_ready = |of| fds.iter().any(|fd| fd.fd == of && fd.revents != 0);
            machine.wake_devices(is_ready);
        }
        Ok(fds
            .iter()
            .take(self.clients.len())
            .map(|fd| n > 0 && fd.revents != 0)
            .collect())
    }

    fn uplinks(&self) -> &[UplinkControl] {
        self.machine.as_ref().map_or(&[], Machine::uplinks)
    }

    fn tell_wanted_uplinks(&mut self) {
        let wanted = self.uplinks().iter().filter(|u| u.take_wanted()).count();
        for _ in 0..wanted {
            for client in &mut self.clients {
                // One that is gone is noticed by the next look at its socket.
                let _ = client.send(&Message::Event(Event::UplinkWanted));
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        while let Ok((stream, _)) = listener.accept() {
            if self.clients.len() < MAX_CLIENTS
                && let Ok(connection) = Connection::new(stream)
            {
                self.clients.push(connection);
            }
        }
    }

    /// Handles all requests of a client; returns the reason when the machine ends by them.
    fn serve_client(&mut self, index: usize) -> Result<Option<ExitReason>, ControlError> {
        loop {
            let Some(client) = self.clients.get_mut(index) else {
                return Ok(None);
            };
            let reply = match client.receive() {
                Incoming::Nothing => return Ok(None),
                Incoming::Closed => {
                    self.clients.remove(index);
                    // Without a listener this was the pod host.
                    return Ok(self.listener.is_none().then_some(ExitReason::HostGone));
                }
                Incoming::Malformed(message) => Reply::Error { message },
                Incoming::Request(Request::Stop) => {
                    self.reply(index, Reply::Done);
                    return Ok(Some(ExitReason::Stopped));
                }
                Incoming::Request(Request::Create(config)) => {
                    if let Err(error) = self.create(*config) {
                        let message = chain(&error);
                        self.reply(index, Reply::Error { message });
                        return Err(ControlError::Create(error));
                    }
                    Reply::Done
                }
                Incoming::Request(Request::AttachBlock { serial, read_only }) => {
                    let descriptor = client.take_descriptor();
                    self.attach_block(descriptor, &serial, read_only)
                }
                Incoming::Request(request) => self.answer(&request),
            };
            self.reply(index, reply);
        }
    }

    fn reply(&mut self, index: usize, reply: Reply) {
        if let Some(client) = self.clients.get_mut(index) {
            // A client that is gone is noticed by the next look at its socket.
            let _ = client.send(&Message::Reply(reply));
        }
    }

    fn create(&mut self, config: MachineConfig) -> Result<(), CreateError> {
        if self.machine.is_some() {
            return Err(CreateError::Host {
                what: "create a second machine in one process",
                source: io::Error::from(io::ErrorKind::AlreadyExists),
            });
        }
        let built = BuiltMachine::build(config)?;
        self.machine = Some(built.start(Arc::clone(&self.ending))?);
        Ok(())
    }

    fn attach_block(
        &mut self,
        descriptor: Option<OwnedFd>,
        serial: &str,
        read_only: bool,
    ) -> Reply {
        let refused = |message: String| Reply::Error {
            message: format!("attach block device {serial:?}: {message}"),
        };
        match (&mut self.machine, descriptor) {
            (None, _) => refused("the machine was not created".to_owned()),
            (_, None) => refused("no descriptor came with the request".to_owned()),
            (Some(machine), Some(file)) => {
                match machine.attach_block(file.into(), serial, read_only) {
                    Ok(attached) => Reply::Attached(attached),
                    Err(e) => refused(chain(&e)),
                }
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        let Some(machine) = &mut self.machine else {
            return match request {
                Request::Info => Reply::Info(empty()),
                Request::Metrics => Reply::Metrics(Metrics::default()),
                _ => Reply::Error {
                    message: format!("{request:?} before the machine was created"),
                },
            };
        };
        match request {
            Request::Pause => {
                machine.pause();
                Reply::Done
            }
            Request::Resume => {
                machine.resume();
                Reply::Done
            }
            Request::Snapshot => match machine.snapshot() {
                Ok(()) => Reply::Done,
                Err(e) => Reply::Error { message: chain(&e) },
            },
            Request::Touched => match machine.touched() {
                Ok(pages) => Reply::Touched { pages },
                Err(e) => Reply::Error { message: chain(&e) },
            },
            Request::OpenUplink => {
                machine.uplinks().iter().for_each(UplinkControl::open);
                Reply::Done
            }
            Request::Info => Reply::Info(machine.info()),
            Request::Metrics => match machine.metrics() {
                Ok(metrics) => Reply::Metrics(metrics),
                Err(e) => Reply::Error { message: chain(&e) },
            },
            // Handled by the caller.
            Request::Create(_) | Request::Stop | Request::AttachBlock { .. } => Reply::Done,
        }
    }
}

/// What Info says before there is a machine.
fn empty() -> MachineInfo {
    MachineInfo {
        id: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: MachineState::Empty,
        vcpus: 0,
        memory_mib: 0,
        pid: std::process::id(),
    }
}

/// An error with all that caused it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some foreign errors repeat their source.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
