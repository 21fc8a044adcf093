//! Making processes from the agent's side: control group, pipes, clone, and the talk with the child until it waits.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::LinuxIdMapping;
use tokio::sync::oneshot;
use vmpod_agent_protocol::messages::Stdio;

use super::super::api::{ContainerError, ProcessName};
use super::super::bind_source;
use super::super::exec_process::ExecProcess;
use super::super::first_process::FirstProcess;
use super::super::group::Group;
use super::super::hooks;
use super::super::link::{self, FromChild, ParentEnd};
use super::super::plan::{PidNamespace, Plan};
use super::super::pod_users::PodUsers;
use super::super::process_plan::ProcessPlan;
use super::super::step::{At as _, StepError, reason};
use super::EngineConfig;
use super::life::Shared;
use super::process::Process;
use crate::process::{Child, CloneRequest, Exit, Reaper, clone_process, send_signal};
use crate::stdio::{self, ProcessStreams, Tail};

/// A process that waits to be started, and the channel on which its end will come.
pub(super) struct Launched {
    pub(super) process: Process,
    pub(super) exit: oneshot::Receiver<Exit>,
}

fn failed(name: &ProcessName, error: impl ToString) -> ContainerError {
    ContainerError::Start(format!("create {name}: {}", error.to_string()))
}

/// Applies what the specification says of the terminal and its size over what the request said.
fn wishes(stdio: &Stdio, process: &mut ProcessPlan) -> Stdio {
    let mut wanted = stdio.clone();
    wanted.terminal |= process.terminal;
    process.terminal = wanted.terminal;
    let size = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    if wanted.rows != 0 && wanted.columns != 0 {
        process.console_size = Some((size(wanted.rows), size(wanted.columns)));
    }
    wanted
}

/// Makes a container's first process, up to where it waits. On failure the process is gone; the group is the caller's.
pub(super) async fn first(
    config: &EngineConfig,
    reaper: &Reaper,
    plan: &mut Plan,
    group: &Group,
    shared: &Shared,
    stdio: &Stdio,
    tail: &Tail,
) -> Result<Launched, ContainerError> {
    let name = ProcessName::container(plan.id.clone());
    let wanted = wishes(stdio, &mut plan.process);
    let plan = &*plan;
    let (parent, child_end) = link::pair().map_err(|error| failed(&name, error))?;
    let (streams, mut agent_streams) =
        stdio::pipes(&wanted, tail).map_err(|error| failed(&name, error))?;
    let joined = match &plan.namespaces.pid {
        PidNamespace::OfPod => None,
        PidNamespace::Path(path) => Some(
            open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .at(|| format!("open the PID namespace {}", path.display()))
                .map_err(|error| failed(&name, error))?,
        ),
    };
    let pids = joined.as_ref().or(shared.pids.as_deref());
    let users = shared.users.as_deref();
    if let Some(users) = users {
        users
            .own_streams(&streams, plan.process.uid)
            .map_err(|error| failed(&name, error))?;
    }
    let request = CloneRequest {
        // Cgroup namespaces are made by the child, see there.
        namespaces: plan.namespaces.new & !libc::CLONE_NEWCGROUP
            | if pids.is_none() {
                libc::CLONE_NEWPID
            } else {
                0
            },
        cgroup: Some(group.as_fd()),
        join_pid_namespace: pids.map(|fd| fd.as_fd()),
        join_user_namespace: users.map(|users| users.as_fd()),
    };
    let body = FirstProcess {
        plan,
        link: &child_end,
        streams: &streams,
        mount_point: &config.mount_point,
    };
    bind_source::settle(&plan.root);
    let (child, exit) = reaper
        .watch(|| clone_process(&request, || body.run()))
        .at(|| "make the first process")
        .map_err(|error| failed(&name, error))?;
    // The agent's copies of the child's ends go: the end of a stream must be seen when the process closes it.
    drop((child_end, streams));
    let talk = async {
        if plan.namespaces.new_user() {
            map_users(&child, &plan.namespaces.uid_mappings, "uid_map")?;
            map_users(&child, &plan.namespaces.gid_mappings, "gid_map")?;
            parent.go().await.at(|| "let the process go on")?;
        }
        if let Some(score) = plan.process.oom_score_adj
            && plan.namespaces.other_users()
        {
            // From within a user namespace the file belongs to somebody else.
            fs::write(
                format!("/proc/{}/oom_score_adj", child.pid),
                score.to_string(),
            )
            .at(|| format!("set the out-of-memory score to {score}"))?;
        }
        loop {
            match next(&parent).await? {
                FromChild::Hooks => {
                    let state = hooks::state(&plan.state, "creating", Some(child.pid));
                    hooks::run(reaper, &plan.hooks.create_runtime, "createRuntime", &state)
                        .await
                        .map_err(|error| StepError(error.to_string()))?;
                    parent.go().await.at(|| "let the process go on")?;
                }
                FromChild::Ready(master) => return Ok(master),
                FromChild::Failed(text) => return Err(StepError(text)),
                FromChild::Closed => return Err(died()),
            }
        }
    };
    let ready = talk.await;
    settle(name, child, exit, parent, ready, &mut agent_streams, tail).await
}

/// What an exec is made in.
pub(super) struct ExecPlace<'a> {
    pub(super) plan: &'a Plan,
    pub(super) group: &'a Group,
    /// The container's first process.
    pub(super) first: &'a Process,
    /// The pod's own user namespace.
    pub(super) users: Option<Arc<PodUsers>>,
}

/// Makes an exec, up to where it waits.
pub(super) async fn exec(
    config: &EngineConfig,
    reaper: &Reaper,
    place: ExecPlace<'_>,
    name: ProcessName,
    mut process: ProcessPlan,
    stdio: &Stdio,
    tail: &Tail,
) -> Result<Launched, ContainerError> {
    let wanted = wishes(stdio, &mut process);
    let (parent, child_end) = link::pair().map_err(|error| failed(&name, error))?;
    let (streams, mut agent_streams) =
        stdio::pipes(&wanted, tail).map_err(|error| failed(&name, error))?;
    if let Some(users) = &place.users {
        users
            .own_streams(&streams, process.uid)
            .map_err(|error| failed(&name, error))?;
    }
    let body = ExecProcess {
        process: &process,
        seccomp: place.plan.seccomp.as_ref(),
        link: &child_end,
        streams: &streams,
        container: &place.first.pidfd,
        namespaces: &place.plan.namespaces,
    };
    let make = |cgroup: BorrowedFd<'_>| {
        let request = CloneRequest {
            namespaces: 0,
            cgroup: Some(cgroup),
            join_pid_namespace: Some(place.first.pidfd.as_fd()),
            join_user_namespace: None,
        };
        reaper.watch(|| clone_process(&request, || body.run()))
    };
    let made = match make(place.group.as_fd()) {
        // The container has moved its processes into groups of its own making and uses the outer one for control.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let inner = group_of(&config.hierarchy, place.first.pid)
                .map_err(|error| failed(&name, format!("find the control group: {error}")))?;
            make(inner.as_fd())
        }
        other => other,
    };
    let (child, exit) = made
        .at(|| "make the process")
        .map_err(|error| failed(&name, error))?;
    drop((child_end, streams));
    let ready = match next(&parent).await {
        Ok(FromChild::Ready(master)) => Ok(master),
        Ok(FromChild::Failed(text)) => Err(StepError(text)),
        Ok(_) => Err(died()),
        Err(error) => Err(error),
    };
    settle(name, child, exit, parent, ready, &mut agent_streams, tail).await
}

fn died() -> StepError {
    StepError(
        "the process was killed before it was ready (out of memory, or a limit too small?)".into(),
    )
}

async fn next(parent: &ParentEnd) -> Result<FromChild, StepError> {
    parent.receive().await.at(|| "hear from the new process")
}

/// The end of a launch: a process that waits, or none at all.
async fn settle(
    name: ProcessName,
    child: Child,
    exit: oneshot::Receiver<Exit>,
    parent: ParentEnd,
    ready: Result<Option<RawFd>, StepError>,
    streams: &mut ProcessStreams,
    tail: &Tail,
) -> Result<Launched, ContainerError> {
    let finished = ready.and_then(|master| {
        if let Some(master) = master {
            let master = fetch(&child, master).at(|| "fetch the terminal")?;
            *streams = ProcessStreams::terminal(master, tail).at(|| "watch the terminal")?;
        }
        Ok(())
    });
    if let Err(error) = finished {
        let _ = send_signal(&child.pidfd, libc::SIGKILL);
        let _ = exit.await;
        return Err(failed(&name, error));
    }
    let pid = child.pid.unsigned_abs();
    Ok(Launched {
        process: Process::new(name, pid, child.pidfd, parent, std::mem::take(streams)),
        exit,
    })
}

/// Takes a copy of descriptor `number` of the child.
fn fetch(child: &Child, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, child.pidfd.as_raw_fd(), number, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map_users(child: &Child, mappings: &[LinuxIdMapping], file: &str) -> Result<(), StepError> {
    let text: String = mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect();
    fs::write(format!("/proc/{}/{file}", child.pid), text)
        .at(|| format!("write the user namespace's {file}"))
}

/// The control group that process `pid` is in, below the mounted hierarchy.
fn group_of(hierarchy: &Path, pid: u32) -> Result<OwnedFd, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| reason(&error))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or("the process has none")?;
    open(
        &hierarchy.join(path),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| reason(&error.into()))
}
