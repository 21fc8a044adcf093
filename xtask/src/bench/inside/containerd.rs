//! Pods of a real containerd under runc and under vmpod, in one run of the test library's own client of the CRI.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::ground::Ground;
use super::nearby;
use crate::bench::result::{MEBIBYTES, MEGA_INSTRUCTIONS, Row};
use crate::bench::rows::{
    CRI_EXEC, CRI_FIVE, CRI_MEMORY, CRI_RATIO, CRI_SANDBOX, CRI_START, CRI_TEN,
};
use crate::process;

/// What containerd executes beside shims.
const PROGRAMS: [&str; 10] = [
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/ctr",
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/lib/cni/portmap",
    "/usr/lib/cni/loopback",
    "/usr/sbin/iptables",
    "/usr/sbin/ip6tables",
    "/usr/sbin/xtables-nft-multi",
];

/// What the program calls a figure, and the rows of both runtimes.
const FIGURES: [(&str, [&str; 2]); 6] = [
    ("sandbox", CRI_SANDBOX),
    ("start", CRI_START),
    ("start 5", CRI_FIVE),
    ("start 10", CRI_TEN),
    ("exec", CRI_EXEC),
    ("memory", CRI_MEMORY),
];

/// Names of the rows.
pub fn rows() -> Vec<&'static str> {
    let figures = FIGURES.iter().flat_map(|(_, rows)| *rows);
    figures.chain([CRI_RATIO]).collect()
}

/// Runs the program and reads what it prints.
pub fn measure(ground: &Ground) -> Result<Vec<Row>> {
    let programs = PROGRAMS.map(Into::into);
    nearby::bring(&programs)?;
    let program = ground.dir.join("containerd-bench");
    std::fs::copy(&ground.plan.containerd, &program).context("copying the program")?;
    let mut command = Command::new(&program);
    command
        .arg(ground.plan.runs.to_string())
        .env("PATH", nearby::PATH)
        .env("VMPOD_BIN", ground.plan.bundle.join("bin/vmpod"))
        .env("VMPOD_IMAGES", &ground.plan.image)
        .env("VMPOD_TEST_IPV4_ONLY", "1")
        // A disk would answer in real time.
        .env("VMPOD_TEST_CONTAINERD_ROOT", ground.dir.join("containerd"))
        .stdin(Stdio::null());
    let output = process::output(&mut command).context("measuring pods of containerd")?;
    Ok(read(&output))
}

/// The rows in what the program printed.
fn read(output: &str) -> Vec<Row> {
    let mut found = Vec::new();
    for (figure, names) in FIGURES {
        for (handler, name) in ["runc", "vmpod"].into_iter().zip(names) {
            let (label, unit, scale) = if figure == "memory" {
                (format!("{figure} {handler} KiB"), MEBIBYTES, 1024.0)
            } else {
                (format!("{figure} {handler}"), MEGA_INSTRUCTIONS, 1e6)
            };
            let samples: Vec<f64> = output
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .filter(|(name, _)| *name == label)
                .filter_map(|(_, value)| value.parse::<f64>().ok())
                .map(|value| value / scale)
                .collect();
            found.push(Row::new(name, unit, samples));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_apart_by_their_whole_names() {
        let rows = read(
            "start runc\t2000000\nstart 5 runc\t5000000\nstart runc\t4000000\nmemory vmpod KiB\t2048\n",
        );
        let of = |name: &str| {
            let row = rows.iter().find(|row| row.name == name).unwrap();
            row.samples.clone()
        };
        assert_eq!(of(CRI_START[0]), [2.0, 4.0]);
        assert_eq!(of(CRI_FIVE[0]), [5.0]);
        assert_eq!(of(CRI_MEMORY[1]), [2.0]);
        assert!(of(CRI_EXEC[1]).is_empty());
    }
}
