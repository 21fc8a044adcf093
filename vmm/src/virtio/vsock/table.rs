//! The host sockets that the device works with, each in a slot: clients that have not said what they want, connections,
//! and what is left of connections that ended. Bounded; a slot's token is never valid for its next occupant.
//!
//! Owned by the worker; survives a pause.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::connection::{Connection, Ports};
use super::send_buffer::SendBuffer;

/// Most sockets at a time.
pub const MAX_SOCKETS: usize = 1023;

/// How long a host client may take to say where it wants to go, and after that the guest to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// First port given to host clients. Ports below are left to listeners.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;

/// Names an occupied slot: index in the low half, generation in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u64);

impl Token {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(index) | u64::from(generation) << 32)
    }

    fn index(self) -> usize {
        // The low half; a slot index.
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// What a slot holds.
#[derive(Debug)]
pub enum Occupant {
    /// A host client whose first line has not come yet.
    Client(UnixStream),
    /// A connection.
    Connection(Connection),
    /// The guest is done with the connection, the host has not taken all of it yet.
    Draining(UnixStream, SendBuffer),
}

impl Occupant {
    /// The host socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        match self {
            Self::Client(stream) | Self::Draining(stream, _) => stream,
            Self::Connection(connection) => connection.stream(),
        }
    }

    /// True when the host socket is to be watched for space.
    #[must_use]
    pub fn awaits_space(&self) -> bool {
        match self {
            Self::Client(_) => false,
            Self::Connection(connection) => connection.awaits_space(),
            Self::Draining(_, rest) => !rest.is_empty(),
        }
    }

    fn has_deadline(&self) -> bool {
        match self {
            Self::Client(_) => true,
            Self::Connection(connection) => connection.awaits_answer(),
            Self::Draining(..) => false,
        }
    }
}

/// A slot's occupant with what the worker notes about it.
#[derive(Debug)]
pub struct Entry {
    /// What it holds.
    pub occupant: Occupant,
    /// It waits in the table's turn order.
    queued: bool,
    /// When its time ends.
    deadline: Option<Instant>,
    /// The socket is watched for space.
    pub watches_space: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// All slots.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, Token>,
    /// Connections that have something for the guest, in turn.
    turns: VecDeque<Token>,
    /// Ascending, because each lasts [`ANSWER_LIMIT`].
    deadlines: VecDeque<(Instant, Token)>,
    next_port: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            deadlines: VecDeque::new(),
            next_port: FIRST_EPHEMERAL_PORT,
        }
    }
}

impl Table {
    /// True when nothing more can be put in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= MAX_SOCKETS
    }

    /// Puts an occupant into a slot; gives it back when all are taken.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(&mut self, occupant: Occupant) -> Result<Token, Occupant> {
        if self.is_full() {
            return Err(occupant);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Below MAX_SOCKETS.
            (self.slots.len() - 1) as u32
        });
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Err(occupant);
        };
        slot.generation = slot.generation.wrapping_add(1);
        let token = Token::new(index, slot.generation);
        slot.entry = Some(Entry {
            occupant,
            queued: false,
            deadline: None,
            watches_space: false,
        });
        self.note_occupant(token);
        Ok(token)
    }

    /// Turns the occupant of a slot into another; nothing happens when the token is stale.
    pub fn convert(&mut self, token: Token, change: impl FnOnce(Occupant) -> Occupant) {
        if self.get_mut(token).is_none() {
            return;
        }
        let Some(mut entry) = self
            .slots
            .get_mut(token.index())
            .and_then(|slot| slot.entry.take())
        else {
            return;
        };
        self.forget_ports(&entry.occupant, token);
        entry.occupant = change(entry.occupant);
        if let Some(slot) = self.slots.get_mut(token.index()) {
            slot.entry = Some(entry);
        }
        self.note_occupant(token);
    }

    /// Empties a slot.
    pub fn remove(&mut self, token: Token) -> Option<Occupant> {
        self.get_mut(token)?;
        let entry = self.slots.get_mut(token.index())?.entry.take()?;
        self.free.push(token.index() as u32);
        if entry.queued {
            // Not left to `next_turn`: a guest that gives no buffers could make the order grow without end.
            self.turns.retain(|&waiting| waiting != token);
        }
        self.forget_ports(&entry.occupant, token);
        Some(entry.occupant)
    }

    /// The entry that a token names; `None` when it is stale.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Entry> {
        let index = token.index();
        let slot = self.slots.get_mut(index)?;
        if Token::new(index as u32, slot.generation) != token {
            return None;
        }
        slot.entry.as_mut()
    }

    /// The connection that a token names.
    pub fn connection_mut(&mut self, token: Token) -> Option<&mut Connection> {
        match &mut self.get_mut(token)?.occupant {
            Occupant::Connection(connection) => Some(connection),
            _ => None,
        }
    }

    /// The connection between two ports.
    #[must_use]
    pub fn find(&self, ports: Ports) -> Option<Token> {
        self.by_ports.get(&ports).copied()
    }

    /// A host port that is free towards a guest port.
    pub fn ephemeral_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host.wrapping_add(1) {
                0 | u32::MAX => FIRST_EPHEMERAL_PORT,
                next => next,
            };
            // Ends, because there are far more ports than slots.
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// The port that is looked at next, for a snapshot.
    #[must_use]
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with ports where another table was.
    pub fn continue_ports(&mut self, next: u32) {
        self.next_port = next.clamp(FIRST_EPHEMERAL_PORT, u32::MAX - 1);
    }

    /// True when the guest takes part in a connection.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        !self.by_ports.is_empty()
    }

    /// Lets a connection wait for its turn if it has something for the guest.
    pub fn queue_turn(&mut self, token: Token) {
        if let Some(entry) = self.get_mut(token)
            && !entry.queued
            && let Occupant::Connection(connection) = &entry.occupant
            && connection.has_work()
        {
            entry.queued = true;
            self.turns.push_back(token);
        }
    }

    /// The connection whose turn it is. It waits no more.
    pub fn next_turn(&mut self) -> Option<Token> {
        while let Some(token) = self.turns.pop_front() {
            if let Some(entry) = self.get_mut(token) {
                entry.queued = false;
                return Some(token);
            }
        }
        None
    }

    /// True when a connection waits for its turn.
    #[must_use]
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The next slot whose time is over at `now`.
    pub fn next_expired(&mut self, now: Instant) -> Option<Token> {
        while let Some(&(at, token)) = self.deadlines.front() {
            let waits = self
                .get_mut(token)
                .is_some_and(|entry| entry.deadline == Some(at) && entry.occupant.has_deadline());
            if waits && at > now {
                return None;
            }
            self.deadlines.pop_front();
            if waits {
                return Some(token);
            }
        }
        None
    }

    /// When the next time ends. May be that of a slot that has none any more.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|&(at, _)| at)
    }

    /// Starts all times anew, because nobody could act for a while.
    pub fn restart_deadlines(&mut self) {
        let end = Instant::now() + ANSWER_LIMIT;
        self.deadlines.clear();
        for token in self.tokens() {
            if let Some(entry) = self.get_mut(token)
                && entry.occupant.has_deadline()
            {
                entry.deadline = Some(end);
                self.deadlines.push_back((end, token));
            }
        }
    }

    /// Tokens of all occupied slots.
    #[must_use]
    pub fn tokens(&self) -> Vec<Token> {
        self.slots
            .iter()
            .zip(0..)
            .filter(|(slot, _)| slot.entry.is_some())
            .map(|(slot, index)| Token::new(index, slot.generation))
            .collect()
    }

    /// Drops all connections: the guest knows of none any more.
    pub fn forget_connections(&mut self) {
        for token in self.tokens() {
            if self.connection_mut(token).is_some() {
                self.remove(token);
            }
        }
    }

    fn note_occupant(&mut self, token: Token) {
        let Some(entry) = self.get_mut(token) else {
            return;
        };
        entry.deadline = entry
            .occupant
            .has_deadline()
            .then(|| Instant::now() + ANSWER_LIMIT);
        let deadline = entry.deadline;
        if let Occupant::Connection(connection) = &entry.occupant {
            let ports = connection.ports();
            self.by_ports.insert(ports, token);
        }
        if let Some(at) = deadline {
            self.deadlines.push_back((at, token));
        }
    }

    fn forget_ports(&mut self, occupant: &Occupant, token: Token) {
        if let Occupant::Connection(connection) = occupant
            && self.find(connection.ports()) == Some(token)
        {
            self.by_ports.remove(&connection.ports());
        }
    }
}
