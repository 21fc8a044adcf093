//! `/metrics` in Prometheus' text form, under the names that a kubelet's `/metrics` and `/metrics/resource` have.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use vmpod_agent_protocol::messages as m;
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::ContainerState;

use super::Counters;
use crate::{guest, stats};

/// Containers of one pod that are shown: the agent's list is not trusted to be short.
const CONTAINERS: usize = 256;

/// One sample: labels and value.
type Sample = (String, String);

/// All metrics at this moment.
pub(super) fn text(roots: &Roots, counters: &Counters) -> String {
    let pods: Vec<FoundPod> = registry::list(roots).unwrap_or_default();
    let figures = figures(&pods);
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<Sample>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |value: u64| vec![(String::new(), value.to_string())];
    let running = pods.iter().filter(|pod| !pod.has_ended()).count();
    family(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
        one(running as u64),
    );
    let states = [
        (ContainerState::Waiting, "created"),
        (ContainerState::Running, "running"),
        (ContainerState::Terminated, "exited"),
    ];
    let count = |state: ContainerState| {
        pods.iter()
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| status.all_containers())
            .filter(|container| container.state == state)
            .count()
    };
    family(
        "kubelet_running_containers",
        "gauge",
        "Number of containers by state",
        states
            .map(|(state, word)| {
                (
                    format!("{{container_state=\"{word}\"}}"),
                    count(state).to_string(),
                )
            })
            .into(),
    );
    family(
        "kubelet_desired_pods",
        "gauge",
        "Number of pods that the folder of manifests asks for",
        vec![(
            "{static=\"true\"}".to_owned(),
            counters.desired.load(Ordering::Relaxed).to_string(),
        )],
    );
    family(
        "kubelet_started_pods_total",
        "counter",
        "Number of pods started",
        one(counters.started.load(Ordering::Relaxed)),
    );
    family(
        "kubelet_started_pods_errors_total",
        "counter",
        "Number of pods that could not be started",
        one(counters.start_errors.load(Ordering::Relaxed)),
    );
    let of_containers = |value: fn(&m::ContainerStatistics) -> String| -> Vec<Sample> {
        figures
            .iter()
            .flat_map(|(pod, told)| {
                told.containers.iter().take(CONTAINERS).map(move |c| {
                    let name = stats::name_of(&c.container_id);
                    (labels(pod, Some(name)), value(c))
                })
            })
            .collect()
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        of_containers(|c| seconds(c.cpu_usage_us)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        of_containers(|c| working_set(c).to_string()),
    );
    let of_pods = |value: fn(&m::ContainerStatistics) -> String| -> Vec<Sample> {
        figures
            .iter()
            .filter_map(|(pod, told)| Some((labels(pod, None), value(told.sandbox.as_ref()?))))
            .collect()
    };
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        of_pods(|c| seconds(c.cpu_usage_us)),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        of_pods(|c| working_set(c).to_string()),
    );
    let of_statuses = |value: fn(&vmpod_shim::pod::status::ContainerStatus) -> Option<String>| {
        pods.iter()
            .filter_map(|pod| Some((pod, pod.status.as_ref()?)))
            .flat_map(|(pod, status)| {
                status
                    .all_containers()
                    .filter_map(|c| Some((labels(pod, Some(&c.name)), value(c)?)))
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<Sample>>()
    };
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        of_statuses(|c| {
            let at = u64::try_from(c.started_at_ns).ok().filter(|at| *at > 0)?;
            Some(seconds(at / 1000))
        }),
    );
    family(
        "kube_pod_container_status_restarts_total",
        "counter",
        "Number of restarts of the container",
        of_statuses(|c| Some(c.restart_count.to_string())),
    );
    text
}

/// What the agents of running pods tell; one that does not answer is left out.
fn figures(pods: &[FoundPod]) -> Vec<(&FoundPod, m::StatsResponse)> {
    let Ok(runtime) = guest::runtime() else {
        return Vec::new();
    };
    pods.iter()
        .filter(|pod| !pod.has_ended())
        .filter_map(|pod| Some((pod, runtime.block_on(stats::look(pod)).ok()?)))
        .collect()
}

fn working_set(c: &m::ContainerStatistics) -> u64 {
    c.memory_usage.saturating_sub(c.memory_inactive_file)
}

fn seconds(microseconds: u64) -> String {
    format!(
        "{}.{:06}",
        microseconds / 1_000_000,
        microseconds % 1_000_000
    )
}

fn labels(pod: &FoundPod, container: Option<&str>) -> String {
    let mut text = String::from("{");
    if let Some(container) = container {
        let _ = write!(text, "container=\"{}\",", escaped(container));
    }
    let _ = write!(
        text,
        "namespace=\"{}\",pod=\"{}\"}}",
        escaped(&pod.reservation.namespace),
        escaped(&pod.reservation.name)
    );
    text
}

/// A label's value: the agent's words are bounded and cannot end it.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(253) {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_value_cannot_end_its_label() {
        assert_eq!(escaped("a\"} b\\\n"), "a\\\"} b\\\\\\n");
        assert_eq!(seconds(1_500_000), "1.500000");
    }
}
