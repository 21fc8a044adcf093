//! What becomes of a container or an exec: made, started, ended, deleted.
//!
//! Every operation here runs to its end once begun (see `calls`), in a task of its own; the end of each process is
//! awaited by one task that was spawned when the process was made.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use vmpod_agent_protocol::limits::{CONTAINERS, EXECS, OCI_SPEC_BYTES};
use vmpod_agent_protocol::messages::{Event, EventKind, ExitStatus};

use super::process::Stage;
use super::{Container, DEATH_WAIT, Inner, OWN_RUN, launch, report, unknown, until};
use crate::container::api::{ContainerError, CreateContainer, CreateExec, ProcessName};
use crate::container::group::Group;
use crate::container::hooks;
use crate::container::plan::{Plan, check_id};
use crate::container::pod_users::PodUsers;
use crate::container::process_plan::ProcessPlan;
use crate::container::step::{At as _, StepError};
use crate::process::Exit;
use crate::stdio::Tail;

/// What probes and hooks run (`Containers::run`) is nobody's news: their results are.
fn is_own_run(exec: &str) -> bool {
    exec.starts_with(OWN_RUN)
}

/// What a container shares with the others of its pod.
pub(super) struct Shared {
    /// A process of the PID namespace.
    pub(super) pids: Option<Arc<OwnedFd>>,
    /// The user namespace.
    pub(super) users: Option<Arc<PodUsers>>,
}

impl Inner {
    pub(super) async fn create(
        self: Arc<Self>,
        request: CreateContainer,
    ) -> Result<u32, ContainerError> {
        if request.spec.len() > OCI_SPEC_BYTES {
            return Err(ContainerError::InvalidArgument(format!(
                "OCI specification of {} bytes exceeds the limit of {OCI_SPEC_BYTES} bytes",
                request.spec.len()
            )));
        }
        let refuse = |error| {
            ContainerError::InvalidArgument(format!("create container {:?}: {error}", request.id))
        };
        let mut plan = Plan::parse(
            &request.id,
            &request.spec,
            request.rootfs.as_deref(),
            &self.config.groups,
        )
        .map_err(refuse)?;
        let shared = {
            let mut state = self.state();
            if state.containers.contains_key(&request.id) {
                return Err(ContainerError::AlreadyExists(format!(
                    "container {:?} exists already",
                    request.id
                )));
            }
            if state.containers.len() >= CONTAINERS {
                return Err(ContainerError::FailedPrecondition(format!(
                    "there are {CONTAINERS} containers, which is the limit: delete one first"
                )));
            }
            if state.pod_users.is_some() {
                plan.join_users_of_pod().map_err(refuse)?;
            }
            state.containers.insert(request.id.clone(), None);
            Shared {
                pids: state.pod_pids.clone().filter(|_| !request.own_pids),
                users: state.pod_users.clone(),
            }
        };
        let id = request.id.clone();
        let made = self.make(request, plan, shared).await;
        if made.is_err() {
            self.state().containers.remove(&id);
        }
        made
    }

    async fn make(
        self: &Arc<Self>,
        request: CreateContainer,
        mut plan: Plan,
        shared: Shared,
    ) -> Result<u32, ContainerError> {
        let id = request.id;
        let failed =
            |StepError(text)| ContainerError::Start(format!("create container {id:?}: {text}"));
        let group = Group::create(&plan.root.cgroup).map_err(failed)?;
        let tail = Tail::default();
        self.volume_mounts.add(&id, &plan.root);
        let launched = async {
            group.apply(&plan.resources).map_err(failed)?;
            self.device_filters
                .attach(
                    plan.resources.devices().as_deref().unwrap_or_default(),
                    group.as_fd(),
                )
                .at(|| "attach the device rules to the control group")
                .map_err(failed)?;
            launch::first(
                &self.config,
                &self.reaper,
                &mut plan,
                &group,
                &shared,
                &request.stdio,
                &tail,
            )
            .await
        }
        .await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let _ = group.kill();
                until(DEATH_WAIT, || group.remove().is_ok()).await;
                self.volume_mounts.remove(&id);
                return Err(error);
            }
        };
        let pid = launched.process.pid;
        let container = Arc::new(Container {
            id: id.clone(),
            plan,
            group,
            first: Arc::new(launched.process),
            execs: Mutex::default(),
            tail,
            label: request.label,
            termination_message_path: request.termination_message_path,
            oom_reported: AtomicU64::new(0),
        });
        let name = ProcessName::container(id.clone());
        self.register_streams(&name, &container.first.streams);
        self.oom.add(&container.group, &id);
        self.events.push(Event {
            pid,
            ..self.event(
                EventKind::CONTAINER_CREATED,
                &name,
                container.label.as_ref(),
            )
        });
        tokio::spawn(Arc::clone(self).report_end(Arc::clone(&container), launched.exit));
        self.state().containers.insert(id, Some(container));
        Ok(pid)
    }

    /// Waits for the end of a container's first process and tells everybody.
    async fn report_end(self: Arc<Self>, container: Arc<Container>, exit: oneshot::Receiver<Exit>) {
        let Ok(exit) = exit.await else {
            return;
        };
        // Without a PID namespace of its own nothing else ends the rest of the container.
        let _ = container.group.kill();
        self.report_oom(&container);
        let oom_killed = container.oom_reported.load(Ordering::Relaxed) > 0;
        self.volume_mounts.settle(&container.id).await;
        let message = report::termination_message(Path::new(&container.termination_message_path));
        let status = container.first.end(exit, oom_killed, message).await;
        self.events.push(Event {
            pid: container.first.pid,
            exit: Some(status).into(),
            ..self.event(
                EventKind::CONTAINER_EXITED,
                &container.first.name,
                container.label.as_ref(),
            )
        });
    }

    pub(super) fn report_oom(&self, container: &Container) {
        let kills = container.group.oom_kills();
        if container.oom_reported.swap(kills, Ordering::Relaxed) < kills {
            self.events.push(self.event(
                EventKind::CONTAINER_OOM,
                &container.first.name,
                container.label.as_ref(),
            ));
        }
    }

    pub(super) async fn create_exec(
        self: Arc<Self>,
        request: CreateExec,
        tail: Option<Tail>,
    ) -> Result<u32, ContainerError> {
        check_id("exec id", &request.exec)
            .map_err(|error| ContainerError::InvalidArgument(error.to_string()))?;
        if request.process.len() > OCI_SPEC_BYTES {
            return Err(ContainerError::InvalidArgument(format!(
                "OCI process of {} bytes exceeds the limit of {OCI_SPEC_BYTES} bytes",
                request.process.len()
            )));
        }
        let container = self.container(&request.container)?;
        let name = ProcessName::exec(request.container, request.exec);
        let plan = ProcessPlan::parse_exec(&request.process, &container.plan.process_json)
            .map_err(|error| ContainerError::InvalidArgument(format!("create {name}: {error}")))?;
        if container.first.is_ended() {
            return Err(ContainerError::FailedPrecondition(format!(
                "create {name}: the container has ended"
            )));
        }
        {
            let mut execs = container.execs();
            if execs.contains_key(&name.exec) {
                return Err(ContainerError::AlreadyExists(format!(
                    "{name} exists already"
                )));
            }
            if execs.len() >= EXECS {
                return Err(ContainerError::FailedPrecondition(format!(
                    "container {:?} has {EXECS} execs, which is the limit: delete one first",
                    name.container
                )));
            }
            execs.insert(name.exec.clone(), None);
        }
        let users = self.state().pod_users.clone();
        let launched = launch::exec(
            &self.config,
            &self.reaper,
            launch::ExecPlace {
                plan: &container.plan,
                group: &container.group,
                first: &container.first,
                users,
            },
            name.clone(),
            plan,
            &request.stdio,
            &tail.unwrap_or_default(),
        )
        .await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                container.execs().remove(&name.exec);
                return Err(error);
            }
        };
        let process = Arc::new(launched.process);
        let pid = process.pid;
        self.register_streams(&name, &process.streams);
        container
            .execs()
            .insert(name.exec.clone(), Some(Arc::clone(&process)));
        let exit = launched.exit;
        tokio::spawn(async move {
            if let Ok(exit) = exit.await {
                self.volume_mounts.settle(&name.container).await;
                let status = process.end(exit, false, String::new()).await;
                if is_own_run(&name.exec) {
                    return;
                }
                self.events.push(Event {
                    pid,
                    exit: Some(status).into(),
                    ..self.event(EventKind::EXEC_EXITED, &name, container.label.as_ref())
                });
            }
        });
        Ok(pid)
    }

    pub(super) async fn start(self: Arc<Self>, name: ProcessName) -> Result<(), ContainerError> {
        let container = self.container(&name.container)?;
        let process = self.process(&name)?;
        let kind = if name.is_container() {
            EventKind::CONTAINER_STARTED
        } else {
            EventKind::EXEC_STARTED
        };
        process
            .start(|| {
                if is_own_run(&name.exec) {
                    return;
                }
                self.events.push(Event {
                    pid: process.pid,
                    ..self.event(kind, &name, container.label.as_ref())
                });
            })
            .await?;
        let poststart = &container.plan.hooks.poststart;
        if name.is_container() && !poststart.is_empty() {
            let pid = libc::pid_t::try_from(process.pid).ok();
            let state = hooks::state(&container.plan.state, "running", pid);
            if let Err(error) = hooks::run(&self.reaper, poststart, "poststart", &state).await {
                crate::boot::report(&format!("{name}: {error}"));
            }
        }
        Ok(())
    }

    pub(super) async fn delete(
        self: Arc<Self>,
        name: ProcessName,
    ) -> Result<ExitStatus, ContainerError> {
        let container = self.container(&name.container)?;
        let process = self.process(&name)?;
        match process.stage() {
            Stage::Ended(_) => {}
            Stage::Running => {
                return Err(ContainerError::FailedPrecondition(format!(
                    "{name} is running: kill it before it is deleted"
                )));
            }
            Stage::Created => {
                let _ = process.signal(libc::SIGKILL.unsigned_abs());
            }
        }
        let status = process.ended().await.ok_or_else(|| unknown(&name))?;
        if !name.is_container() {
            container.execs().remove(&name.exec);
            self.retire_streams(&name);
            return Ok(status);
        }
        let _ = container.group.kill();
        if !until(DEATH_WAIT, || container.group.remove().is_ok()).await {
            return Err(ContainerError::Internal(format!(
                "delete {name}: processes are left in its control group after {} s",
                DEATH_WAIT.as_secs()
            )));
        }
        self.volume_mounts.remove(&name.container);
        self.oom.remove(&name.container);
        self.state().containers.remove(&name.container);
        let execs: Vec<String> = container.execs().keys().cloned().collect();
        for exec in execs {
            self.retire_streams(&ProcessName::exec(name.container.clone(), exec));
        }
        self.retire_streams(&name);
        let poststop = &container.plan.hooks.poststop;
        if !poststop.is_empty() {
            let state = hooks::state(&container.plan.state, "stopped", None);
            if let Err(error) = hooks::run(&self.reaper, poststop, "poststop", &state).await {
                crate::boot::report(&format!("{name}: {error}"));
            }
        }
        Ok(status)
    }
}
