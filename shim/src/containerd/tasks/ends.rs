//! What happens to processes by themselves, and who hears of it: their ends, and kills for want of memory.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use tokio::time::timeout;
use vmpod_agent_protocol::messages as m;

use super::{DRAIN_LIMIT, KILLED, LOST_LIMIT, Tasks, reference};
use crate::containerd::process::Process;
use crate::containerd::sandbox::Sandbox;
use crate::containerd::task_state::{Exit, TaskState};
use crate::containerd::timestamp;
use crate::pod::clock;

impl Tasks {
    /// Waits for the end of a process in the guest and tells containerd.
    pub(super) async fn watch_process(self: Arc<Self>, process: Arc<Process>, is_sandbox: bool) {
        let Some(sandbox) = self.sandbox.lock().await.clone() else {
            return;
        };
        let killed = || Exit {
            status: KILLED,
            at_ns: clock::now_ns(),
        };
        let mut oom = false;
        let exit = if is_sandbox {
            sandbox.ended().await;
            killed()
        } else {
            let name = reference(&process.container, &process.exec);
            tokio::select! {
                // What the agent said last comes before the end of its machine.
                biased;
                waited = sandbox.agent.wait_process(&name) => match waited {
                    Ok(status) => {
                        oom = status.oom_killed;
                        Exit {
                            status: status.code,
                            at_ns: if status.finished_at_ns > 0 {
                                status.finished_at_ns
                            } else {
                                clock::now_ns()
                            },
                        }
                    }
                    Err(error) => {
                        tracing::warn!(process = process.name(), %error, "the agent does not say how a process ends");
                        // Its machine most likely ends as well; one that does not is of no use.
                        if timeout(LOST_LIMIT, sandbox.ended()).await.is_err() && !error.is_not_found() {
                            sandbox.stop();
                            sandbox.ended().await;
                        }
                        killed()
                    }
                },
                _ = sandbox.ended() => killed(),
            }
        };
        let mut turn = process.turn().await;
        if process.exec.is_empty()
            && let Some(stdio) = &mut *turn
        {
            stdio.deliver(DRAIN_LIMIT).await;
        }
        if !process.set(TaskState::Stopped(exit)) {
            return;
        }
        if oom && process.exec.is_empty() {
            self.tell_oom(&process);
        }
        self.tell_exit(&process, exit);
    }

    pub(super) fn tell_exit(&self, process: &Process, exit: Exit) {
        let event = events::TaskExit {
            container_id: process.container.clone(),
            id: if process.exec.is_empty() {
                process.container.clone()
            } else {
                process.exec.clone()
            },
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at_ns)),
            ..Default::default()
        };
        self.publisher
            .publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    fn tell_oom(&self, process: &Process) {
        if process.oom_was_told() {
            return;
        }
        let event = events::TaskOOM {
            container_id: process.container.clone(),
            ..Default::default()
        };
        self.publisher.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    /// Tells containerd of out-of-memory kills in the guest, until the machine ends.
    pub(super) async fn tell_ooms(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        const WAIT: Duration = Duration::from_secs(25);
        let mut after = 0;
        loop {
            let batch = tokio::select! {
                batch = sandbox.agent.next_events(after, WAIT) => batch,
                _ = sandbox.ended() => return,
            };
            let Ok(batch) = batch else {
                // Whoever waits for a process says what became of the agent.
                return;
            };
            for event in &batch.events {
                if event.kind.enum_value_or(m::EventKind::UNKNOWN) == m::EventKind::CONTAINER_OOM
                    && let Ok(task) = self.task(&event.container_id)
                    && task.first.state().exit().is_none()
                {
                    self.tell_oom(&task.first);
                }
            }
            let last = batch.events.iter().map(|event| event.sequence).max();
            // An agent that repeats itself would keep this loop busy.
            if last.is_some_and(|last| last <= after) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            after = after.max(last.unwrap_or(0));
        }
    }
}
