//! Processes that are added to a container: known from their announcement on, made in the guest when they start.

use std::sync::Arc;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use serde_json::Value;
use vmpod_agent_protocol::messages as m;

use super::{Exec, Task, Tasks, reference};
use crate::containerd::fault::Fault;
use crate::containerd::process::{Process, told_pid};
use crate::containerd::sandbox::Sandbox;
use crate::containerd::stdio::{ProcessStdio, StdioUris};
use crate::containerd::task_state::Operation;

impl Tasks {
    pub(super) async fn start_exec(
        &self,
        sandbox: &Sandbox,
        task: &Task,
        process: &Process,
    ) -> Result<ProcessStdio, Fault> {
        let (id, exec) = (&process.container, &process.exec);
        let spec = task.execs().get(exec).map(|exec| exec.spec.clone());
        let request = m::CreateExecRequest {
            container_id: id.clone(),
            exec_id: exec.clone(),
            oci_process: spec.unwrap_or_default(),
            stdio: Some(process.uris.wanted()).into(),
            ..Default::default()
        };
        let started = sandbox.agent.create_exec(&request).await?;
        process.set_pid(told_pid(started.pid));
        let name = reference(id, exec);
        let running = async {
            let stdio = ProcessStdio::connect(
                &sandbox.socket,
                id,
                exec,
                &process.uris,
                &self.place.namespace,
                &self.streams,
            )
            .await?;
            sandbox.agent.start_exec(&name).await?;
            Ok(stdio)
        };
        let running: Result<ProcessStdio, Fault> = running.await;
        if running.is_err() {
            let _ = sandbox.agent.delete_container(&name).await;
        }
        running
    }

    /// Adds a process to a container; it does not run yet.
    ///
    /// # Errors
    /// When the container does not run or the id is taken.
    pub fn add_exec(
        &self,
        id: &str,
        exec: &str,
        spec: Vec<u8>,
        uris: StdioUris,
    ) -> Result<(), Fault> {
        let task = self.task(id)?;
        if task.is_sandbox {
            return Err(Fault::precondition(format!(
                "container {id} is the pod's sandbox, which is a machine: nothing can be executed in it but in the pod's other containers"
            )));
        }
        task.first.check(Operation::Exec)?;
        let process: Value = serde_json::from_slice(&spec).map_err(|error| {
            Fault::invalid(format!(
                "exec {exec} of container {id}: its OCI process is not JSON: {error}"
            ))
        })?;
        let mut process = process;
        if let Some(object) = process.as_object_mut() {
            for name in ["apparmorProfile", "selinuxLabel"] {
                object.remove(name);
            }
        }
        let mut execs = task.execs();
        if execs.contains_key(exec) {
            return Err(Fault::already_exists(format!(
                "container {id} has an exec {exec} already"
            )));
        }
        execs.insert(
            exec.to_owned(),
            Arc::new(Exec {
                process: Arc::new(Process::new(id, exec, uris)),
                spec: serde_json::to_vec(&process).unwrap_or_default(),
            }),
        );
        drop(execs);
        let event = events::TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }
}
