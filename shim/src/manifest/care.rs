//! Probes and lifecycle hooks of a container: their plan, with ports by number and every default filled in.
//!
//! Checked beforehand by `validate`; what is wrong there comes out here as a default and is never run.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, Lifecycle, LifecycleHandler, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

/// Probes and hooks of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CarePlan {
    /// `startupProbe`.
    pub startup: Option<ProbePlan>,
    /// `readinessProbe`.
    pub readiness: Option<ProbePlan>,
    /// `livenessProbe`.
    pub liveness: Option<ProbePlan>,
    /// `lifecycle.postStart`.
    pub post_start: Option<HandlerPlan>,
    /// `lifecycle.preStop`.
    pub pre_stop: Option<HandlerPlan>,
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePlan {
    /// What is done.
    pub handler: HandlerPlan,
    /// `initialDelaySeconds`.
    pub initial_delay_seconds: u32,
    /// `timeoutSeconds`.
    pub timeout_seconds: u32,
    /// `periodSeconds`.
    pub period_seconds: u32,
    /// `successThreshold`.
    pub success_threshold: u32,
    /// `failureThreshold`.
    pub failure_threshold: u32,
    /// `terminationGracePeriodSeconds`; absent means the pod's.
    pub grace_seconds: Option<u32>,
}

/// What a probe or hook does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HandlerPlan {
    /// Runs a command in the container.
    Exec {
        /// The command and its arguments.
        command: Vec<String>,
    },
    /// Gets a page.
    Http {
        /// Address; empty: the pod's.
        host: String,
        /// Port.
        port: u16,
        /// Path and query.
        path: String,
        /// TLS.
        https: bool,
        /// Header fields.
        headers: Vec<(String, String)>,
    },
    /// Opens a connection.
    Tcp {
        /// Address; empty: the pod's.
        host: String,
        /// Port.
        port: u16,
    },
    /// Asks for the health of a gRPC service.
    Grpc {
        /// Port.
        port: u16,
        /// Service.
        service: String,
    },
    /// Waits.
    Sleep {
        /// How long.
        seconds: u32,
    },
}

/// The probes and hooks of a container.
pub(super) fn care(c: &Container) -> CarePlan {
    let ports = c.ports.as_deref().unwrap_or_default();
    let probe = |p: &Option<Probe>| p.as_ref().and_then(|p| probe(p, ports));
    let hook = |of: fn(&Lifecycle) -> &Option<LifecycleHandler>| {
        let hook = c.lifecycle.as_ref().and_then(|l| of(l).as_ref())?;
        self::hook(hook, ports)
    };
    CarePlan {
        startup: probe(&c.startup_probe),
        readiness: probe(&c.readiness_probe),
        liveness: probe(&c.liveness_probe),
        post_start: hook(|l| &l.post_start),
        pre_stop: hook(|l| &l.pre_stop),
    }
}

fn probe(p: &Probe, ports: &[ContainerPort]) -> Option<ProbePlan> {
    // Zero is what the API server takes for absent.
    let number = |value: Option<i32>, default: u32| {
        value
            .and_then(|v| u32::try_from(v).ok())
            .filter(|v| *v > 0)
            .unwrap_or(default)
    };
    let handler = if let Some(exec) = &p.exec {
        HandlerPlan::Exec {
            command: exec.command.clone().unwrap_or_default(),
        }
    } else if let Some(http) = &p.http_get {
        page(http, ports)?
    } else if let Some(tcp) = &p.tcp_socket {
        HandlerPlan::Tcp {
            host: tcp.host.clone().unwrap_or_default(),
            port: port(&tcp.port, ports)?,
        }
    } else {
        let grpc = p.grpc.as_ref()?;
        HandlerPlan::Grpc {
            port: u16::try_from(grpc.port).ok()?,
            service: grpc.service.clone().unwrap_or_default(),
        }
    };
    Some(ProbePlan {
        handler,
        initial_delay_seconds: number(p.initial_delay_seconds, 0),
        timeout_seconds: number(p.timeout_seconds, 1),
        period_seconds: number(p.period_seconds, 10),
        success_threshold: number(p.success_threshold, 1),
        failure_threshold: number(p.failure_threshold, 3),
        grace_seconds: p
            .termination_grace_period_seconds
            .and_then(|s| u32::try_from(s).ok()),
    })
}

fn hook(hook: &LifecycleHandler, ports: &[ContainerPort]) -> Option<HandlerPlan> {
    if let Some(exec) = &hook.exec {
        return Some(HandlerPlan::Exec {
            command: exec.command.clone().unwrap_or_default(),
        });
    }
    if let Some(http) = &hook.http_get {
        return page(http, ports);
    }
    let sleep = hook.sleep.as_ref()?;
    Some(HandlerPlan::Sleep {
        seconds: u32::try_from(sleep.seconds).ok()?,
    })
}

fn page(http: &HTTPGetAction, ports: &[ContainerPort]) -> Option<HandlerPlan> {
    let path = http.path.as_deref().unwrap_or("/");
    let mut written = String::new();
    if !path.starts_with('/') {
        written.push('/');
    }
    for c in path.chars() {
        if c.is_ascii_graphic() {
            written.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                written.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    Some(HandlerPlan::Http {
        host: http.host.clone().unwrap_or_default(),
        port: port(&http.port, ports)?,
        path: written,
        https: http.scheme.as_deref() == Some("HTTPS"),
        headers: http
            .http_headers
            .iter()
            .flatten()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect(),
    })
}

/// The number of a port that is given by number or by the name that the container gives it.
pub(super) fn port(port: &IntOrString, ports: &[ContainerPort]) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => ports
            .iter()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok())?,
    };
    u16::try_from(number).ok().filter(|p| *p > 0)
}
