//! The engine as the rest of the agent sees it: [`Containers`] on the operations in `life`.

use std::future::Future;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmpod_agent_protocol::messages::{ExitStatus, Stdio};

use super::{Engine, OWN_RUN, unknown};
use crate::container::api::{
    ContainerError, Containers, CreateContainer, CreateExec, ExecOutcome, ProcessName,
};
use crate::event_log::EventLog;

/// Runs an operation to its end even when the caller stops waiting for it.
async fn detached<T: Send + 'static>(
    operation: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Result<T, ContainerError> {
    tokio::spawn(operation)
        .await
        .unwrap_or_else(|error| Err(ContainerError::Internal(error.to_string())))
}

impl Containers for Engine {
    async fn create(&self, request: CreateContainer) -> Result<u32, ContainerError> {
        detached(Arc::clone(&self.inner).create(request)).await
    }

    async fn create_exec(&self, request: CreateExec) -> Result<u32, ContainerError> {
        detached(Arc::clone(&self.inner).create_exec(request, None)).await
    }

    async fn start(&self, process: &ProcessName) -> Result<(), ContainerError> {
        detached(Arc::clone(&self.inner).start(process.clone())).await
    }

    fn signal(&self, process: &ProcessName, signal: u32, all: bool) -> Result<(), ContainerError> {
        let found = self.inner.process(process)?;
        if !all {
            return found.signal(signal);
        }
        let container = self.inner.container(&process.container)?;
        if signal == libc::SIGKILL.unsigned_abs() {
            return container.group.kill().map_err(|error| {
                ContainerError::Internal(format!("kill container {:?}: {error}", container.id))
            });
        }
        for pid in container.group.pids() {
            let Ok(pid) = libc::pid_t::try_from(pid) else {
                continue;
            };
            // SAFETY: pidfd_open takes integers only.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            let Ok(fd @ 0..) = libc::c_int::try_from(fd) else {
                // Gone by now.
                continue;
            };
            // SAFETY: the kernel returned a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
            let number = libc::c_int::try_from(signal).unwrap_or(-1);
            if let Err(error) = crate::process::send_signal(&pidfd, number)
                && error.raw_os_error() == Some(libc::EINVAL)
            {
                return Err(ContainerError::InvalidArgument(format!(
                    "{signal} is not a signal number"
                )));
            }
        }
        Ok(())
    }

    async fn wait(&self, process: &ProcessName) -> Result<ExitStatus, ContainerError> {
        let found = self.inner.process(process)?;
        found.ended().await.ok_or_else(|| unknown(process))
    }

    async fn delete(&self, process: &ProcessName) -> Result<ExitStatus, ContainerError> {
        detached(Arc::clone(&self.inner).delete(process.clone())).await
    }

    async fn run(
        &self,
        container: &str,
        process: Vec<u8>,
        time: Duration,
        output_limit: usize,
    ) -> Result<ExecOutcome, ContainerError> {
        let number = self.inner.next_run.fetch_add(1, Ordering::Relaxed);
        let name = ProcessName::exec(container, format!("{OWN_RUN}{number}"));
        let engine = self.clone();
        // In a task of its own, so that the process is removed even when the caller gives up.
        detached(async move { engine.run_named(&name, process, time, output_limit).await }).await
    }

    fn output_tail(&self, container: &str) -> Vec<u8> {
        match self.inner.container(container) {
            Ok(container) => {
                container.first.streams.look_ahead();
                container.tail.bytes()
            }
            Err(_) => Vec::new(),
        }
    }

    fn events(&self) -> &EventLog {
        &self.inner.events
    }
}

impl Engine {
    async fn run_named(
        &self,
        name: &ProcessName,
        process: Vec<u8>,
        time: Duration,
        output_limit: usize,
    ) -> Result<ExecOutcome, ContainerError> {
        let deadline = tokio::time::Instant::now() + time;
        self.create_exec(CreateExec {
            container: name.container.clone(),
            exec: name.exec.clone(),
            process,
            stdio: Stdio {
                stdout: true,
                stderr: true,
                ..Default::default()
            },
        })
        .await?;
        if let Err(error) = self.start(name).await {
            let _ = self.delete(name).await;
            return Err(error);
        }
        let output = Arc::new(Mutex::new(Vec::new()));
        let collectors: Vec<_> = self
            .streams(name)
            .into_iter()
            .flat_map(|streams| streams.outputs())
            .map(|stream| {
                let output = Arc::clone(&output);
                tokio::spawn(async move { stream.collect(output_limit, &output).await })
            })
            .collect();
        let exit = tokio::time::timeout_at(deadline, self.wait(name))
            .await
            .ok();
        if exit.is_none() {
            let _ = self.signal(name, libc::SIGKILL.unsigned_abs(), false);
            let _ = self.wait(name).await;
        }
        // What was written before the end is there; a grandchild that keeps the pipe open is not waited for.
        for mut collector in collectors {
            if tokio::time::timeout(Duration::from_millis(50), &mut collector)
                .await
                .is_err()
            {
                collector.abort();
            }
        }
        let _ = self.delete(name).await;
        let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(ExecOutcome {
            exit: exit.transpose()?,
            output,
        })
    }
}
