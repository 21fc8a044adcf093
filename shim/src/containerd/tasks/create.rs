//! How a task comes to be: the machine where there is none yet, the container's part of the shared tree, the container.

use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};
use vmpod_agent_protocol::messages as m;

use super::{CreateTask, Task, Tasks, reference};
use crate::containerd::bundle::{OciBundle, Role};
use crate::containerd::fault::Fault;
use crate::containerd::guest_spec::{GuestSpec, PidNamespace};
use crate::containerd::process::{Process, guest_pid, told_pid};
use crate::containerd::sandbox::Sandbox;
use crate::containerd::sandbox_wish::SandboxWish;
use crate::containerd::settings::Settings;
use crate::containerd::stdio::ProcessStdio;
use crate::containerd::users;
use crate::pod::tree::{RootSource, SnapshotMount, of_files, with_writable_parts};

impl Tasks {
    pub(super) async fn make(self: &Arc<Self>, request: CreateTask) -> Result<Arc<Task>, Fault> {
        let bundle = OciBundle::read(&request.bundle)?;
        let sandbox = match &bundle.role {
            Role::Sandbox | Role::Single => {
                let path = request.settings.clone();
                let settings = Settings::read(&path.unwrap_or_else(Settings::default_path))?;
                let wish = SandboxWish::of(&bundle, settings, self.host_cpus)?;
                self.start_sandbox(&wish).await?
            }
            Role::Member(_) => self.sandbox().await?,
        };
        let process = Process::new(&request.id, "", request.uris.clone());
        let is_sandbox = bundle.role == Role::Sandbox;
        if is_sandbox {
            // The machine is the pause container: this process stands for it.
            process.set_pid(std::process::id());
        } else {
            let alone = bundle.role == Role::Single;
            let made = self
                .make_container(&sandbox, &request, bundle, &process)
                .await;
            if let Err(fault) = made {
                if alone {
                    self.end_sandbox().await;
                }
                return Err(fault);
            }
        }
        Ok(Arc::new(Task {
            bundle: request.bundle,
            is_sandbox,
            first: Arc::new(process),
            execs: Mutex::default(),
        }))
    }

    async fn make_container(
        &self,
        sandbox: &Sandbox,
        request: &CreateTask,
        bundle: OciBundle,
        process: &Process,
    ) -> Result<(), Fault> {
        let id = &request.id;
        let root = root_source(&bundle, &request.rootfs)?;
        let mut spec = GuestSpec::of(id, bundle.config)?;
        if sandbox.has_etc {
            spec.add_pod_mounts();
        }
        for number in of_files(&spec.binds) {
            spec.mark_file(id, number);
        }
        for number in with_writable_parts(&spec.binds) {
            spec.leave_protection(id, number);
        }
        let mut numbers = Vec::new();
        for block in &spec.blocks {
            numbers.push(sandbox.attach_block(block.host).await?);
        }
        spec.renumber(&numbers);
        let mut config = spec.config;
        if let Some(ids) = sandbox.users {
            users::leave_to_pod(&mut config, ids)?;
        }
        let shares_pids = self.join_pids(&spec.pids, &mut config)?;
        sandbox.tree.add_member(id, &root, &spec.binds)?;
        if let Err(fault) = sandbox.share_mounts(id, &spec.binds) {
            sandbox.remove_member(id);
            return Err(fault);
        }
        let wanted = m::CreateContainerRequest {
            container_id: id.clone(),
            // A value that was read as JSON is always written again.
            oci_spec: serde_json::to_vec(&config).unwrap_or_default(),
            stdio: Some(request.uris.wanted()).into(),
            pids: shares_pids.into(),
            ..Default::default()
        };
        let started = match sandbox.agent.create_container(&wanted).await {
            Ok(started) => started,
            Err(error) => {
                sandbox.remove_member(id);
                return Err(error.into());
            }
        };
        process.set_pid(told_pid(started.pid));
        let connected = ProcessStdio::connect(
            &sandbox.socket,
            id,
            "",
            &request.uris,
            &self.place.namespace,
            &self.streams,
        )
        .await;
        match connected {
            Ok(stdio) => {
                *process.turn().await = Some(stdio);
                Ok(())
            }
            Err(error) => {
                let _ = sandbox.agent.delete_container(&reference(id, "")).await;
                sandbox.remove_member(id);
                Err(error.into())
            }
        }
    }

    /// Which process namespace the agent is asked for; the guest's path to it goes into `config`.
    fn join_pids(
        &self,
        pids: &PidNamespace,
        config: &mut Map<String, Value>,
    ) -> Result<m::PidNamespace, Fault> {
        let path = match pids {
            PidNamespace::Own => return Ok(m::PidNamespace::PID_NAMESPACE_OWN),
            PidNamespace::Joined(path) => path,
        };
        let pid = path
            .strip_prefix("/proc")
            .ok()
            .and_then(|rest| rest.to_str()?.strip_suffix("/ns/pid")?.parse().ok());
        if pid == Some(std::process::id()) {
            return Ok(m::PidNamespace::PID_NAMESPACE_POD);
        }
        let known = pid.filter(|&pid| {
            let tasks = self.tasks();
            tasks.values().flatten().any(|task| task.first.pid() == pid)
        });
        let Some(guest) = known.and_then(guest_pid) else {
            return Err(Fault::precondition(format!(
                "the process namespace {} is not that of a container in this pod",
                path.display()
            )));
        };
        let namespaces = config
            .get_mut("linux")
            .and_then(|linux| linux.get_mut("namespaces"))
            .and_then(Value::as_array_mut);
        if let Some(namespaces) = namespaces {
            namespaces
                .push(serde_json::json!({"type": "pid", "path": format!("/proc/{guest}/ns/pid")}));
        }
        Ok(m::PidNamespace::PID_NAMESPACE_OWN)
    }
}

/// Where the root file system comes from: the snapshotter's mounts, or else the directory that the configuration names.
fn root_source(bundle: &OciBundle, mounts: &[SnapshotMount]) -> Result<RootSource, Fault> {
    if !mounts.is_empty() {
        return Ok(RootSource::Mounts(mounts.to_vec()));
    }
    let path = bundle
        .config
        .get("root")
        .and_then(|root| root.get("path"))
        .and_then(Value::as_str)
        .filter(|path| !path.is_empty())
        .ok_or_else(|| {
            Fault::invalid(format!(
                "bundle {}: there are no mounts for the root file system, and config.json has no root.path",
                bundle.path.display()
            ))
        })?;
    let path = bundle.path.join(path);
    if !path.is_dir() {
        return Err(Fault::invalid(format!(
            "bundle {}: the root file system {} is not a directory; an image without layers has none",
            bundle.path.display(),
            path.display()
        )));
    }
    Ok(RootSource::Directory(path))
}
