//! What an idle pod costs beside the memory that its containers use: the host's processes without the guest's memory, and
//! the guest's kernel and agent.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use super::ground::Ground;
use super::pod::Pod;
use super::starts::idle;
use crate::bench::result::{MEBIBYTES, Row};
use crate::bench::rows;

const KIB: f64 = 1024.0;

pub fn measure(ground: &Ground) -> Result<Vec<Row>> {
    let pod = Pod::start(ground, "bench-memory", &idle())?;
    let supervisor = pod.number("/vmpod/supervisorPid")?;
    let machine_kib = pod.number("/vmpod/machine/memoryMib")? * 1024;
    // What the guest has freed is on its way back to the host for a moment.
    std::thread::sleep(std::time::Duration::from_secs(5));

    let mut all = Usage::default();
    let processes = descendants(&parents()?, supervisor);
    for process in &processes {
        let path = format!("/proc/{process}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        all.add(&usage(&text));
    }
    if all.guest_kib != machine_kib {
        bail!(
            "the guest's memory was not found in the VMM's mappings: {} KiB instead of {machine_kib} in processes \
             {processes:?}",
            all.guest_kib
        );
    }
    let info = pod.exec(&["cat", "/proc/meminfo"])?;
    let unused = kib_of(&info, "MemAvailable").context("/proc/meminfo has no MemAvailable")?;
    let total = kib_of(&info, "MemTotal").context("/proc/meminfo has no MemTotal")?;
    let row = |name, kib: u64| Row::new(name, MEBIBYTES, vec![kib as f64 / KIB]);
    Ok(vec![
        row(rows::MEMORY_HOST, all.pss_kib),
        row(rows::MEMORY_HOST_ANONYMOUS, all.anonymous_kib),
        // With what the kernel keeps from the start, its image and page descriptors. The agent lies beside the guest's memory.
        row(
            rows::MEMORY_GUEST,
            machine_kib.saturating_sub(unused) + all.initramfs_kib,
        ),
        row(
            rows::MEMORY_GUEST_USED,
            total.saturating_sub(unused) + all.initramfs_kib,
        ),
    ])
}

/// Each process with its parent.
fn parents() -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let name = entry.context("listing /proc")?.file_name();
        let Ok(pid) = name.to_string_lossy().parse() else {
            continue;
        };
        // A process that has gone since is nobody's child.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = parent_of(&stat) {
            found.push((pid, parent));
        }
    }
    Ok(found)
}

/// The parent in `/proc/PID/stat` (proc(5)); the program's name before it may hold anything.
fn parent_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// `first` and everything below it.
fn descendants(parents: &[(u64, u64)], first: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::from([first]);
    loop {
        let before = found.len();
        for (pid, parent) in parents {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Memory of processes, in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    /// Proportional share of everything but guest memory.
    pss_kib: u64,
    /// Anonymous part of that.
    anonymous_kib: u64,
    /// Size of the mappings of guest memory.
    guest_kib: u64,
    /// What is mapped of the initramfs, which the guest uses where it lies.
    initramfs_kib: u64,
}

impl Usage {
    fn add(&mut self, other: &Self) {
        self.pss_kib += other.pss_kib;
        self.anonymous_kib += other.anonymous_kib;
        self.guest_kib += other.guest_kib;
        self.initramfs_kib += other.initramfs_kib;
    }
}

/// Sums up `/proc/PID/smaps`. Guest memory is known by being kept out of core dumps (flag `dd`), which the VMM asks for
/// and which the kernel's own special mappings, whose names are in brackets, have as well.
fn usage(smaps: &str) -> Usage {
    let mut sum = Usage::default();
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        match first.strip_suffix(':') {
            None => {
                // A new mapping: address, permissions, offset, device, inode, path.
                let path = words.nth(4).unwrap_or_default();
                mapping = Mapping {
                    special: path.starts_with('['),
                    initramfs: path.contains("/initramfs"),
                    ..Mapping::default()
                };
            }
            Some("VmFlags") => {
                // The last line of a mapping.
                if mapping.initramfs {
                    sum.initramfs_kib += mapping.resident;
                } else if !mapping.special && words.any(|flag| flag == "dd") {
                    sum.guest_kib += mapping.size;
                } else {
                    sum.pss_kib += mapping.pss;
                    sum.anonymous_kib += mapping.anonymous;
                }
            }
            Some(name) => {
                let value = words.next().and_then(|word| word.parse().ok());
                match (name, value) {
                    ("Size", Some(value)) => mapping.size = value,
                    ("Rss", Some(value)) => mapping.resident = value,
                    ("Pss", Some(value)) => mapping.pss = value,
                    ("Anonymous", Some(value)) => mapping.anonymous = value,
                    _ => {}
                }
            }
        }
    }
    sum
}

#[derive(Debug, Default)]
struct Mapping {
    special: bool,
    initramfs: bool,
    size: u64,
    resident: u64,
    pss: u64,
    anonymous: u64,
}

/// The value of `name` in `/proc/meminfo`, in KiB.
fn kib_of(meminfo: &str, name: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.split_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 
Size:             131072 kB
Pss:               40000 kB
Anonymous:         40000 kB
VmFlags: rd wr mr mw me ac dd nh
7f000a000000-7f000a600000 r--s 00000000 00:1a 9                          /run/x/initramfs
Size:               6144 kB
Rss:                4096 kB
Pss:                2048 kB
Anonymous:             0 kB
VmFlags: rd sh mr me ms dd
7f0010000000-7f0010001000 r--p 00000000 fe:00 12                         /usr/bin/x
Size:                  4 kB
Pss:                   2 kB
Pss_Dirty:             9 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
7f0020000000-7f0020009000 rw-p 00000000 00:00 0                          [heap]
Size:                 36 kB
Pss:                  20 kB
Anonymous:            20 kB
VmFlags: rd wr mr mw me ac
7ffc00000000-7ffc00004000 r--p 00000000 00:00 0                          [vvar]
Size:                 16 kB
Pss:                   0 kB
Anonymous:             0 kB
VmFlags: rd mr pf io de dd
";

    #[test]
    fn usage_leaves_guest_memory_out_and_special_mappings_in() {
        let expected = Usage {
            pss_kib: 22,
            anonymous_kib: 20,
            guest_kib: 131_072,
            initramfs_kib: 4096,
        };
        assert_eq!(usage(SMAPS), expected);
    }

    #[test]
    fn parent_of_a_program_with_brackets_in_its_name_is_found() {
        assert_eq!(parent_of("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of(""), None);
    }

    #[test]
    fn descendants_in_any_order_are_found() {
        let parents = [(5, 4), (4, 3), (3, 1), (9, 1)];
        assert_eq!(descendants(&parents, 3), BTreeSet::from([3, 4, 5]));
    }

    #[test]
    fn kib_of_a_name_that_begins_another_is_its_own() {
        let info = "MemFreeX: 1 kB\nMemFree:   22 kB\n";
        assert_eq!(kib_of(info, "MemFree"), Some(22));
        assert_eq!(kib_of(info, "Mem"), None);
    }
}
