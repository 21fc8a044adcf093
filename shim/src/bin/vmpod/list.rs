//! Which pods there are, and everything about one.

use std::io::{self, Write};

use anyhow::Context;
use serde_json::{Value, json};
use vmpod_shim::pod::clock;
use vmpod_shim::pod::object::{inspected, pod_object};
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::{ContainerState, Phase};

use crate::cli::{InspectArguments, InspectOutput, Output, PsArguments};
use crate::table;

/// `vmpod ps`
pub fn ps(roots: &Roots, arguments: &PsArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let pods: Vec<FoundPod> = registry::list(roots)?
        .into_iter()
        .filter(|pod| arguments.all || !pod.has_ended())
        .collect();
    if arguments.output == Output::Json {
        let all: Vec<Value> = pods.iter().map(summary).collect();
        table::json(&all)?;
        return Ok(0);
    }
    if arguments.quiet {
        for pod in pods {
            writeln!(io::stdout(), "{}", pod.reservation.id)?;
        }
        return Ok(0);
    }
    let now = clock::now_ns();
    let rows = pods
        .iter()
        .map(|pod| {
            let (mut running, mut total, mut restarts) = (0, 0, 0);
            if let Some(status) = &pod.status {
                total = status.containers.len();
                running = status
                    .containers
                    .iter()
                    .filter(|c| c.state == ContainerState::Running)
                    .count();
                restarts = status.all_containers().map(|c| c.restart_count).sum();
            }
            vec![
                pod.reservation.id.clone(),
                pod.reservation.name.clone(),
                format!("{running}/{total}"),
                state(pod),
                restarts.to_string(),
                pod.status
                    .as_ref()
                    .map(|s| s.pod_ip.clone())
                    .unwrap_or_default(),
                clock::age(pod.reservation.created_at_ns, now),
            ]
        })
        .collect();
    table::print(
        &["ID", "NAME", "RUNNING", "STATUS", "RESTARTS", "IP", "AGE"],
        rows,
    )?;
    Ok(0)
}

/// One word for how a pod is, as `kubectl get pods` has it.
fn state(pod: &FoundPod) -> String {
    let Some(status) = &pod.status else {
        return "Preparing".to_owned();
    };
    if status.phase.is_final() {
        return match status.phase {
            Phase::Succeeded => "Completed".to_owned(),
            _ if status.reason.is_empty() => "Error".to_owned(),
            _ => status.reason.clone(),
        };
    }
    let total = status.init_containers.len();
    let done = status
        .init_containers
        .iter()
        .filter(|c| {
            c.exit.as_ref().is_some_and(|e| e.code == 0) || c.state == ContainerState::Running
        })
        .count();
    if done < total {
        return format!("Init:{done}/{total}");
    }
    status
        .containers
        .iter()
        .find(|c| c.state == ContainerState::Waiting && !c.reason.is_empty())
        .map_or_else(|| status.phase.to_string(), |c| c.reason.clone())
}

fn summary(pod: &FoundPod) -> Value {
    json!({
        "id": pod.reservation.id,
        "name": pod.reservation.name,
        "namespace": pod.reservation.namespace,
        "state": state(pod),
        "phase": pod.status.as_ref().map_or_else(|| "Preparing".to_owned(), |s| s.phase.to_string()),
        "ip": pod.status.as_ref().map(|s| s.pod_ip.clone()).unwrap_or_default(),
        "createdAt": clock::rfc3339(pod.reservation.created_at_ns),
        "exitCode": pod.status.as_ref().and_then(|s| s.exit_code),
        "running": !pod.has_ended(),
        "supervisorPid": pod.status.as_ref().and_then(|s| s.supervisor).map(|p| p.pid),
        "vmmPid": pod.status.as_ref().and_then(|s| s.vmm).map(|p| p.pid),
    })
}

/// `vmpod inspect`: a Pod object of Kubernetes, in JSON with a section of vmpod's own; a list of them for several pods.
pub fn inspect(roots: &Roots, arguments: &InspectArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let mut all = Vec::new();
    for selector in &arguments.pods {
        let pod = registry::find(roots, selector)?;
        all.push(match arguments.output {
            InspectOutput::Json => inspected(&pod),
            InspectOutput::Yaml => pod_object(&pod),
        });
    }
    match (arguments.output, all.as_slice()) {
        (InspectOutput::Json, [one]) => table::json(one)?,
        (InspectOutput::Json, several) => table::json(&several)?,
        (InspectOutput::Yaml, documents) => {
            let mut out = io::stdout().lock();
            for (i, document) in documents.iter().enumerate() {
                if i > 0 {
                    writeln!(out, "---")?;
                }
                let text =
                    serde_saphyr::to_string(document).context("cannot write the pod as YAML")?;
                writeln!(out, "{}", text.trim_end())?;
            }
        }
    }
    Ok(0)
}
