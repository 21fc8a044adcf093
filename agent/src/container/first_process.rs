//! A container's first process, from its birth to its program.
//!
//! Runs in the child that the agent has cloned; owns that process alone. It builds the container around itself, says
//! "ready", waits, and executes. Whatever fails is told to the agent as one sentence.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use super::hooks;
use super::identity;
use super::inside::{self, Kind};
use super::link::{ChildEnd, FromChild};
use super::mount_tree;
use super::plan::Plan;
use super::program::{
    Program, StandardStreams, Terminal, connect_pipes, enter_directory, new_session, open_null,
};
use super::root_builder::RootBuilder;
use super::step::{At as _, StepError};
use crate::process::keep_descriptors;

/// Exit code of a process that could not be prepared or executed, as Kubernetes reports it.
pub const START_FAILED: libc::c_int = 128;

/// Everything that the process was born with.
#[derive(Debug)]
pub struct FirstProcess<'a> {
    /// What to become.
    pub plan: &'a Plan,
    /// To the agent.
    pub link: &'a ChildEnd,
    /// Pipes.
    pub streams: &'a StandardStreams,
    /// Where the root is attached before the pivot.
    pub mount_point: &'a Path,
}

impl FirstProcess<'_> {
    /// Lives until execve; returns the exit code otherwise.
    pub fn run(&self) -> libc::c_int {
        let mut kept = self.streams.raw();
        kept.push(self.link.raw());
        keep_descriptors(&mut kept);
        let Some(program) = self.link.go_ahead(self.prepare()) else {
            return START_FAILED;
        };
        let StepError(text) = self.start(&program);
        self.link.send(&FromChild::Failed(text));
        START_FAILED
    }

    fn prepare(&self) -> Result<(Program, Option<Terminal>), StepError> {
        let plan = self.plan;
        let process = &plan.process;
        identity::hide()?;
        nix::sys::stat::umask(Mode::empty());
        if plan.namespaces.new_user() {
            // The agent writes the id mappings in the meantime.
            if !self.link.wait() {
                return Err(StepError("the agent has given the container up".into()));
            }
        }
        if plan.namespaces.other_users() {
            identity::become_root_of_namespace()?;
        }
        self.enter_namespaces()?;
        new_session()?;
        identity::new_keyring();
        self.set_personality()?;
        if !plan.namespaces.other_users() {
            identity::set_oom_score(process)?;
        }
        let null = open_null()?;

        let root = RootBuilder::attach(&plan.root, self.mount_point)?;
        root.mount_all()?;
        root.make_devices()?;
        let terminal = process
            .terminal
            .then(|| self.open_terminal(root.root()))
            .transpose()?;
        root.protect_paths()?;
        root.make_working_directory(&process.cwd);
        for (path, value) in &plan.sysctls {
            fs::write(path, value).at(|| format!("set sysctl {} to {value:?}", path.display()))?;
        }
        self.run_create_hooks()?;
        root.pivot()?;

        match &terminal {
            Some(terminal) => terminal.connect(process.uid)?,
            None => connect_pipes(self.streams, &null, plan.namespaces.pipe_owner(process.uid))?,
        }
        enter_directory(&process.cwd)?;
        Ok((Program::find(process)?, terminal))
    }

    fn enter_namespaces(&self) -> Result<(), StepError> {
        let namespaces = &self.plan.namespaces;
        for (kind, path) in &namespaces.join {
            let step = || format!("join namespace {}", path.display());
            let namespace =
                open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).at(step)?;
            setns(namespace, CloneFlags::from_bits_truncate(*kind)).at(step)?;
        }
        if self.plan.root.own_cgroup_namespace {
            // Not by clone3: that would make the agent's group, not the container's, the root of the namespace.
            unshare(CloneFlags::CLONE_NEWCGROUP).at(|| "make a cgroup namespace")?;
        }
        if let Some(name) = &self.plan.hostname {
            nix::unistd::sethostname(name).at(|| format!("set the host name {name:?}"))?;
        }
        if let Some(name) = &self.plan.domainname {
            crate::sandbox::set_domain_name(name).at(|| format!("set the domain name {name:?}"))?;
        }
        Ok(())
    }

    fn set_personality(&self) -> Result<(), StepError> {
        let Some(personality) = self.plan.personality else {
            return Ok(());
        };
        // SAFETY: personality(2) takes an integer.
        if unsafe { libc::personality(personality) } < 0 {
            return Err(std::io::Error::last_os_error())
                .at(|| format!("set the personality {personality}"));
        }
        Ok(())
    }

    /// A terminal of the container's own devpts, shown as /dev/console too.
    fn open_terminal(&self, root: &OwnedFd) -> Result<Terminal, StepError> {
        let step = || "open the terminal: the container has no /dev/pts/ptmx";
        let master = inside::open(
            root,
            Path::new("/dev/pts/ptmx"),
            OFlag::O_RDWR | OFlag::O_NOCTTY,
        )
        .at(step)?;
        let terminal = Terminal::open(master, self.plan.process.console_size)?;
        let step = || "show the terminal as /dev/console";
        let console = inside::open_or_make(root, Path::new("/dev/console"), Kind::File).at(step)?;
        let tree = mount_tree::copy(&terminal.slave, false).at(step)?;
        mount_tree::attach(&tree, &console).at(step)?;
        Ok(terminal)
    }

    fn own_pid(&self) -> Option<libc::pid_t> {
        // As the container's namespaces number it, which is where these hooks run.
        libc::pid_t::try_from(std::process::id()).ok()
    }

    fn run_create_hooks(&self) -> Result<(), StepError> {
        let hooks = &self.plan.hooks;
        if !hooks.create_runtime.is_empty() {
            self.link.send(&FromChild::Hooks);
            if !self.link.wait() {
                return Err(StepError("the agent has given the container up".into()));
            }
        }
        if hooks.create_container.is_empty() {
            return Ok(());
        }
        let state = hooks::state(&self.plan.state, "creating", self.own_pid());
        hooks::run_here(&hooks.create_container, "createContainer", &state)
            .map_err(|error| StepError(error.to_string()))
    }

    fn start(&self, program: &Program) -> StepError {
        let hooks = &self.plan.hooks.start_container;
        if !hooks.is_empty() {
            let state = hooks::state(&self.plan.state, "created", self.own_pid());
            if let Err(error) = hooks::run_here(hooks, "startContainer", &state) {
                return StepError(error.to_string());
            }
        }
        program.execute(&self.plan.process, self.plan.seccomp.as_ref(), self.link)
    }
}
