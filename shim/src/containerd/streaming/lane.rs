//! One stream of a process: what is on its way, and how much more each side takes. It outlives connections, so that a
//! containerd that was restarted finds it again. Between the process's side ([`Output`], [`Input`]) and a connection's.

use std::sync::Arc;

use tokio::sync::watch;

use super::wire::{WireError, wrong};

/// Bytes that containerd may send before they are taken, as it allows itself.
pub const WINDOW_BYTES: usize = 64 * 1024;

/// Bytes of one message, as containerd sends and reads them: it counts a longer one wrong.
pub const MESSAGE_BYTES: usize = 32 * 1024;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To containerd.
    Output,
    /// From containerd.
    Input,
}

/// What a connection has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is a newer connection.
    Leave,
    /// Send so many bytes of the output.
    Data(usize),
    /// Let containerd send so many bytes more.
    Window(usize),
    /// Nothing more comes from the process's side.
    Close(Direction),
}

/// Both sides' view of a stream.
#[derive(Debug, Default)]
pub struct State {
    /// `None` until a process has it.
    direction: Option<Direction>,
    /// A connection that broke is followed by another one: containerd finds the streams of containers again, and forgets
    /// those of execs.
    returns: bool,
    /// Counts connections.
    generation: u64,
    connected: bool,
    /// Bytes that containerd takes yet.
    credit: usize,
    /// Output that was not sent yet: at most [`MESSAGE_BYTES`] and what was left of them.
    output: Vec<u8>,
    /// Bytes that containerd may send yet.
    granted: usize,
    /// Input that was not taken yet: at most [`WINDOW_BYTES`].
    input: Vec<u8>,
    /// containerd sends no more on this connection; from an output it reads no more.
    peer_closed: bool,
    /// The process's side is through.
    finished: bool,
    /// containerd has everything.
    delivered: bool,
}

impl State {
    /// Nobody will ask for output, or send input, any more.
    fn is_deserted(&self) -> bool {
        self.peer_closed || (self.generation > 0 && !self.connected && !self.returns)
    }

    fn step(&self, generation: u64) -> Option<Step> {
        if self.generation != generation {
            return Some(Step::Leave);
        }
        match self.direction? {
            Direction::Output => {
                let length = self.output.len().min(self.credit).min(MESSAGE_BYTES);
                if length > 0 && !self.peer_closed {
                    return Some(Step::Data(length));
                }
                let through = self.finished && (self.output.is_empty() || self.peer_closed);
                through.then_some(Step::Close(Direction::Output))
            }
            Direction::Input => {
                if self.finished {
                    return Some(Step::Close(Direction::Input));
                }
                let free = WINDOW_BYTES.saturating_sub(self.granted + self.input.len());
                (free >= WINDOW_BYTES / 2 && !self.peer_closed).then_some(Step::Window(free))
            }
        }
    }
}

/// A stream.
#[derive(Debug, Default)]
pub struct Lane {
    state: watch::Sender<State>,
}

impl Lane {
    /// Waits until `what` holds. Cancelled without harm.
    async fn until(&self, what: impl FnMut(&State) -> bool) {
        // The sender is in `self`: no error comes.
        let _ = self.state.subscribe().wait_for(what).await;
    }

    /// Whether a process has it.
    pub fn is_claimed(&self) -> bool {
        self.state.borrow().direction.is_some()
    }

    /// Gives it to a process. Returns whether none had it.
    pub fn claim(&self, direction: Direction, returns: bool) -> bool {
        self.state.send_if_modified(|state| {
            let free = state.direction.is_none();
            if free {
                state.direction = Some(direction);
                state.returns = returns;
            }
            free
        })
    }

    /// The process's side is through; what it has not sent is not sent any more.
    pub fn abandon(&self) {
        self.state.send_modify(|state| {
            state.finished = true;
            state.output.clear();
        });
    }

    /// A new connection, which the former ones leave it to. Returns its number.
    pub fn enter(&self) -> u64 {
        let mut generation = 0;
        self.state.send_modify(|state| {
            state.generation += 1;
            state.connected = true;
            state.credit = 0;
            state.granted = 0;
            state.peer_closed = false;
            generation = state.generation;
        });
        generation
    }

    /// Connection `generation` is over. Returns whether it was the newest.
    pub fn leave(&self, generation: u64) -> bool {
        self.state.send_if_modified(|state| {
            let newest = state.generation == generation;
            state.connected &= !newest;
            newest
        })
    }

    /// What connection `generation` has to do next.
    pub async fn next_step(&self, generation: u64) -> Step {
        let mut step = Step::Leave;
        self.until(|state| {
            state.step(generation).is_some_and(|next| {
                step = next;
                true
            })
        })
        .await;
        step
    }

    /// Waits until a process has it, or there is a connection after `generation`.
    pub async fn wanted(&self, generation: u64) {
        self.until(|state| state.direction.is_some() || state.generation != generation)
            .await;
    }

    /// Waits until containerd sends no more.
    pub async fn peer_closed(&self) {
        self.until(|state| state.peer_closed).await;
    }

    /// The first `length` bytes of the output.
    pub fn output(&self, length: usize) -> Vec<u8> {
        let state = self.state.borrow();
        state.output.get(..length).unwrap_or_default().to_vec()
    }

    /// They were sent on connection `generation`.
    pub fn sent(&self, generation: u64, length: usize) {
        self.state.send_if_modified(|state| {
            let newest = state.generation == generation;
            if newest {
                let length = length.min(state.output.len());
                state.output.drain(..length);
                state.credit = state.credit.saturating_sub(length);
            }
            newest
        });
    }

    /// containerd takes `more` bytes.
    pub fn credit(&self, generation: u64, more: usize) {
        self.state.send_if_modified(|state| {
            let newest = state.generation == generation;
            if newest {
                state.credit = state.credit.saturating_add(more);
            }
            newest
        });
    }

    /// containerd may send `more` bytes.
    pub fn grant(&self, generation: u64, more: usize) {
        self.state.send_if_modified(|state| {
            let newest = state.generation == generation;
            if newest {
                state.granted += more;
            }
            false
        });
    }

    /// Input came on connection `generation`.
    ///
    /// # Errors
    /// When it is more than was granted.
    pub fn received(&self, generation: u64, bytes: &[u8]) -> Result<(), WireError> {
        let mut result = Ok(());
        self.state.send_if_modified(|state| {
            if state.generation != generation || state.finished {
                return false;
            }
            let Some(rest) = state.granted.checked_sub(bytes.len()) else {
                result = Err(wrong(format!(
                    "{} bytes came, of at most {}",
                    bytes.len(),
                    state.granted
                )));
                return false;
            };
            state.granted = rest;
            state.input.extend(bytes);
            true
        });
        result
    }

    /// containerd sends no more on connection `generation`.
    pub fn close_peer(&self, generation: u64) {
        self.state.send_if_modified(|state| {
            let newest = state.generation == generation;
            state.peer_closed |= newest;
            newest
        });
    }

    /// containerd has everything that came.
    pub fn delivered(&self) {
        self.state.send_modify(|state| state.delivered = true);
    }
}

/// A process's side of an output. Dropped: nothing more comes.
#[derive(Debug)]
pub struct Output(pub(super) Arc<Lane>);

impl Output {
    /// Sends `bytes`; waits as long as the ones before have not been sent. They are lost where nobody reads any more.
    pub async fn send(&self, bytes: &[u8]) {
        let Self(lane) = self;
        lane.until(|state| state.output.is_empty() || state.is_deserted())
            .await;
        lane.state.send_modify(|state| {
            if !state.is_deserted() {
                state.output.extend(bytes);
            }
        });
    }

    /// Ends it, and waits until containerd has it all.
    pub async fn end(self) {
        let Self(lane) = &self;
        lane.state.send_modify(|state| state.finished = true);
        lane.until(|state| state.delivered || state.is_deserted())
            .await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// A process's side of an input. Dropped: nothing more is taken.
#[derive(Debug)]
pub struct Input(pub(super) Arc<Lane>);

impl Input {
    /// What came, or `None` at the end. Cancelled without harm.
    pub async fn next(&self) -> Option<Vec<u8>> {
        let Self(lane) = self;
        lane.until(|state| !state.input.is_empty() || state.is_deserted())
            .await;
        let mut input = Vec::new();
        lane.state
            .send_modify(|state| input = std::mem::take(&mut state.input));
        (!input.is_empty()).then_some(input)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
