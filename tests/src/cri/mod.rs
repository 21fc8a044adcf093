//! A client of the CRI, generated from its published definition: pods and containers as a kubelet makes them.

mod container;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub use container::{Container, Ran};

use crate::containerd::CGROUP_PARENT;
use crate::{LIMIT, containerd, eventually, streaming};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The CRI of the tests' containerd.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    channel: Channel,
}

/// The client of this test program.
///
/// # Panics
/// When containerd does not come.
pub fn cri() -> &'static Cri {
    static ONE: OnceLock<Cri> = OnceLock::new();
    ONE.get_or_init(|| {
        let socket = containerd().socket();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("start an event loop");
        let channel = runtime.block_on(async move {
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(
                tower::service_fn(move |_: Uri| connect(socket.clone())),
            )
        });
        Cri {
            runtime,
            client: RuntimeServiceClient::new(channel.clone()),
            channel,
        }
    })
}

async fn connect(socket: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(socket).await?))
}

impl Cri {
    /// Makes a call, within [`LIMIT`].
    ///
    /// # Errors
    /// containerd's answer.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn call<T, F>(
        &self,
        work: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = work(self.client.clone());
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, call).await })
            .expect("an answer of the CRI in time")
            .map(Response::into_inner)
    }

    /// Makes a call of containerd's own, in the namespace of the CRI, within [`LIMIT`].
    ///
    /// # Errors
    /// containerd's answer.
    ///
    /// # Panics
    /// When there is none in time.
    pub(crate) fn call_path<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
        let mut client = Grpc::new(self.channel.clone());
        let call = async move {
            client
                .ready()
                .await
                .map_err(|error| Status::unknown(error.to_string()))?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            client
                .unary(request, PathAndQuery::from_static(path), codec)
                .await
        };
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, call).await })
            .expect("an answer of containerd in time")
            .map(Response::into_inner)
    }

    /// Waits until a containerd that was restarted serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_service(&self) {
        eventually("the CRI of a containerd that was restarted", || {
            let request = v1::ListPodSandboxRequest { filter: None };
            self.call(|mut client| async move { client.list_pod_sandbox(request).await })
                .ok()
                .map(drop)
        });
    }
}

/// Does the same under runc and under vmpod.
pub fn on_both(test: impl Fn(&str)) {
    for handler in ["runc", "vmpod"] {
        eprintln!("-- under {handler}");
        test(handler);
    }
}

/// A pod sandbox, removed when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its configuration.
    pub config: v1::PodSandboxConfig,
    logs: tempfile::TempDir,
}

/// A configuration of a pod with a name of its own.
fn sandbox_config(logs: &tempfile::TempDir) -> v1::PodSandboxConfig {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("t{}-{number}", std::process::id());
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            uid: format!("uid-{name}"),
            name: name.clone(),
            namespace: "test".into(),
            attempt: 0,
        }),
        hostname: name,
        log_directory: logs.path().to_string_lossy().into_owned(),
        dns_config: Some(v1::DnsConfig {
            servers: vec!["10.9.8.7".into()],
            searches: vec!["test.local".into()],
            options: vec![],
        }),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: CGROUP_PARENT.into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    // CONTAINER
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Sandbox {
    /// Runs a pod under `handler`, whose configuration `change` may change.
    ///
    /// # Errors
    /// What the CRI says.
    ///
    /// # Panics
    /// When there is no answer in time.
    pub fn try_run(
        handler: &str,
        change: impl FnOnce(&mut v1::PodSandboxConfig),
    ) -> Result<Self, Status> {
        let logs = tempfile::tempdir().expect("make a directory for logs");
        let mut config = sandbox_config(&logs);
        change(&mut config);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let answer =
            cri().call(|mut client| async move { client.run_pod_sandbox(request).await })?;
        Ok(Self {
            id: answer.pod_sandbox_id,
            config,
            logs,
        })
    }

    /// Runs a pod under `handler`.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn run(handler: &str) -> Self {
        Self::run_with(handler, |_| {})
    }

    /// Runs a pod under `handler`, whose configuration `change` changes.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn run_with(handler: &str, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Self {
        Self::try_run(handler, change)
            .unwrap_or_else(|status| panic!("run a pod under {handler}: {}", status.message()))
    }

    /// Its status.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn status(&self) -> v1::PodSandboxStatus {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        cri()
            .call(|mut client| async move { client.pod_sandbox_status(request).await })
            .expect("the status of a sandbox")
            .status
            .expect("a status")
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn address(&self) -> String {
        self.status().network.expect("a network").ip
    }

    /// Makes and starts a container of busybox that executes `line` in a shell.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn shell(&self, line: &str) -> Container<'_> {
        self.start(|config| config.command = ["sh", "-c", line].map(str::to_owned).to_vec())
    }

    /// Makes and starts a container of busybox, whose configuration `change` changes.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, change: impl FnOnce(&mut v1::ContainerConfig)) -> Container<'_> {
        let made = self
            .create(change)
            .unwrap_or_else(|status| panic!("create a container: {}", status.message()));
        made.start()
            .unwrap_or_else(|status| panic!("start a container: {}", status.message()));
        made
    }

    /// Makes a container of busybox, whose configuration `change` changes.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn create(
        &self,
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<Container<'_>, Status> {
        let name = format!("c{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.clone(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "docker.io/library/busybox:latest".into(),
                ..Default::default()
            }),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources::default()),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        change(&mut config);
        let log = self.logs.path().join(&config.log_path);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer =
            cri().call(|mut client| async move { client.create_container(request).await })?;
        Ok(Container {
            id: answer.container_id,
            log,
            _sandbox: self,
        })
    }

    /// Stops it.
    ///
    /// # Panics
    /// When the CRI refuses.
    pub fn stop(&self) {
        self.try_stop().expect("stop a sandbox");
    }

    fn try_stop(&self) -> Result<v1::StopPodSandboxResponse, Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        cri().call(|mut client| async move { client.stop_pod_sandbox(request).await })
    }

    /// Removes it.
    ///
    /// # Panics
    /// When the CRI refuses.
    pub fn remove(&self) {
        self.try_remove().expect("remove a sandbox");
    }

    fn try_remove(&self) -> Result<v1::RemovePodSandboxResponse, Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        cri().call(|mut client| async move { client.remove_pod_sandbox(request).await })
    }

    /// Connects to `port` of the pod's localhost, as `kubectl port-forward` does, sends `bytes` and returns what comes
    /// until the end, or until `enough` says so.
    ///
    /// # Panics
    /// When the CRI refuses.
    #[must_use]
    pub fn port_forward(&self, port: u16, bytes: &[u8], enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
        };
        let answer = cri()
            .call(|mut client| async move { client.port_forward(request).await })
            .expect("forward a port");
        streaming::port_forward(&answer.url, port, bytes, enough)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Also after a failed assertion, which is what the test is about then: the next one wants a clean host.
        let _ = self.try_stop();
        let _ = self.try_remove();
    }
}

/// How long a stream may be silent before a test gives it up.
pub(crate) const SILENCE: Duration = LIMIT;
