//! Stops the counting node when the bench ends, however it ends: a node that counts keeps a core busy even when nothing
//! runs in it. A process of its own, apart from the terminal's group, waits for the end of a pipe that only the bench
//! holds, so that Ctrl-C and even SIGKILL leave no node behind.

use std::env;
use std::io::{Read, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::node::{self, Place};

/// The waiting process, as the bench holds it.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    node: String,
}

impl Guard {
    /// Starts it. A node that is up already is refused: it is somebody's, and would be stopped.
    ///
    /// # Errors
    /// When the node is up or the process cannot be started.
    pub fn start(place: &Place) -> Result<Self> {
        if place.pid().is_some() {
            bail!(
                "node {name} is up, so that another bench may be using it; stop it first: cargo xtask node down --name {name}",
                name = place.name
            );
        }
        let program = env::current_exe().context("finding this program")?;
        let child = Command::new(program)
            .args(["bench", "--guard", &place.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the process that stops the node in the end")?;
        Ok(Self {
            child,
            node: place.name.clone(),
        })
    }

    /// Has the node stopped and waits for that.
    ///
    /// # Errors
    /// When the node does not stop.
    pub fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self
            .child
            .wait()
            .context("waiting for the node to be stopped")?;
        if !status.success() {
            bail!(
                "node {name} was not stopped ({status}); do it by hand: cargo xtask node down --name {name}",
                name = self.node
            );
        }
        Ok(())
    }
}

/// The process itself: waits, then stops node `name`.
///
/// # Errors
/// When the node does not stop.
pub fn run(name: &str) -> Result<u8> {
    let mut input = stdin().lock();
    while input.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    node::down(&Place::open(name)?, false)?;
    Ok(0)
}
