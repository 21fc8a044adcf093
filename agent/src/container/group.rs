//! A container's control group: its limits, the death of all in it, freezing, and its counters.
//!
//! Version 2 only, by plain files. The engine owns one [`Group`] for each container. Source: the kernel's
//! Documentation/admin-guide/cgroup-v2.rst.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use vmpod_agent_protocol::messages::ContainerStatistics;

use super::step::{At as _, StepError};

/// Bytes of `memory.stat` that are passed on.
const MEMORY_STAT_BYTES: usize = 16 * 1024;

/// A directory of the hierarchy.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// Makes the group; one of that name that is still there is removed first if it is empty.
    pub fn create(path: &Path) -> Result<Group, StepError> {
        let step = || format!("make control group {}", path.display());
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir(path).at(step)?;
                fs::create_dir(path).at(step)?;
            }
            other => other.at(step)?,
        }
        let directory = open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .at(step)?;
        Ok(Group {
            path: path.to_owned(),
            directory,
        })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For clone3 and BPF.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Applies limits; fields that are absent stay as they are.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), StepError> {
        for setting in settings(resources) {
            self.write(&setting)?;
        }
        Ok(())
    }

    fn write(&self, setting: &Setting) -> Result<(), StepError> {
        // Not to be created: the kernel would answer that with another error than that there is none.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(self.path.join(&setting.file))
            .and_then(|mut file| file.write_all(setting.value.as_bytes()));
        match written {
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StepError::because(
                format!("set {} to {:?}", setting.file, setting.value),
                "the guest's kernel or control group hierarchy has no such limit",
            )),
            other => other.at(|| format!("set {} to {:?}", setting.file, setting.value)),
        }
    }

    /// Kills every process of the group and of groups below it.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Asks for all processes to be frozen, or thawed.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(
            self.path.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        )
    }

    /// Whether the freezing has taken effect.
    pub fn is_frozen(&self) -> bool {
        self.keyed("cgroup.events", "frozen") == Some(1)
    }

    /// Whether any process is left in the group.
    pub fn is_populated(&self) -> bool {
        self.keyed("cgroup.events", "populated") == Some(1)
    }

    /// Processes killed by the out-of-memory killer so far.
    pub fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill").unwrap_or(0)
    }

    /// Pids in the group and in groups below it (a container may have made some).
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect_pids(&self.path, 0, &mut pids);
        pids.sort_unstable();
        pids
    }

    /// Removes the group and the groups that its processes made below it. EBUSY: processes are left.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path, 0)
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        keyed(&fs::read_to_string(self.path.join(file)).ok()?, key)
    }
}

/// Depth to which groups made by containers are followed.
const DEPTH: usize = 16;

fn subgroups(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

fn collect_pids(path: &Path, depth: usize, pids: &mut Vec<u32>) {
    let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
    if depth < DEPTH {
        for child in subgroups(path) {
            collect_pids(&child, depth + 1, pids);
        }
    }
}

fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && depth < DEPTH => {
            for child in subgroups(path) {
                remove_tree(&child, depth + 1)?;
            }
            fs::remove_dir(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The number after `key` in a file of "key number" lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: String,
    value: String,
    /// The kernel may lack the file, and then the setting is moot.
    optional: bool,
}

fn setting(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        file: file.into(),
        value: value.to_string(),
        optional: false,
    }
}

fn optional(file: &str, value: impl ToString) -> Setting {
    Setting {
        optional: true,
        ..setting(file, value)
    }
}

/// A limit in the form that control groups take: negative numbers mean none.
fn or_max(limit: i64) -> String {
    if limit < 0 {
        "max".into()
    } else {
        limit.to_string()
    }
}

fn settings(resources: &LinuxResources) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut settings);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut settings);
    }
    if let Some(pids) = resources.pids() {
        let limit = pids.limit();
        settings.push(setting(
            "pids.max",
            or_max(if limit == 0 { -1 } else { limit }),
        ));
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut settings);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        settings.push(setting(
            format!("hugetlb.{}.max", limit.page_size()),
            or_max(limit.limit()),
        ));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        // A name is a file of this very group; anything else is refused by the write, as no such file exists.
        let file = file.replace('/', "\u{0}");
        for line in value.lines() {
            settings.push(setting(file.clone(), line));
        }
    }
    settings
}

fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) {
    if let Some(limit) = memory.limit() {
        settings.push(setting("memory.max", or_max(limit)));
    }
    if let Some(reservation) = memory.reservation() {
        settings.push(setting("memory.low", or_max(reservation)));
    }
    // OCI counts memory and swap together, control groups swap alone.
    if let Some(swap) = memory.swap() {
        let value = match (swap, memory.limit()) {
            (swap, _) if swap < 0 => "max".to_owned(),
            (swap, Some(limit)) if limit >= 0 => swap.saturating_sub(limit).max(0).to_string(),
            (swap, _) => swap.to_string(),
        };
        settings.push(optional("memory.swap.max", value));
    }
}

/// cpu.weight (1..=10000) for cpu.shares (2..=262144), on a straight line, as runc and crun have it.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn cpu_settings(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.push(setting("cpu.weight", weight_of_shares(shares)));
    }
    if let Some(idle) = cpu.idle() {
        settings.push(setting("cpu.idle", idle));
    }
    // The burst may not exceed the quota: it goes first down and last up.
    if cpu.quota().is_some() || cpu.period().is_some() {
        let quota = cpu
            .quota()
            .filter(|quota| *quota > 0)
            .map_or("max".to_owned(), |quota| quota.to_string());
        let value = match cpu.period().filter(|period| *period != 0) {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        settings.push(setting("cpu.max", value));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(setting("cpu.max.burst", burst));
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.push(setting(file, list));
        }
    }
}

fn io_settings(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // 10..=1000 to 1..=10000. Advisory: a kernel without the controller ignores it.
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9_999 / 990;
        settings.push(optional("io.weight", weight));
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            settings.push(setting(
                "io.max",
                format!(
                    "{}:{} {key}={}",
                    device.major(),
                    device.minor(),
                    device.rate()
                ),
            ));
        }
    }
}

/// Counters of the group at `path`; files that are missing leave zeroes.
pub fn statistics(id: &str, path: &Path) -> ContainerStatistics {
    let read = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let number = |file: &str| read(file).trim().parse::<u64>().unwrap_or(0);
    let cpu = read("cpu.stat");
    let mut memory_stat = read("memory.stat");
    let io = read("io.stat");
    let io_sum = |key: &str| {
        io.split_whitespace()
            .filter_map(|word| {
                word.strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .fold(0_u64, u64::saturating_add)
    };
    let of = |text: &str, key: &str| keyed(text, key).unwrap_or(0);
    let statistics = ContainerStatistics {
        container_id: id.to_owned(),
        cpu_usage_us: of(&cpu, "usage_usec"),
        cpu_user_us: of(&cpu, "user_usec"),
        cpu_system_us: of(&cpu, "system_usec"),
        cpu_throttled_us: of(&cpu, "throttled_usec"),
        cpu_throttled_periods: of(&cpu, "nr_throttled"),
        cpu_periods: of(&cpu, "nr_periods"),
        memory_usage: number("memory.current"),
        memory_limit: number("memory.max"),
        memory_inactive_file: of(&memory_stat, "inactive_file"),
        memory_rss: of(&memory_stat, "anon"),
        memory_page_faults: of(&memory_stat, "pgfault"),
        memory_major_page_faults: of(&memory_stat, "pgmajfault"),
        oom_kills: of(&read("memory.events"), "oom_kill"),
        pids_current: number("pids.current"),
        pids_limit: number("pids.max"),
        io_read_bytes: io_sum("rbytes"),
        io_write_bytes: io_sum("wbytes"),
        memory_swap_usage: number("memory.swap.current"),
        ..Default::default()
    };
    if memory_stat.len() > MEMORY_STAT_BYTES {
        // Only ASCII is in there; the cut is at a line's end so that no half number is read.
        let end = memory_stat
            .get(..MEMORY_STAT_BYTES)
            .and_then(|kept| kept.rfind('\n'))
            .map_or(0, |place| place + 1);
        memory_stat.truncate(end);
    }
    ContainerStatistics {
        memory_stat,
        ..statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_that_the_kernel_does_not_have_is_left_out_or_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("group");
        let group = Group::create(&path).unwrap();
        group.write(&optional("memory.swap.max", 0)).unwrap();
        let error = group.write(&setting("memory.max", 1)).unwrap_err();
        assert!(error.to_string().contains("memory.max"), "{error}");
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }

    fn resources(json: &str) -> Vec<Setting> {
        settings(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn limits_of_a_kubernetes_container_become_files() {
        assert_eq!(
            resources(
                r#"{"memory":{"limit":134217728,"swap":134217728},
                    "cpu":{"shares":102,"quota":50000,"period":100000},
                    "pids":{"limit":-1},
                    "unified":{"memory.oom.group":"1"}}"#
            ),
            [
                setting("memory.max", "134217728"),
                optional("memory.swap.max", "0"),
                setting("cpu.weight", 4),
                setting("cpu.max", "50000 100000"),
                setting("pids.max", "max"),
                setting("memory.oom.group", "1"),
            ]
        );
    }

    #[test]
    fn limits_without_bound_are_max() {
        assert_eq!(
            resources(r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1,"period":100000}}"#),
            [
                setting("memory.max", "max"),
                optional("memory.swap.max", "max"),
                setting("cpu.max", "max 100000"),
            ]
        );
    }

    #[test]
    fn shares_at_both_ends_stay_in_the_range_of_weights() {
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn unified_name_cannot_leave_the_group() {
        let settings = resources(r#"{"unified":{"../memory.max":"1"}}"#);
        assert!(settings.iter().all(|setting| !setting.file.contains('/')));
    }
}
