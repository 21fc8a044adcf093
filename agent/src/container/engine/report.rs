//! What containers use and which processes they run, read from control groups and /proc.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use vmpod_agent_protocol::limits::MESSAGE_BYTES;
use vmpod_agent_protocol::messages::{
    InterfaceStatistics, ListProcessesResponse, ProcessInfo, StatsResponse,
};

use super::Engine;
use crate::container::ContainerError;
use crate::container::group::statistics;

/// Processes in one answer.
const PROCESSES: usize = 4096;
/// Bytes of a command line in the answer.
const COMMAND_BYTES: usize = 1024;

impl Engine {
    /// Counters of one container, or with an empty `id` of all, and of the guest.
    pub fn statistics(&self, id: &str) -> Result<StatsResponse, ContainerError> {
        let containers = if id.is_empty() {
            let state = self.inner.state();
            let mut all: Vec<_> = state.containers.values().flatten().cloned().collect();
            all.sort_by(|one, other| one.id.cmp(&other.id));
            all
        } else {
            vec![self.inner.container(id)?]
        };
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Ok(StatsResponse {
            containers: containers
                .iter()
                .map(|container| statistics(&container.id, container.group.path()))
                .collect(),
            interfaces: interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
            memory_total: meminfo(&memory, "MemTotal:"),
            memory_available: meminfo(&memory, "MemAvailable:"),
            sandbox: Some(statistics("", &self.inner.config.groups)).into(),
            ..Default::default()
        })
    }

    /// The processes of a container.
    pub fn processes(&self, id: &str) -> Result<ListProcessesResponse, ContainerError> {
        let container = self.inner.container(id)?;
        let execs: Vec<(u32, String)> = container
            .execs()
            .iter()
            .filter_map(|(exec, process)| Some((process.as_ref()?.pid, exec.clone())))
            .collect();
        let processes = container
            .group
            .pids()
            .into_iter()
            .take(PROCESSES)
            .filter_map(|pid| {
                let exec_id = execs
                    .iter()
                    .find(|(known, _)| *known == pid)
                    .map(|(_, exec)| exec.clone())
                    .unwrap_or_default();
                process_info(pid, exec_id)
            })
            .collect();
        Ok(ListProcessesResponse {
            processes,
            ..Default::default()
        })
    }
}

/// `None`: the process has ended meanwhile.
fn process_info(pid: u32, exec_id: String) -> Option<ProcessInfo> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
    };
    let mut command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    command.truncate(COMMAND_BYTES);
    while command.last() == Some(&0) {
        command.pop();
    }
    for byte in &mut command {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    let command = if command.is_empty() {
        field("Name:").unwrap_or_default().to_owned()
    } else {
        String::from_utf8_lossy(&command).into_owned()
    };
    Some(ProcessInfo {
        pid,
        parent_pid: field("PPid:")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        uid: field("Uid:")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        command,
        exec_id,
        ..Default::default()
    })
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kibibytes| kibibytes.saturating_mul(1024))
}

/// The lines of /proc/net/dev, but for the loopback.
fn interfaces(text: &str) -> Vec<InterfaceStatistics> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters
                .split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect();
            let &[
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = counters.as_slice()
            else {
                return None;
            };
            let name = name.trim();
            (name != "lo").then(|| InterfaceStatistics {
                name: name.to_owned(),
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..Default::default()
            })
        })
        .collect()
}

/// The last bytes of the termination message file; empty when there is none. The container could write anything
/// there, so only a regular file is read.
pub(super) fn termination_message(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        return String::new();
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let Ok(mut file) = file else {
        return String::new();
    };
    let Ok(status) = file.metadata() else {
        return String::new();
    };
    if !status.is_file() {
        return String::new();
    }
    let limit = MESSAGE_BYTES as u64;
    let start = status.len().saturating_sub(limit);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err()
        || file.take(limit).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_lines_are_counted_without_the_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0:    1234      10    1    2    0     0          0         0     5678      20    3    4    0     0       0          0\n";
        let interfaces = interfaces(text);
        assert_eq!(interfaces.len(), 1);
        let eth0 = interfaces.first().unwrap();
        assert_eq!(eth0.name, "eth0");
        assert_eq!((eth0.rx_bytes, eth0.rx_dropped), (1234, 2));
        assert_eq!((eth0.tx_bytes, eth0.tx_dropped), (5678, 4));
    }

    #[test]
    fn termination_message_of_a_pipe_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(termination_message(&path), "");
        let path = directory.path().join("file");
        std::fs::write(&path, "x".repeat(5000) + "end").unwrap();
        let message = termination_message(&path);
        assert_eq!(message.len(), MESSAGE_BYTES);
        assert!(message.ends_with("end"));
    }
}
