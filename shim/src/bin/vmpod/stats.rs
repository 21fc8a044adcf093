//! `vmpod stats`: what pods and their containers use, inside the guest and on the host.

use std::time::Duration;

use serde_json::{Value, json};
use vmpod_agent_protocol::messages as m;
use vmpod_shim::pod::cgroup;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::registry::{self, FoundPod};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::bounded;

use crate::cli::{Output, StatsArguments};
use crate::{guest, table};

/// Between the two looks that a CPU share is made of.
const INTERVAL: Duration = Duration::from_millis(500);

/// Containers of one answer that are shown: the agent's list is not trusted to be short.
const CONTAINERS: usize = 256;

/// `vmpod stats`
pub fn stats(roots: &Roots, arguments: &StatsArguments) -> anyhow::Result<u8> {
    let pods: Vec<FoundPod> = if arguments.pods.is_empty() {
        registry::list(roots)?
            .into_iter()
            .filter(|pod| !pod.has_ended())
            .collect()
    } else {
        arguments
            .pods
            .iter()
            .map(|selector| guest::running(roots, selector).map(|running| running.pod))
            .collect::<anyhow::Result<_>>()?
    };
    let runtime = guest::runtime()?;
    let mut all = Vec::new();
    for pod in &pods {
        match runtime.block_on(two_looks(pod)) {
            Ok((first, second)) => all.push(measured(pod, &first, &second)),
            Err(error) => tracing::warn!(
                pod = pod.reservation.name,
                error = chain(error.as_ref()),
                "no figures"
            ),
        }
    }
    match arguments.output {
        Output::Json => table::json_line(&all)?,
        Output::Text => {
            let rows = all.iter().flat_map(rows).collect();
            table::print(
                &[
                    "POD",
                    "CONTAINER",
                    "CPU%",
                    "MEMORY",
                    "LIMIT",
                    "PIDS",
                    "READ",
                    "WRITTEN",
                ],
                rows,
            )?;
        }
    }
    Ok(0)
}

/// What the agent of a pod tells now.
pub async fn look(pod: &FoundPod) -> anyhow::Result<m::StatsResponse> {
    let agent = guest::agent(&pod.paths).await?;
    Ok(agent.container_stats(&m::StatsRequest::new()).await?)
}

async fn two_looks(pod: &FoundPod) -> anyhow::Result<(m::StatsResponse, m::StatsResponse)> {
    let agent = guest::agent(&pod.paths).await?;
    let request = m::StatsRequest::new();
    let first = agent.container_stats(&request).await?;
    tokio::time::sleep(INTERVAL).await;
    let second = agent.container_stats(&request).await?;
    Ok((first, second))
}

fn measured(pod: &FoundPod, first: &m::StatsResponse, second: &m::StatsResponse) -> Value {
    let containers: Vec<Value> = second
        .containers
        .iter()
        .take(CONTAINERS)
        .map(|now| {
            let before = first
                .containers
                .iter()
                .find(|c| c.container_id == now.container_id);
            json!({
                "container": bounded(name_of(&now.container_id)),
                "cpuPercent": percent(before, now),
                "cpuUsageMicroseconds": now.cpu_usage_us,
                "memoryBytes": now.memory_usage,
                "memoryWorkingSetBytes": now.memory_usage.saturating_sub(now.memory_inactive_file),
                "memoryLimitBytes": now.memory_limit,
                "pids": now.pids_current,
                "oomKills": now.oom_kills,
                "readBytes": now.io_read_bytes,
                "writtenBytes": now.io_write_bytes,
            })
        })
        .collect();
    let interfaces: Vec<Value> = second
        .interfaces
        .iter()
        .take(16)
        .map(|interface| {
            json!({
                "name": bounded(&interface.name),
                "receivedBytes": interface.rx_bytes,
                "sentBytes": interface.tx_bytes,
                "receivedPackets": interface.rx_packets,
                "sentPackets": interface.tx_packets,
            })
        })
        .collect();
    let status = pod.status.as_ref();
    json!({
        "id": pod.reservation.id,
        "name": pod.reservation.name,
        "containers": containers,
        "interfaces": interfaces,
        "guest": {
            "memoryTotalBytes": second.memory_total,
            "memoryAvailableBytes": second.memory_available,
        },
        "host": {
            "cgroupMemoryBytes": cgroup::path_of(&pod.reservation.id).and_then(|path| cgroup::memory_bytes(&path)),
            "vmm": status.and_then(|s| s.vmm).map(|p| process_memory(p.pid)),
            "supervisor": status.and_then(|s| s.supervisor).map(|p| process_memory(p.pid)),
        },
    })
}

/// The container's name in the manifest: ids are that name, which has no dot, and the attempt.
pub fn name_of(container_id: &str) -> &str {
    container_id.split('.').next().unwrap_or(container_id)
}

/// CPU use between two looks, 100 for one whole CPU.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn percent(before: Option<&m::ContainerStatistics>, now: &m::ContainerStatistics) -> f64 {
    let before = before.map_or(now.cpu_usage_us, |b| b.cpu_usage_us);
    let used = now.cpu_usage_us.saturating_sub(before) as f64;
    (used / INTERVAL.as_micros() as f64 * 1000.0).round() / 10.0
}

/// Memory of a process by kind, bytes (proc(5), `smaps_rollup`).
fn process_memory(pid: i32) -> Value {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    json!({
        "pid": pid,
        "residentBytes": field("Rss:"),
        "proportionalBytes": field("Pss:"),
        "anonymousBytes": field("Anonymous:"),
    })
}

fn rows(pod: &Value) -> Vec<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bytes = |value: &Value| table::bytes(value.as_u64().unwrap_or(0));
    pod["containers"]
        .as_array()
        .map(|containers| {
            containers
                .iter()
                .map(|c| {
                    vec![
                        text(&pod["name"]),
                        text(&c["container"]),
                        format!("{:.1}", c["cpuPercent"].as_f64().unwrap_or(0.0)),
                        bytes(&c["memoryWorkingSetBytes"]),
                        match c["memoryLimitBytes"].as_u64() {
                            None | Some(0) => "-".to_owned(),
                            Some(limit) => table::bytes(limit),
                        },
                        c["pids"].as_u64().unwrap_or(0).to_string(),
                        bytes(&c["readBytes"]),
                        bytes(&c["writtenBytes"]),
                    ]
                })
                .collect()
        })
        .unwrap_or_default()
}
