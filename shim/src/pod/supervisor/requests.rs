//! What the agent is asked at the start of a pod, composed from the pod's record. Pure but for the random bytes.

use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::{GUEST_SHARED, SHARE_TAG};

use super::Pod;
use super::setup::Prepared;
use crate::manifest::care::{HandlerPlan, ProbePlan};
use crate::manifest::plan::RestartPolicy;
use crate::pod::boot::{BootError, CARD_MAC, entropy};
use crate::pod::guest_paths;
use crate::pod::id_ranges::users_of;
use crate::pod::record::ContainerRecord;

/// Name of the network interface in the pod.
const INTERFACE: &str = "eth0";

/// What the agent makes the pod's surroundings from; the clock is set when it is sent.
///
/// # Errors
/// The host gives no random bytes.
pub(super) fn sandbox(pod: &Pod, prepared: &Prepared) -> Result<m::SandboxConfig, BootError> {
    let record = &pod.record;
    Ok(m::SandboxConfig {
        hostname: record.hostname.clone(),
        interfaces: prepared
            .network
            .iter()
            .map(|network| m::NetworkInterface {
                mac: network.place.mac(),
                device_mac: CARD_MAC.into(),
                name: INTERFACE.into(),
                mtu: u32::from(network.place.mtu),
                addresses: vec![format!(
                    "{}/{}",
                    network.place.address,
                    network.place.subnet.prefix()
                )],
                ..Default::default()
            })
            .collect(),
        routes: prepared
            .network
            .iter()
            .map(|network| m::Route {
                gateway: network.place.subnet.gateway().to_string(),
                device: INTERFACE.into(),
                ..Default::default()
            })
            .collect(),
        sysctls: record
            .sysctls
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        share_process_namespace: record.share_process_namespace,
        shares: vec![m::ShareMount {
            tag: SHARE_TAG.into(),
            guest_path: GUEST_SHARED.into(),
            ..Default::default()
        }],
        memory_volumes: record
            .memory_volumes
            .iter()
            .map(|volume| m::MemoryVolume {
                guest_path: volume.guest_path.clone(),
                size_bytes: volume.size_bytes,
                mode: volume.mode,
                gid: volume.gid,
                ..Default::default()
            })
            .collect(),
        entropy: entropy()?,
        users: record.users.map(users_of).into(),
        ..Default::default()
    })
}

/// The whole pod.
pub(super) fn start_request(pod: &Pod) -> m::StartPodRequest {
    let record = &pod.record;
    let containers = |records: &[ContainerRecord]| records.iter().map(container).collect();
    m::StartPodRequest {
        restart_policy: match record.restart_policy {
            RestartPolicy::Always => m::RestartPolicy::ALWAYS,
            RestartPolicy::OnFailure => m::RestartPolicy::ON_FAILURE,
            RestartPolicy::Never => m::RestartPolicy::NEVER,
        }
        .into(),
        init_containers: containers(&record.init_containers),
        containers: containers(&record.containers),
        termination_grace_seconds: record.termination_grace_seconds,
        active_deadline_seconds: record.active_deadline_seconds,
        pod_ip: record
            .network
            .as_ref()
            .map(|place| place.address.to_string())
            .unwrap_or_default(),
        ..Default::default()
    }
}

fn container(record: &ContainerRecord) -> m::PodContainer {
    m::PodContainer {
        name: record.name.clone(),
        // A value made by serde_json is always written again.
        oci_spec: serde_json::to_vec(&record.oci_spec).unwrap_or_default(),
        stdio: Some(m::Stdio {
            stdin: record.stdin,
            stdout: true,
            stderr: !record.tty,
            terminal: record.tty,
            rows: 24,
            columns: 80,
            keep_stdin: record.stdin && !record.stdin_once,
            ..Default::default()
        })
        .into(),
        sidecar: record.sidecar,
        termination_message_path: record.termination_message_path.clone(),
        stop_signal: record.stop_signal,
        message_from_logs: record.message_from_logs,
        rootfs: guest_paths::rootfs(&record.name, 0),
        startup_probe: record.care.startup.as_ref().map(probe).into(),
        readiness_probe: record.care.readiness.as_ref().map(probe).into(),
        liveness_probe: record.care.liveness.as_ref().map(probe).into(),
        post_start: record.care.post_start.as_ref().map(handler).into(),
        pre_stop: record.care.pre_stop.as_ref().map(handler).into(),
        ..Default::default()
    }
}

fn probe(plan: &ProbePlan) -> m::Probe {
    m::Probe {
        handler: Some(handler(&plan.handler)).into(),
        initial_delay_seconds: plan.initial_delay_seconds,
        timeout_seconds: plan.timeout_seconds,
        period_seconds: plan.period_seconds,
        success_threshold: plan.success_threshold,
        failure_threshold: plan.failure_threshold,
        has_grace: plan.grace_seconds.is_some(),
        grace_seconds: plan.grace_seconds.unwrap_or(0),
        ..Default::default()
    }
}

fn handler(plan: &HandlerPlan) -> m::Handler {
    let mut told = m::Handler::default();
    match plan {
        HandlerPlan::Exec { command } => {
            told.exec = Some(m::ExecHandler {
                command: command.clone(),
                ..Default::default()
            })
            .into();
        }
        HandlerPlan::Http {
            host,
            port,
            path,
            https,
            headers,
        } => {
            let header = |(name, value): &(String, String)| m::HttpHeader {
                name: name.clone(),
                value: value.clone(),
                ..Default::default()
            };
            told.http = Some(m::HttpHandler {
                host: host.clone(),
                port: u32::from(*port),
                path: path.clone(),
                https: *https,
                headers: headers.iter().map(header).collect(),
                ..Default::default()
            })
            .into();
        }
        HandlerPlan::Tcp { host, port } => {
            told.tcp = Some(m::TcpHandler {
                host: host.clone(),
                port: u32::from(*port),
                ..Default::default()
            })
            .into();
        }
        HandlerPlan::Grpc { port, service } => {
            told.grpc = Some(m::GrpcHandler {
                port: u32::from(*port),
                service: service.clone(),
                ..Default::default()
            })
            .into();
        }
        HandlerPlan::Sleep { seconds } => {
            told.sleep = Some(m::SleepHandler {
                seconds: *seconds,
                ..Default::default()
            })
            .into();
        }
    }
    told
}
