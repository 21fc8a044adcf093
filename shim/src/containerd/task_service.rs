//! containerd's task service (api/runtime/task/v3/shim.proto; version 2 has the same messages): requests in, [`Tasks`]
//! asked, answers out.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api as shim;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField, UnknownValueRef};
use containerd_shim_protos::shim_async::Task as TaskService;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use containerd_shim_protos::ttrpc::{self};
use vmpod_agent_protocol::messages as m;

use super::fault::Fault;
use super::metrics;
use super::process::told_pid;
use super::stdio::StdioUris;
use super::task_state::{Operation, TaskState};
use super::tasks::{CreateTask, Tasks, reference};
use super::timestamp;
use crate::pod::tree::SnapshotMount;

/// Type of OCI resources in an update (containerd's typeurl of runtime-spec types).
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    /// The tasks.
    pub tasks: Arc<Tasks>,
}

type Answer<T = shim::Empty> = ttrpc::Result<T>;

fn status(state: TaskState) -> shim::Status {
    match state {
        TaskState::Created => shim::Status::CREATED,
        TaskState::Running => shim::Status::RUNNING,
        TaskState::Paused => shim::Status::PAUSED,
        TaskState::Stopped(_) => shim::Status::STOPPED,
    }
}

/// Mounts as containerd writes them.
pub(super) fn mounts(told: &[shim::Mount]) -> Vec<SnapshotMount> {
    told.iter()
        .map(|mount| SnapshotMount {
            kind: mount.type_.clone(),
            source: mount.source.clone().into(),
            options: mount.options.clone(),
        })
        .collect()
}

/// `ConfigPath` of the runtime's options in containerd's configuration (runtimeoptions.v1.Options, field 2).
pub(super) fn settings_path(options: &Any) -> Option<PathBuf> {
    if !options.type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    let message = shim::Empty::parse_from_bytes(&options.value).ok()?;
    let fields = message.special_fields.unknown_fields();
    let path = fields.iter().find_map(|(number, value)| match value {
        UnknownValueRef::LengthDelimited(bytes) if number == 2 => Some(bytes),
        _ => None,
    })?;
    let path = std::str::from_utf8(path).ok()?;
    (!path.is_empty()).then(|| path.into())
}

#[async_trait]
impl TaskService for Service {
    async fn create(
        &self,
        _context: &TtrpcContext,
        request: shim::CreateTaskRequest,
    ) -> Answer<shim::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(
                Fault::unimplemented("containers are not restored from checkpoints").into(),
            );
        }
        let rootfs = mounts(&request.rootfs);
        let settings = request.options.as_ref().and_then(settings_path);
        let pid = self
            .tasks
            .create(CreateTask {
                id: request.id,
                bundle: request.bundle.into(),
                rootfs,
                uris: StdioUris {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                },
                settings,
            })
            .await?;
        Ok(shim::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: shim::StartRequest,
    ) -> Answer<shim::StartResponse> {
        let pid = self.tasks.start(&request.id, &request.exec_id).await?;
        Ok(shim::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: shim::StateRequest,
    ) -> Answer<shim::StateResponse> {
        let (task, process) = self.tasks.process(&request.id, &request.exec_id)?;
        let state = process.state();
        let exit = state.exit();
        Ok(shim::StateResponse {
            id: request.id,
            bundle: task.bundle.to_string_lossy().into_owned(),
            pid: process.pid(),
            status: EnumOrUnknown::new(status(state)),
            stdin: process.uris.stdin.clone(),
            stdout: process.uris.stdout.clone(),
            stderr: process.uris.stderr.clone(),
            terminal: process.uris.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit
                .map(|exit| timestamp(exit.at_ns))
                .map_or_else(MessageField::none, MessageField::some),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: shim::DeleteRequest,
    ) -> Answer<shim::DeleteResponse> {
        let (pid, exit) = self.tasks.delete(&request.id, &request.exec_id).await?;
        Ok(shim::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at_ns)),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: shim::PidsRequest,
    ) -> Answer<shim::PidsResponse> {
        let task = self.tasks.task(&request.id)?;
        // A containerd that comes back takes a task without any process for one that was never made, and forgets how it
        // ended: one that has ended has its first still.
        let pids: Vec<u32> = if task.is_sandbox || task.first.state().exit().is_some() {
            vec![task.first.pid()]
        } else {
            let sandbox = self.tasks.sandbox().await?;
            let listed = sandbox
                .agent
                .list_processes(&reference(&request.id, ""))
                .await
                .map_err(Fault::from)?;
            listed
                .processes
                .iter()
                .map(|process| told_pid(process.pid))
                .collect()
        };
        Ok(shim::PidsResponse {
            processes: pids
                .into_iter()
                .map(|pid| shim::ProcessInfo {
                    pid,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }

    async fn pause(&self, _context: &TtrpcContext, request: shim::PauseRequest) -> Answer {
        self.tasks.freeze(&request.id, true).await?;
        Ok(shim::Empty::default())
    }

    async fn resume(&self, _context: &TtrpcContext, request: shim::ResumeRequest) -> Answer {
        self.tasks.freeze(&request.id, false).await?;
        Ok(shim::Empty::default())
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        request: shim::CheckpointTaskRequest,
    ) -> Answer {
        Err(Fault::unimplemented(format!(
            "cannot checkpoint container {}: vmpod saves whole machines, and those before a container is in them",
            request.id
        ))
        .into())
    }

    async fn kill(&self, _context: &TtrpcContext, request: shim::KillRequest) -> Answer {
        self.tasks
            .kill(&request.id, &request.exec_id, request.signal, request.all)
            .await?;
        Ok(shim::Empty::default())
    }

    async fn exec(&self, _context: &TtrpcContext, request: shim::ExecProcessRequest) -> Answer {
        let spec = request.spec.into_option().map(|spec| spec.value);
        let Some(spec) = spec else {
            return Err(Fault::invalid(format!(
                "exec {} of container {}: there is no OCI process",
                request.exec_id, request.id
            ))
            .into());
        };
        self.tasks.add_exec(
            &request.id,
            &request.exec_id,
            spec,
            StdioUris {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        )?;
        Ok(shim::Empty::default())
    }

    async fn resize_pty(&self, _context: &TtrpcContext, request: shim::ResizePtyRequest) -> Answer {
        let (task, process) = self.tasks.process(&request.id, &request.exec_id)?;
        if task.is_sandbox {
            return Ok(shim::Empty::default());
        }
        // One that is not made yet has no terminal to be resized.
        if process.pid() == 0 {
            return Ok(shim::Empty::default());
        }
        let wanted = m::ResizeTerminalRequest {
            container_id: request.id,
            exec_id: request.exec_id,
            rows: request.height,
            columns: request.width,
            ..Default::default()
        };
        let sandbox = self.tasks.sandbox().await?;
        sandbox
            .agent
            .resize_terminal(&wanted)
            .await
            .map_err(Fault::from)?;
        Ok(shim::Empty::default())
    }

    async fn close_io(&self, _context: &TtrpcContext, request: shim::CloseIORequest) -> Answer {
        if request.stdin {
            self.tasks
                .close_input(&request.id, &request.exec_id)
                .await?;
        }
        Ok(shim::Empty::default())
    }

    async fn update(&self, _context: &TtrpcContext, request: shim::UpdateTaskRequest) -> Answer {
        let task = self.tasks.task(&request.id)?;
        task.first.check(Operation::Update)?;
        let Some(resources) = request.resources.into_option() else {
            return Ok(shim::Empty::default());
        };
        if !resources.type_url.is_empty() && resources.type_url != RESOURCES {
            return Err(Fault::invalid(format!(
                "cannot update container {}: {} are not OCI resources ({RESOURCES})",
                request.id, resources.type_url
            ))
            .into());
        }
        if task.is_sandbox {
            // Limits of the pod as a whole are those of its machine, which was sized when it was made.
            return Ok(shim::Empty::default());
        }
        let wanted = m::UpdateContainerRequest {
            container_id: request.id,
            oci_resources: resources.value,
            ..Default::default()
        };
        let sandbox = self.tasks.sandbox().await?;
        sandbox
            .agent
            .update_container(&wanted)
            .await
            .map_err(Fault::from)?;
        Ok(shim::Empty::default())
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: shim::WaitRequest,
    ) -> Answer<shim::WaitResponse> {
        let (_, process) = self.tasks.process(&request.id, &request.exec_id)?;
        let exit = process.ended().await;
        Ok(shim::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at_ns)),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _context: &TtrpcContext,
        request: shim::StatsRequest,
    ) -> Answer<shim::StatsResponse> {
        let task = self.tasks.task(&request.id)?;
        let sandbox = self.tasks.sandbox().await?;
        let wanted = m::StatsRequest {
            container_id: if task.is_sandbox {
                String::new()
            } else {
                request.id.clone()
            },
            ..Default::default()
        };
        let told = sandbox
            .agent
            .container_stats(&wanted)
            .await
            .map_err(Fault::from)?;
        let stats = metrics::of(&told, task.is_sandbox, metrics::host_is_unified());
        Ok(shim::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: shim::ConnectRequest,
    ) -> Answer<shim::ConnectResponse> {
        let task_pid = self
            .tasks
            .task(&request.id)
            .map_or(0, |task| task.first.pid());
        Ok(shim::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _context: &TtrpcContext, request: shim::ShutdownRequest) -> Answer {
        self.tasks.shut_down(request.now).await;
        Ok(shim::Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_where_the_runtimes_options_say() {
        let options = |url: &str, value: &[u8]| Any {
            type_url: url.to_owned(),
            value: value.to_vec(),
            ..Default::default()
        };
        let url = "runtimeoptions.v1.Options";
        // Fields 1 and 2, both texts.
        let both = options(url, b"\x0a\x01x\x12\x04/a/b");
        assert_eq!(settings_path(&both), Some("/a/b".into()));
        assert_eq!(settings_path(&options(url, b"\x0a\x01x")), None);
        assert_eq!(settings_path(&options(url, b"\x12\x7f")), None);
        let others = options("containerd.runc.v1.Options", b"\x12\x04/a/b");
        assert_eq!(settings_path(&others), None);
    }
}
