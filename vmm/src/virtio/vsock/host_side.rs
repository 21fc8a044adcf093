//! The worker's dealings with host sockets: clients that come in, their first line, events, and times that end.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Ports, Verdict};
use super::request::{HANDSHAKE_BYTES, Handshake, parse_handshake};
use super::table::{Occupant, Token};
use super::worker::{ACCEPT_BATCH, ACCEPT_PAUSE, Worker, host_events};
use crate::virtio::device::DeviceCounters;

impl Worker<'_> {
    /// Lets host clients in. Returns true when more wait.
    pub(super) fn accept_clients(&mut self) -> bool {
        if self.accept_at.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        for _ in 0..ACCEPT_BATCH {
            match self.host.sockets.accept() {
                Ok(stream) => self.add_client(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.accept_at = None;
                    return false;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // No descriptors or no memory: the clients stay in the backlog.
                    DeviceCounters::add(&self.counters.errors, 1);
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return false;
                }
            }
        }
        true
    }

    fn add_client(&mut self, stream: UnixStream) {
        let fd = stream.as_raw_fd();
        // Dropping the stream closes it, which is what the client of a full device sees.
        match self.host.table.insert(Occupant::Client(stream)) {
            Ok(token) => {
                if self.watch(fd, token.0, host_events(false)).is_err() {
                    self.host.table.remove(token);
                }
            }
            Err(_) => DeviceCounters::add(&self.counters.errors, 1),
        }
    }

    /// Acts on an event of a host socket.
    pub(super) fn host_event(&mut self, token: Token, events: EventSet) {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let readable = events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        let writable = events.contains(EventSet::OUT);
        let Some(entry) = self.host.table.get_mut(token) else {
            return;
        };
        let keep = match &mut entry.occupant {
            Occupant::Client(_) => return self.read_handshake(token),
            Occupant::Connection(connection) => {
                let verdict = connection.take_host_events(readable, writable, hung_up);
                return self.apply(token, verdict);
            }
            Occupant::Draining(stream, rest) => {
                !hung_up && rest.flush(stream.as_fd()).is_ok() && !rest.is_empty()
            }
        };
        if !keep {
            self.host.table.remove(token);
        }
    }

    fn read_handshake(&mut self, token: Token) {
        let Some(Occupant::Client(stream)) =
            self.host.table.get_mut(token).map(|entry| &entry.occupant)
        else {
            return;
        };
        // Looked at first and fetched then, because what follows the line belongs to the guest.
        let mut line = [0; HANDSHAKE_BYTES];
        let n = match receive(stream, &mut line, libc::MSG_PEEK) {
            Ok(0) => return self.drop_client(token),
            Ok(n) => n,
            Err(e) if is_transient(&e) => return,
            Err(_) => return self.drop_client(token),
        };
        match parse_handshake(line.get(..n).unwrap_or_default()) {
            Handshake::Incomplete => {}
            Handshake::Malformed => {
                DeviceCounters::add(&self.counters.errors, 1);
                self.drop_client(token);
            }
            Handshake::Connect { port, length } => {
                let line = line.get_mut(..length).unwrap_or_default();
                match receive(stream, line, 0) {
                    Ok(n) if n == length => self.start_connection(token, port),
                    _ => self.drop_client(token),
                }
            }
        }
    }

    fn start_connection(&mut self, token: Token, guest: u32) {
        let ports = Ports {
            host: self.host.table.ephemeral_port(guest),
            guest,
        };
        self.host.table.convert(token, |occupant| match occupant {
            Occupant::Client(stream) => Occupant::Connection(Connection::from_host(ports, stream)),
            other => other,
        });
        self.host.table.queue_turn(token);
    }

    fn drop_client(&mut self, token: Token) {
        self.host.table.remove(token);
    }

    /// Ends what took too long.
    pub(super) fn end_expired(&mut self) {
        let now = Instant::now();
        while let Some(token) = self.host.table.next_expired(now) {
            if self.host.table.connection_mut(token).is_some() {
                self.apply(token, Verdict::Reset);
            } else {
                self.drop_client(token);
            }
        }
    }
}

/// recv(2) without waiting.
fn receive(stream: &UnixStream, into: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`.
    let n = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            into.as_mut_ptr().cast(),
            into.len(),
            flags | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
