//! The agent's counters as containerd's metrics: io.containerd.cgroups.v2.Metrics on hosts with the unified hierarchy,
//! io.containerd.cgroups.v1.Metrics on others, because clients expect what the host's other containers have. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use vmpod_agent_protocol::messages as m;

/// Lines of memory.stat that are looked at.
const MEMORY_LINES: usize = 256;

/// What version 1 has for "no limit": the largest number of whole pages.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// Whether the host has the unified hierarchy alone.
#[must_use]
pub fn host_is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Metrics of the container in `told`, or of the whole pod.
#[must_use]
pub fn of(told: &m::StatsResponse, whole_pod: bool, unified: bool) -> Any {
    let nothing = m::ContainerStatistics::default();
    let counted = if whole_pod {
        told.sandbox.as_ref()
    } else {
        told.containers.first()
    };
    let counted = counted.unwrap_or(&nothing);
    // The pod's interfaces are all its containers'.
    let interfaces = &told.interfaces;
    if unified {
        packed(&version_2(counted, interfaces))
    } else {
        packed(&version_1(counted, interfaces))
    }
}

fn packed(message: &dyn MessageDyn) -> Any {
    Any {
        type_url: message.descriptor_dyn().full_name().to_owned(),
        // Numbers alone: there is nothing that could not be encoded.
        value: message.write_to_bytes_dyn().unwrap_or_default(),
        ..Default::default()
    }
}

/// memory.stat as names and numbers (Linux Documentation/admin-guide/cgroup-v2).
fn memory_lines(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .take(MEMORY_LINES)
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name, value.trim().parse().ok()?))
        })
        .collect()
}

fn version_2(
    counted: &m::ContainerStatistics,
    interfaces: &[m::InterfaceStatistics],
) -> v2::Metrics {
    let lines = memory_lines(&counted.memory_stat);
    let line = |name: &str| lines.get(name).copied().unwrap_or(0);
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: counted.pids_current,
            limit: counted.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: counted.cpu_usage_us,
            user_usec: counted.cpu_user_us,
            system_usec: counted.cpu_system_us,
            nr_periods: counted.cpu_periods,
            nr_throttled: counted.cpu_throttled_periods,
            throttled_usec: counted.cpu_throttled_us,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: line("anon"),
            file: line("file"),
            kernel_stack: line("kernel_stack"),
            slab: line("slab"),
            sock: line("sock"),
            shmem: line("shmem"),
            file_mapped: line("file_mapped"),
            file_dirty: line("file_dirty"),
            file_writeback: line("file_writeback"),
            anon_thp: line("anon_thp"),
            inactive_anon: line("inactive_anon"),
            active_anon: line("active_anon"),
            inactive_file: line("inactive_file"),
            active_file: line("active_file"),
            unevictable: line("unevictable"),
            slab_reclaimable: line("slab_reclaimable"),
            slab_unreclaimable: line("slab_unreclaimable"),
            pgfault: line("pgfault"),
            pgmajfault: line("pgmajfault"),
            workingset_refault: line("workingset_refault_file"),
            workingset_activate: line("workingset_activate_file"),
            workingset_nodereclaim: line("workingset_nodereclaim"),
            pgrefill: line("pgrefill"),
            pgscan: line("pgscan"),
            pgsteal: line("pgsteal"),
            pgactivate: line("pgactivate"),
            pgdeactivate: line("pgdeactivate"),
            pglazyfree: line("pglazyfree"),
            pglazyfreed: line("pglazyfreed"),
            thp_fault_alloc: line("thp_fault_alloc"),
            thp_collapse_alloc: line("thp_collapse_alloc"),
            usage: counted.memory_usage,
            usage_limit: if counted.memory_limit == 0 {
                u64::MAX
            } else {
                counted.memory_limit
            },
            swap_usage: counted.memory_swap_usage,
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            oom_kill: counted.oom_kills,
            oom: counted.oom_kills,
            ..Default::default()
        }),
        io: MessageField::some(v2::IOStat {
            usage: vec![v2::IOEntry {
                rbytes: counted.io_read_bytes,
                wbytes: counted.io_write_bytes,
                ..Default::default()
            }],
            ..Default::default()
        }),
        network: interfaces
            .iter()
            .map(|interface| v2::NetworkStat {
                name: interface.name.clone(),
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn version_1(
    counted: &m::ContainerStatistics,
    interfaces: &[m::InterfaceStatistics],
) -> v1::Metrics {
    let lines = memory_lines(&counted.memory_stat);
    let line = |name: &str| lines.get(name).copied().unwrap_or(0);
    // Version 1 counts in nanoseconds.
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let limit = if counted.memory_limit == 0 {
        NO_LIMIT
    } else {
        counted.memory_limit
    };
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: counted.pids_current,
            limit: counted.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: nanoseconds(counted.cpu_usage_us),
                user: nanoseconds(counted.cpu_user_us),
                kernel: nanoseconds(counted.cpu_system_us),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: counted.cpu_periods,
                throttled_periods: counted.cpu_throttled_periods,
                throttled_time: nanoseconds(counted.cpu_throttled_us),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache: line("file"),
            rss: line("anon"),
            rss_huge: line("anon_thp"),
            mapped_file: line("file_mapped"),
            dirty: line("file_dirty"),
            writeback: line("file_writeback"),
            pg_fault: line("pgfault"),
            pg_maj_fault: line("pgmajfault"),
            inactive_anon: line("inactive_anon"),
            active_anon: line("active_anon"),
            inactive_file: line("inactive_file"),
            active_file: line("active_file"),
            unevictable: line("unevictable"),
            total_cache: line("file"),
            total_rss: line("anon"),
            total_mapped_file: line("file_mapped"),
            total_pg_fault: line("pgfault"),
            total_pg_maj_fault: line("pgmajfault"),
            total_inactive_anon: line("inactive_anon"),
            total_active_anon: line("active_anon"),
            total_inactive_file: line("inactive_file"),
            total_active_file: line("active_file"),
            hierarchical_memory_limit: limit,
            usage: MessageField::some(v1::MemoryEntry {
                usage: counted.memory_usage,
                limit,
                failcnt: counted.oom_kills,
                ..Default::default()
            }),
            swap: MessageField::some(v1::MemoryEntry {
                usage: counted.memory_swap_usage,
                limit: NO_LIMIT,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: counted.oom_kills,
            ..Default::default()
        }),
        network: interfaces
            .iter()
            .map(|interface| v1::NetworkStat {
                name: interface.name.clone(),
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message;

    fn told() -> m::StatsResponse {
        let counted = |usage| m::ContainerStatistics {
            cpu_usage_us: usage,
            memory_usage: 4096,
            memory_limit: 8192,
            memory_stat: "anon 11\ninactive_file 22\nbroken\nfile x\n".into(),
            pids_current: 3,
            ..Default::default()
        };
        m::StatsResponse {
            containers: vec![counted(7)],
            sandbox: Some(counted(9)).into(),
            interfaces: vec![m::InterfaceStatistics {
                name: "eth0".into(),
                rx_bytes: 5,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn metrics_of_a_unified_host_are_of_version_2() {
        let any = of(&told(), false, true);
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.memory.usage_limit, 8192);
        assert_eq!((metrics.memory.anon, metrics.memory.file), (11, 0));
        assert_eq!(metrics.memory.inactive_file, 22);
        assert_eq!(metrics.network[0].rx_bytes, 5);
        let whole = of(&told(), true, true);
        let metrics = v2::Metrics::parse_from_bytes(&whole.value).unwrap();
        assert_eq!(metrics.cpu.usage_usec, 9);
    }

    #[test]
    fn metrics_of_other_hosts_are_of_version_1() {
        let any = of(&told(), false, false);
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 7000);
        assert_eq!(metrics.memory.usage.usage, 4096);
        assert_eq!(metrics.memory.total_inactive_file, 22);
        assert_eq!(metrics.pids.current, 3);
    }
}
