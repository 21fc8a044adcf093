//! A pod as a Kubernetes Pod object: the manifest as it was given, what was filled in, and its status.
//!
//! Pure but for the reading of the pod's files.

use serde_json::{Value, json};

use super::clock;
use super::conditions::Condition;
use super::durable;
use super::record::{ContainerRecord, PodRecord};
use super::registry::FoundPod;
use super::status::{ContainerState, ContainerStatus, Exit, Phase, PodStatus};

/// The Pod object as `kubectl get pod -o yaml` has it.
#[must_use]
pub fn pod_object(pod: &FoundPod) -> Value {
    let record: Option<PodRecord> = durable::read_json(&pod.paths.config()).ok();
    let record = record.as_ref();
    let mut object: Value = durable::read_json(&pod.paths.manifest())
        .unwrap_or_else(|_| json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []}}));
    object["metadata"]["name"] = json!(pod.reservation.name);
    object["metadata"]["namespace"] = json!(pod.reservation.namespace);
    object["metadata"]["creationTimestamp"] = time(pod.reservation.created_at_ns);
    if let Some(record) = record {
        object["metadata"]["uid"] = json!(record.uid);
    }
    if let Some(record) = record.filter(|record| !record.ephemeral.is_empty()) {
        object["spec"]["ephemeralContainers"] = ephemeral(record);
    }
    object["status"] = status_object(pod, record);
    object
}

fn ephemeral(record: &PodRecord) -> Value {
    let objects = record.ephemeral.iter().map(|added| added.object.clone());
    Value::Array(objects.collect())
}

fn time(at_ns: i64) -> Value {
    if at_ns > 0 {
        Value::String(clock::rfc3339(at_ns))
    } else {
        Value::Null
    }
}

/// A Pod object with a section of vmpod's own.
#[must_use]
pub fn inspected(pod: &FoundPod) -> Value {
    let record: Option<PodRecord> = durable::read_json(&pod.paths.config()).ok();
    let record = record.as_ref();
    // Labels and annotations may have changed since the record was written.
    let manifest: Value = durable::read_json(&pod.paths.manifest()).unwrap_or_default();
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
            "labels": manifest["metadata"]["labels"].as_object().cloned().unwrap_or_default(),
            "annotations": manifest["metadata"]["annotations"].as_object().cloned().unwrap_or_default(),
            "creationTimestamp": time(pod.reservation.created_at_ns),
        },
        "spec": {
            "hostname": record.map(|r| &r.hostname),
            "restartPolicy": record.map(|r| r.restart_policy),
            "terminationGracePeriodSeconds": record.map(|r| r.termination_grace_seconds),
            "shareProcessNamespace": record.map(|r| r.share_process_namespace),
            "initContainers": record.map(|r| containers(&r.init_containers)),
            "containers": record.map(|r| containers(&r.containers)),
            "ephemeralContainers": record.map(ephemeral),
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
        "conditions": status.conditions.iter().map(condition).collect::<Vec<_>>(),
        "startTime": time(status.created_at_ns),
        "initContainerStatuses": containers(&status.init_containers),
        "containerStatuses": containers(&status.containers),
    });
    if !status.ephemeral.is_empty() {
        object["ephemeralContainerStatuses"] = json!(containers(&status.ephemeral));
    }
    if !status.pod_ip.is_empty() {
        object["podIP"] = json!(status.pod_ip);
        object["podIPs"] = json!([{"ip": status.pod_ip}]);
    }
    if let Some(place) = record.and_then(|r| r.network.as_ref()) {
        let address = place.subnet.gateway();
        object["hostIP"] = json!(address);
        object["hostIPs"] = json!([{"ip": address}]);
    }
    if let Some(record) = record {
        object["qosClass"] = json!(record.qos);
        name_pod_in_backoffs(&mut object, record);
    }
    for (name, text) in [("reason", &status.reason), ("message", &status.message)] {
        if !text.is_empty() {
            object[name] = json!(text);
        }
    }
    object
}

/// The kubelet names the pod behind the container.
fn name_pod_in_backoffs(status: &mut Value, record: &PodRecord) {
    let pod = format!(" pod={}_{}({})", record.name, record.namespace, record.uid);
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in status[list].as_array_mut().into_iter().flatten() {
            let Some(waiting) = container.pointer_mut("/state/waiting") else {
                continue;
            };
            if waiting["reason"] == "CrashLoopBackOff"
                && let Some(message) = waiting["message"].as_str()
            {
                waiting["message"] = json!(format!("{message}{pod}"));
            }
        }
    }
}

fn condition(condition: &Condition) -> Value {
    let mut object = json!({
        "type": condition.kind,
        "status": if condition.holds { "True" } else { "False" },
        "lastProbeTime": null,
        "lastTransitionTime": time(condition.since_ns),
    });
    for (name, text) in [
        ("reason", &condition.reason),
        ("message", &condition.message),
    ] {
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
            json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": status.message, "containerID": id}})
        }
        (ContainerState::Waiting, _) => {
            let mut waiting = json!({"reason": status.reason});
            if !status.message.is_empty() {
                waiting["message"] = json!(status.message);
            }
            json!({"waiting": waiting})
        }
    };
    json!({
        "name": status.name,
        "image": status.image,
        "imageID": status.image_digest,
        "containerID": id,
        "restartCount": status.restart_count,
        "ready": status.ready,
        "started": status.started,
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::manifest::plan::Resources;
    use crate::pod::record::Reservation;
    use crate::pod::roots::Roots;
    use crate::pod::{conditions, status};

    fn found(status: PodStatus, directory: &std::path::Path) -> FoundPod {
        let roots = Roots {
            run: directory.join("run"),
            state: directory.join("state"),
        };
        FoundPod {
            reservation: Reservation {
                id: "0123456789ab".into(),
                name: "p".into(),
                namespace: "default".into(),
                requests: Resources::default(),
                host_ports: vec![],
                created_at_ns: 1_700_000_000_000_000_000,
            },
            paths: roots.pod("0123456789ab"),
            attended: true,
            status: Some(status),
        }
    }

    #[test]
    fn pod_object_parses_as_kubernetes_own_in_every_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = status::example::running();
        told.containers[0].started_at_ns = 1_700_000_000_000_000_000;
        conditions::refresh(&mut told, 1_700_000_000_000_000_001);
        let pod: Pod =
            serde_json::from_value(pod_object(&found(told.clone(), dir.path()))).unwrap();
        let running = pod.status.unwrap();
        assert_eq!(running.phase.as_deref(), Some("Running"));
        assert_eq!(running.conditions.unwrap().len(), 5);
        told.fail("MachineFailed", "gone", 1_700_000_000_000_000_002);
        let value = serde_json::to_value(pod_object(&found(told, dir.path()))).unwrap();
        let text = serde_saphyr::to_string(&value).unwrap();
        let pod: Pod = serde_saphyr::from_str(&text).unwrap();
        let status = pod.status.unwrap();
        let ended = status.container_statuses.unwrap()[0].state.clone().unwrap();
        assert_eq!(ended.terminated.unwrap().exit_code, 137);
        assert_eq!(status.reason.as_deref(), Some("MachineFailed"));
    }
}
