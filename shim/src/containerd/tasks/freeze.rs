//! Containers that stand still for a while.

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;

use super::{Tasks, reference};
use crate::containerd::fault::Fault;
use crate::containerd::task_state::{Operation, TaskState};

impl Tasks {
    /// Freezes a container, or lets it go on.
    ///
    /// # Errors
    /// When it is not in the state for that.
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<(), Fault> {
        let task = self.task(id)?;
        let _turn = task.first.turn().await;
        let operation = if frozen {
            Operation::Pause
        } else {
            Operation::Resume
        };
        task.first.check(operation)?;
        if task.is_sandbox {
            return Err(Fault::unimplemented(format!(
                "cannot {} the pod's sandbox; its containers can be, one by one",
                operation.word()
            )));
        }
        let sandbox = self.sandbox().await?;
        let name = reference(id, "");
        let container_id = id.to_owned();
        if frozen {
            sandbox.agent.pause_container(&name).await?;
            task.first.set(TaskState::Paused);
            let event = events::TaskPaused {
                container_id,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            sandbox.agent.resume_container(&name).await?;
            task.first.set(TaskState::Running);
            let event = events::TaskResumed {
                container_id,
                ..Default::default()
            };
            self.publisher
                .publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        }
        Ok(())
    }
}
