//! A further process in a container, from its birth to its program.
//!
//! Runs in the child that the agent has cloned into the container's PID namespace and control group; joins the other
//! namespaces of the container's first process by its pidfd. Owns that process alone.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::first_process::START_FAILED;
use super::identity;
use super::link::{ChildEnd, FromChild};
use super::plan::NamespacePlan;
use super::process_plan::ProcessPlan;
use super::program::{
    Program, StandardStreams, Terminal, connect_pipes, enter_directory, new_session, open_null,
};
use super::seccomp::Filter;
use super::step::{At as _, StepError};
use crate::process::keep_descriptors;

/// Everything that the process was born with.
#[derive(Debug)]
pub struct ExecProcess<'a> {
    /// What to become.
    pub process: &'a ProcessPlan,
    /// The container's filter.
    pub seccomp: Option<&'a Filter>,
    /// To the agent.
    pub link: &'a ChildEnd,
    /// Pipes.
    pub streams: &'a StandardStreams,
    /// The container's first process.
    pub container: &'a OwnedFd,
    /// What the container shares with nobody, and with whom it shares the rest.
    pub namespaces: &'a NamespacePlan,
}

impl ExecProcess<'_> {
    /// Lives until execve; returns the exit code otherwise.
    pub fn run(&self) -> libc::c_int {
        let mut kept = self.streams.raw();
        kept.extend([self.link.raw(), self.container.as_raw_fd()]);
        keep_descriptors(&mut kept);
        let Some(program) = self.link.go_ahead(self.prepare()) else {
            return START_FAILED;
        };
        let StepError(text) = program.execute(self.process, self.seccomp, self.link);
        self.link.send(&FromChild::Failed(text));
        START_FAILED
    }

    fn prepare(&self) -> Result<(Program, Option<Terminal>), StepError> {
        let process = self.process;
        identity::hide()?;
        identity::set_oom_score(process)?;
        let null = open_null()?;
        let mut namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP;
        if self.namespaces.other_users() {
            namespaces |= CloneFlags::CLONE_NEWUSER;
        }
        setns(self.container.as_fd(), namespaces).at(|| "join the container's namespaces")?;
        if self.namespaces.other_users() {
            identity::become_root_of_namespace()?;
        }
        new_session()?;
        identity::new_keyring();
        let terminal = process.terminal.then(|| self.open_terminal()).transpose()?;
        match &terminal {
            Some(terminal) => terminal.connect(process.uid)?,
            None => connect_pipes(self.streams, &null, self.namespaces.pipe_owner(process.uid))?,
        }
        enter_directory(&process.cwd)?;
        Ok((Program::find(process)?, terminal))
    }

    fn open_terminal(&self) -> Result<Terminal, StepError> {
        let master = open(
            Path::new("/dev/pts/ptmx"),
            OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .at(|| "open the terminal: the container has no /dev/pts/ptmx")?;
        Terminal::open(master, self.process.console_size)
    }
}
