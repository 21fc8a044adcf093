//! Which pods there are, and everything about one.

use std::io::{self, Write};

use serde_json::{Value, json};
use vmpod_shim::pod::clock;
use vmpod_shim::pod::durable;
use vmpod_shim::pod::record::{ContainerRecord, PodRecord};
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::{ContainerState, ContainerStatus, Exit, Phase, PodStatus};

use crate::cli::{InspectArguments, Output, PsArguments};
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

/// `vmpod inspect`: a Pod object of Kubernetes with a section of vmpod's own; a list of them for several pods.
pub fn inspect(roots: &Roots, arguments: &InspectArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let mut all = Vec::new();
    for selector in &arguments.pods {
        let pod = registry::find(roots, selector)?;
        let record: Option<PodRecord> = durable::read_json(&pod.paths.config()).ok();
        all.push(pod_object(&pod, record.as_ref()));
    }
    match all.as_slice() {
        [one] => table::json(one)?,
        several => table::json(&several)?,
    }
    Ok(0)
}

fn time(at_ns: i64) -> Value {
    if at_ns > 0 {
        Value::String(clock::rfc3339(at_ns))
    } else {
        Value::Null
    }
}

fn pod_object(pod: &FoundPod, record: Option<&PodRecord>) -> Value {
    let containers = |containers: &[ContainerRecord]| -> Vec<Value> {
        containers
            .iter()
            .map(|c| json!({"name": c.name, "image": c.image, "tty": c.tty, "stdin": c.stdin}))
            .collect()
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.reservation.name,
            "namespace": pod.reservation.namespace,
            "uid": record.map(|r| &r.uid),
            "labels": record.map(|r| &r.labels),
            "annotations": record.map(|r| &r.annotations),
            "creationTimestamp": time(pod.reservation.created_at_ns),
        },
        "spec": {
            "hostname": record.map(|r| &r.hostname),
            "restartPolicy": record.map(|r| r.restart_policy),
            "terminationGracePeriodSeconds": record.map(|r| r.termination_grace_seconds),
            "shareProcessNamespace": record.map(|r| r.share_process_namespace),
            "initContainers": record.map(|r| containers(&r.init_containers)),
            "containers": record.map(|r| containers(&r.containers)),
        },
        "status": status_object(pod, record),
        "vmpod": {
            "id": pod.reservation.id,
            "attended": pod.attended,
            "exitCode": pod.status.as_ref().and_then(|s| s.exit_code),
            "finishedAt": pod.status.as_ref().map(|s| time(s.finished_at_ns)),
            "supervisorPid": pod.status.as_ref().and_then(|s| s.supervisor).map(|p| p.pid),
            "vmmPid": pod.status.as_ref().and_then(|s| s.vmm).map(|p| p.pid),
            "bootNanoseconds": pod.status.as_ref().map(|s| s.boot_ns),
            "guest": pod.status.as_ref().map(|s| &s.guest),
            "requests": pod.reservation.requests,
            "hostPorts": pod.reservation.host_ports,
            "machine": record.map(|r| json!({
                "vcpus": r.machine.vcpus,
                "memoryMib": r.machine.memory_mib,
                "kernel": r.machine.vmlinux,
            })),
            "network": record.and_then(|r| r.network.as_ref()).map(|place| json!({
                "address": place.address,
                "subnet": place.subnet.to_string(),
                "gateway": place.subnet.gateway(),
                "mac": place.mac(),
                "mtu": place.mtu,
            })),
            "volumes": record.map(|r| &r.volumes),
            "paths": {
                "run": pod.paths.run,
                "state": pod.paths.state,
                "logs": pod.paths.logs(),
                "console": pod.paths.console(),
                "supervisorLog": pod.paths.supervisor_log(),
            },
        },
    })
}

fn status_object(pod: &FoundPod, record: Option<&PodRecord>) -> Value {
    let Some(status) = &pod.status else {
        return json!({"phase": "Pending", "reason": "Preparing"});
    };
    let phase = match status.phase {
        Phase::Preparing => Phase::Pending,
        other => other,
    };
    let containers = |list: &[ContainerStatus]| -> Vec<Value> {
        list.iter().map(|c| container(status, c)).collect()
    };
    let mut object = json!({
        "phase": phase.to_string(),
        "podIP": status.pod_ip,
        "podIPs": [{"ip": status.pod_ip}],
        "hostIP": record.and_then(|r| r.network.as_ref()).map(|place| place.subnet.gateway()),
        "startTime": time(status.created_at_ns),
        "initContainerStatuses": containers(&status.init_containers),
        "containerStatuses": containers(&status.containers),
    });
    for (name, text) in [("reason", &status.reason), ("message", &status.message)] {
        if !text.is_empty() {
            object[name] = json!(text);
        }
    }
    object
}

fn container(pod: &PodStatus, status: &ContainerStatus) -> Value {
    let id = format!("vmpod://{}/{}.{}", pod.id, status.name, status.attempt);
    let state = match (status.state, &status.exit) {
        (ContainerState::Running, _) => {
            json!({"running": {"startedAt": time(status.started_at_ns)}})
        }
        (ContainerState::Terminated, Some(exit)) => {
            json!({"terminated": terminated(exit, &status.reason, &id)})
        }
        (ContainerState::Terminated, None) => {
            json!({"terminated": {"reason": status.reason, "message": status.message, "containerID": id}})
        }
        (ContainerState::Waiting, _) => {
            let mut waiting = json!({"reason": status.reason});
            if !status.message.is_empty() {
                waiting["message"] = json!(status.message);
            }
            json!({"waiting": waiting})
        }
    };
    let running = status.state == ContainerState::Running;
    json!({
        "name": status.name,
        "image": status.image,
        "imageID": status.image_digest,
        "containerID": id,
        "restartCount": status.restart_count,
        "ready": running,
        "started": running,
        "state": state,
        "lastState": status
            .last_exit
            .as_ref()
            .map_or_else(|| json!({}), |exit| json!({"terminated": terminated(exit, "", "")})),
    })
}

fn terminated(exit: &Exit, reason: &str, id: &str) -> Value {
    let reason = if exit.reason.is_empty() {
        reason
    } else {
        &exit.reason
    };
    let mut object = json!({
        "exitCode": exit.code,
        "reason": reason,
        "startedAt": time(exit.started_at_ns),
        "finishedAt": time(exit.finished_at_ns),
    });
    if exit.signal != 0 {
        object["signal"] = json!(exit.signal);
    }
    for (name, text) in [("message", exit.message.as_str()), ("containerID", id)] {
        if !text.is_empty() {
            object[name] = json!(text);
        }
    }
    object
}
