//! containerd's sandbox service (api/runtime/sandbox/v1/sandbox.proto): the pod made, watched and ended by itself, without a
//! pause container and its image. From containerd 2.0 on, where the runtime has `sandboxer = "shim"`.
//!
//! The containers of such a pod come through the task service as ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox as SandboxApi;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use prost::Message as _;
use vmpod_agent_protocol::messages as m;

use super::fault::Fault;
use super::metrics;
use super::pod_sandbox_config::{PodSandboxConfig, TYPE};
use super::sandbox_wish::SandboxWish;
use super::settings::Settings;
use super::tasks::{KILLED, Tasks};
use super::timestamp;
use crate::pod::clock;

/// What the CRI calls a pod whose machine runs, and any other.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The pod as it was asked for, and what became of it.
#[derive(Clone, Debug)]
struct Pod {
    wish: SandboxWish,
    /// When its machine was there, nanoseconds since the epoch.
    created_at: Option<i64>,
    /// When its machine had ended.
    exited_at: Option<i64>,
}

/// The service.
#[derive(Debug)]
pub struct Service {
    tasks: Arc<Tasks>,
    /// `None` until it is created. Never held across an await.
    pod: Arc<Mutex<Option<Pod>>>,
}

type Answer<T> = ttrpc::Result<T>;

impl Service {
    /// The service of the pod that `tasks` are in.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            tasks,
            pod: Arc::default(),
        }
    }

    /// The pod named `id`.
    fn pod(&self, id: &str) -> Result<Pod, Fault> {
        self.check(id)?;
        let pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        pod.clone()
            .ok_or_else(|| Fault::not_found(format!("sandbox {id} was not created")))
    }

    fn check(&self, id: &str) -> Result<(), Fault> {
        let ours = self.tasks.sandbox_id();
        if id == ours {
            return Ok(());
        }
        Err(Fault::not_found(format!(
            "there is no sandbox {id} here; this shim serves {ours}"
        )))
    }

    fn create(&self, request: &api::CreateSandboxRequest) -> Result<(), Fault> {
        let id = &request.sandbox_id;
        self.check(id)?;
        let config = request
            .options
            .as_ref()
            .ok_or_else(|| Fault::invalid(format!("sandbox {id}: there is no {TYPE}")))?;
        let config = decoded(config)?;
        let settings = Settings::read(&Settings::default_path())?;
        let cpus = self.tasks.host_cpus();
        let wish = SandboxWish::of_pod(id, &config, &request.netns_path, settings, cpus)?;
        let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        if pod.is_some() {
            return Err(Fault::already_exists(format!(
                "sandbox {id} was created already"
            )));
        }
        *pod = Some(Pod {
            wish,
            created_at: None,
            exited_at: None,
        });
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<i64, Fault> {
        let wanted = self.pod(id)?;
        if wanted.created_at.is_some() {
            return Err(Fault::precondition(format!(
                "sandbox {id} was started already"
            )));
        }
        self.tasks.keep_without_tasks();
        let sandbox = self.tasks.start_sandbox(&wanted.wish).await?;
        let created_at = clock::now_ns();
        if let Some(pod) = &mut *self.pod.lock().unwrap_or_else(PoisonError::into_inner) {
            pod.created_at = Some(created_at);
        }
        let pod = Arc::clone(&self.pod);
        tokio::spawn(async move {
            sandbox.ended().await;
            if let Some(pod) = &mut *pod.lock().unwrap_or_else(PoisonError::into_inner) {
                pod.exited_at = Some(clock::now_ns());
            }
        });
        Ok(created_at)
    }

    async fn metrics(&self) -> Result<Any, Fault> {
        let sandbox = self.tasks.sandbox().await?;
        let told = sandbox
            .agent
            .container_stats(&m::StatsRequest::default())
            .await?;
        Ok(metrics::of(&told, true, metrics::host_is_unified()))
    }
}

/// The CRI's description of a pod. containerd's type names may have a host in front.
fn decoded(config: &Any) -> Result<PodSandboxConfig, Fault> {
    let name = config.type_url.rsplit('/').next().unwrap_or_default();
    if name != TYPE {
        return Err(Fault::invalid(format!(
            "cannot make a sandbox of {name:?}; {TYPE} is what the CRI plugin gives"
        )));
    }
    PodSandboxConfig::decode(config.value.as_slice())
        .map_err(|error| Fault::invalid(format!("the {TYPE} cannot be decoded: {error}")))
}

#[async_trait]
impl SandboxApi for Service {
    async fn create_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> Answer<api::CreateSandboxResponse> {
        self.create(&request)?;
        Ok(api::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> Answer<api::StartSandboxResponse> {
        let created_at = self.start(&request.sandbox_id).await?;
        Ok(api::StartSandboxResponse {
            pid: std::process::id(),
            created_at: MessageField::some(timestamp(created_at)),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _context: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> Answer<api::PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = api::PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = "amd64".to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> Answer<api::StopSandboxResponse> {
        self.pod(&request.sandbox_id)?;
        self.tasks.end_sandbox().await;
        Ok(api::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> Answer<api::WaitSandboxResponse> {
        self.pod(&request.sandbox_id)?;
        let sandbox = self.tasks.machine().await?;
        sandbox.ended().await;
        let exited_at = self.pod(&request.sandbox_id)?.exited_at;
        Ok(api::WaitSandboxResponse {
            exit_status: KILLED,
            exited_at: MessageField::some(timestamp(exited_at.unwrap_or_else(clock::now_ns))),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _context: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> Answer<api::SandboxStatusResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let machine = self.tasks.machine().await.ok();
        let end = machine.and_then(|machine| machine.end());
        let runs = pod.created_at.is_some() && end.is_none();
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("vcpus".to_owned(), pod.wish.vcpus.to_string());
            info.insert("memoryMiB".to_owned(), pod.wish.memory_mib.to_string());
            info.extend(end.map(|end| ("end".to_owned(), end)));
        }
        let moment = |at: Option<i64>| at.map(timestamp).into();
        Ok(api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: if runs { std::process::id() } else { 0 },
            state: if runs { READY } else { NOT_READY }.to_owned(),
            info,
            created_at: moment(pod.created_at),
            exited_at: moment(pod.exited_at),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::PingRequest,
    ) -> Answer<api::PingResponse> {
        self.check(&request.sandbox_id)?;
        self.tasks.sandbox().await?;
        Ok(api::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> Answer<api::ShutdownSandboxResponse> {
        // Also of one that was never created: containerd cleans up after a failure with it.
        self.check(&request.sandbox_id)?;
        self.tasks.shut_down(true).await;
        Ok(api::ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _context: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> Answer<api::SandboxMetricsResponse> {
        self.pod(&request.sandbox_id)?;
        let data = self.metrics().await?;
        let mut response = api::SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(timestamp(clock::now_ns()));
        metric.id = request.sandbox_id;
        metric.data = MessageField::some(data);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn config_of_another_type_or_of_broken_bytes_is_refused() {
        assert_eq!(decoded(&any(TYPE, b"\x12\x01h")).unwrap().hostname, "h");
        let with_host = format!("types.containerd.io/{TYPE}");
        assert!(decoded(&any(&with_host, b"")).is_ok());
        let fault = decoded(&any("containerd.runc.v1.Options", b"")).unwrap_err();
        assert!(fault.message.contains(TYPE), "{fault}");
        assert!(decoded(&any(TYPE, b"\x12\x7f")).is_err());
    }
}
