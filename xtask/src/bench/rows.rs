//! The names of all rows, in the order of the table, and what DESIGN.md's targets make of them.

use super::result::{Findings, RATIO, Row};

pub const BOOT: &str = "boot: VMM process to ready agent";
pub const START_COLD: &str = "start: vmpod run, cold, to first output";
pub const START_COLD_BOOT: &str = "start: the machine's part of it, VMM process to ready agent";
pub const START_TEMPLATE: &str = "start: vmpod run, from a template, to first output";
pub const START_TEMPLATE_BOOT: &str =
    "start: the machine's part of it, VMM process to agent that answers";
pub const START_RUNC: &str = "start: runc run, to first output";
pub const START_RATIO: &str = "start: vmpod run, cold, over runc run";
pub const TEMPLATE_RATIO: &str = "start: vmpod run, from a template, over runc run";
pub const RUNC_TRUE: &str = "start: runc run of true, to its exit";
pub const EXEC: &str = "exec: vmpod exec POD true, to its exit";
/// Each under runc, then under vmpod.
pub const CRI_SANDBOX: [&str; 2] = [
    "containerd: RunPodSandbox under runc",
    "containerd: RunPodSandbox under vmpod",
];
pub const CRI_START: [&str; 2] = [
    "containerd: sandbox and container under runc, to first output",
    "containerd: sandbox and container under vmpod, to first output",
];
pub const CRI_RATIO: &str = "containerd: sandbox and container under vmpod, over runc";
pub const CRI_FIVE: [&str; 2] = [
    "containerd: 5 pods at once under runc, to the last first output",
    "containerd: 5 pods at once under vmpod, to the last first output",
];
pub const CRI_TEN: [&str; 2] = [
    "containerd: 10 pods at once under runc, to the last first output",
    "containerd: 10 pods at once under vmpod, to the last first output",
];
pub const CRI_EXEC: [&str; 2] = [
    "containerd: ExecSync of true under runc",
    "containerd: ExecSync of true under vmpod",
];
pub const CRI_MEMORY: [&str; 2] = [
    "memory: shim of a containerd pod under runc, PSS",
    "memory: shim and VMM of a containerd pod beside guest memory, PSS",
];
pub const EMPTY_DIR: [&str; 5] = [
    "files: emptyDir, sequential write",
    "files: emptyDir, sequential read",
    "files: emptyDir, create a small file",
    "files: emptyDir, stat a small file",
    "files: emptyDir, unlink a small file",
];
pub const HOST_PATH: [&str; 5] = [
    "files: hostPath, sequential write",
    "files: hostPath, sequential read",
    "files: hostPath, create a small file",
    "files: hostPath, stat a small file",
    "files: hostPath, unlink a small file",
];
pub const NETWORK: [&str; 4] = [
    "network: TCP, host to pod",
    "network: TCP, pod to host",
    "network: TCP requests of 64 bytes, one connection",
    "network: TCP requests, a connection each",
];
pub const MEMORY_HOST: &str = "memory: the pod's host processes beside guest memory, PSS";
pub const MEMORY_HOST_ANONYMOUS: &str = "memory: the anonymous part of it";
pub const MEMORY_GUEST_USED: &str = "memory: what of it is in use at run time";
pub const MEMORY_GUEST: &str = "memory: guest kernel and agent";

/// Documented figure, not measured here: instructions (in millions) from the start of Firecracker 1.17's process to its
/// guest's init, in a node of this kind.
pub const DOCUMENTED_FIRECRACKER: f64 = 104.8;

/// The same for `runc run` of `true`, process start to exit. Measured here as well, with the machine's own runc.
pub const DOCUMENTED_RUNC: f64 = 56.0;

/// What the boot may take of the reference's figure.
const BOOT_SHARE: f64 = 0.8;

/// How much more than a container a pod may take to start cold.
const COLD_OVER_RUNC: f64 = 2.5;

/// The same for containerd's sandbox and container.
const CRI_OVER_RUNC: f64 = 2.0;

const HOST_MEMORY_MIB: f64 = 10.0;
const GUEST_MEMORY_MIB: f64 = 24.0;

/// An upper bound on a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub limit: f64,
    /// Whether the limit itself is too much.
    pub below: bool,
}

impl Target {
    pub fn is_met(self, figure: f64) -> bool {
        figure < self.limit || (!self.below && figure <= self.limit)
    }
}

/// The target of a row, where it has one.
pub fn target(name: &str) -> Option<Target> {
    let at_most = |limit| {
        Some(Target {
            limit,
            below: false,
        })
    };
    let below = |limit| Some(Target { limit, below: true });
    match name {
        BOOT => at_most(BOOT_SHARE * DOCUMENTED_FIRECRACKER),
        START_RATIO => at_most(COLD_OVER_RUNC),
        // Cheaper than a container.
        TEMPLATE_RATIO => below(1.0),
        CRI_RATIO => at_most(CRI_OVER_RUNC),
        MEMORY_HOST => below(HOST_MEMORY_MIB),
        MEMORY_GUEST => below(GUEST_MEMORY_MIB),
        _ => None,
    }
}

/// Rows that follow from others of the same run, each after the row that it is made of.
pub fn derive(findings: &mut Findings) {
    let ratio = |over: &str, under: &str, name: &str| {
        let (over, under) = (findings.row(over)?, findings.row(under)?);
        Some(Row::new(name, RATIO, vec![over.median() / under.median()]))
    };
    let ratios = [
        ratio(START_COLD, START_RUNC, START_RATIO),
        ratio(START_TEMPLATE, START_RUNC, TEMPLATE_RATIO),
        ratio(CRI_START[1], CRI_START[0], CRI_RATIO),
    ];
    findings.rows.extend(ratios.into_iter().flatten());
    let place = |row: &Row| ORDER.iter().position(|group| group.contains(&&*row.name));
    findings
        .rows
        .sort_by_key(|row| place(row).unwrap_or(usize::MAX));
}

/// Rows in the order of the table; within a group they stay as they were found.
const ORDER: [&[&str]; 20] = [
    &[BOOT],
    &[START_COLD, START_COLD_BOOT],
    &[START_TEMPLATE, START_TEMPLATE_BOOT],
    &[START_RUNC],
    &[START_RATIO],
    &[TEMPLATE_RATIO],
    &[RUNC_TRUE],
    &[EXEC],
    &CRI_SANDBOX,
    &CRI_START,
    &[CRI_RATIO],
    &CRI_FIVE,
    &CRI_TEN,
    &CRI_EXEC,
    &EMPTY_DIR,
    &HOST_PATH,
    &NETWORK,
    &[MEMORY_HOST, MEMORY_HOST_ANONYMOUS],
    &[MEMORY_GUEST, MEMORY_GUEST_USED],
    &CRI_MEMORY,
];

#[cfg(test)]
mod tests {
    use super::super::result::MEGA_INSTRUCTIONS;
    use super::*;

    #[test]
    fn target_of_a_bound_is_met_at_the_bound_and_of_a_limit_below_it() {
        let boot = target(BOOT).unwrap();
        assert!(boot.is_met(boot.limit) && !boot.is_met(boot.limit + 0.1));
        let memory = target(MEMORY_HOST).unwrap();
        assert!(memory.is_met(9.9) && !memory.is_met(10.0));
        assert_eq!(target(START_COLD), None);
    }

    #[test]
    fn derive_with_both_starts_puts_their_ratio_after_them() {
        let mut findings = Findings::new(0, String::new());
        for (name, value) in [(START_RUNC, 50.0), (START_COLD, 125.0), (BOOT, 80.0)] {
            findings
                .rows
                .push(Row::new(name, MEGA_INSTRUCTIONS, vec![value]));
        }
        derive(&mut findings);
        let names: Vec<&str> = findings.rows.iter().map(|row| &*row.name).collect();
        assert_eq!(names, [BOOT, START_COLD, START_RUNC, START_RATIO]);
        assert_eq!(findings.row(START_RATIO).unwrap().median(), 2.5);
    }

    #[test]
    fn derive_without_runc_makes_no_ratio() {
        let mut findings = Findings::new(0, String::new());
        findings
            .rows
            .push(Row::new(START_COLD, MEGA_INSTRUCTIONS, vec![1.0]));
        derive(&mut findings);
        assert_eq!(findings.row(START_RATIO), None);
    }
}
