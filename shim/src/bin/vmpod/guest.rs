//! The way from a verb to a pod's agent.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmpod_shim::pod::agent::Agent;
use vmpod_shim::pod::durable;
use vmpod_shim::pod::process::{self, ProcessIdentity};
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::{PodPaths, Roots};
use vmpod_shim::pod::status::{ContainerState, ContainerStatus, PodStatus};

/// How long the agent of a running pod may take to shake hands.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How often a pod's status is looked at while something is awaited of its supervisor.
const LOOK: Duration = Duration::from_millis(20);

/// Annotation that names the container that verbs are about (kubectl).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// An event loop for a verb that needs one.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start an event loop")
}

/// A connection to the agent of the pod at `paths`.
pub async fn agent(paths: &PodPaths) -> anyhow::Result<Agent> {
    Ok(Agent::connect(&paths.vsock(), CONNECT_LIMIT).await?.0)
}

/// SIGUSR1 in a mask of signals (proc(5), SigCgt).
const USER_SIGNAL: u64 = 1 << 9;

/// A pod that runs, with its record and status.
#[derive(Debug)]
pub struct RunningPod {
    pub pod: FoundPod,
    pub record: PodRecord,
    pub status: PodStatus,
}

/// The running pod that `selector` names.
pub fn running(roots: &Roots, selector: &str) -> anyhow::Result<RunningPod> {
    let pod = registry::find(roots, selector)?;
    if pod.has_ended() {
        bail!(
            "pod {:?} is not running: it has ended",
            pod.reservation.name
        );
    }
    let Some(status) = pod.status.clone() else {
        bail!("pod {:?} is still being prepared", pod.reservation.name);
    };
    let record = durable::read_json(&pod.paths.config())?;
    Ok(RunningPod {
        pod,
        record,
        status,
    })
}

impl RunningPod {
    /// Waits until its supervisor has written a status in which `find` finds something. `what` is said, with `limit`, of one
    /// that does not come.
    pub fn await_status<T>(
        &self,
        what: &str,
        limit: Duration,
        find: impl Fn(&PodStatus) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        let paths = &self.pod.paths;
        loop {
            let status: Option<PodStatus> = durable::read_json(&paths.status()).ok();
            if let Some(found) = status.as_ref().and_then(&find) {
                return Ok(found);
            }
            if !process::is_locked(&paths.lock()) {
                bail!("pod {:?} has ended meanwhile", self.status.name);
            }
            if Instant::now() >= deadline {
                bail!("{what} within {} s", limit.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The pod's supervisor, which must listen for requests: one of an older vmpod would be killed by SIGUSR1.
    pub fn supervisor(&self) -> anyhow::Result<ProcessIdentity> {
        let listens = |identity: &ProcessIdentity| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", identity.pid)).ok()?;
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?;
            let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
            Some(mask & USER_SIGNAL != 0)
        };
        match self.status.supervisor {
            Some(identity) if identity.is_alive() => {
                if listens(&identity) == Some(true) {
                    return Ok(identity);
                }
                bail!(
                    "pod {:?} still starts, or was started by a vmpod that cannot add containers",
                    self.status.name
                )
            }
            _ => bail!("nobody looks after pod {:?}", self.status.name),
        }
    }

    /// The container named `wanted`, or the one that the pod's annotation names, or the first one.
    pub fn container(&self, wanted: Option<&str>) -> anyhow::Result<&ContainerStatus> {
        let name = wanted
            .or_else(|| {
                self.record
                    .annotations
                    .get(DEFAULT_CONTAINER)
                    .map(String::as_str)
                    .filter(|name| self.status.containers.iter().any(|c| c.name == *name))
            })
            .or_else(|| self.status.containers.first().map(|c| c.name.as_str()))
            .unwrap_or_default();
        self.status
            .every_container()
            .find(|container| container.name == name)
            .with_context(|| {
                let names: Vec<&str> = self
                    .status
                    .every_container()
                    .map(|c| c.name.as_str())
                    .collect();
                format!(
                    "pod {:?} has no container {name:?}; it has {}",
                    self.status.name,
                    names.join(", ")
                )
            })
    }

    /// Id, in the agent, of the present attempt of a container that runs.
    pub fn running_container(&self, wanted: Option<&str>) -> anyhow::Result<(String, String)> {
        let container = self.container(wanted)?;
        if container.state != ContainerState::Running {
            bail!(
                "container {:?} is not running: it is {} ({})",
                container.name,
                container.state.to_string().to_lowercase(),
                container.reason
            );
        }
        Ok((
            container.name.clone(),
            format!("{}.{}", container.name, container.attempt),
        ))
    }
}
