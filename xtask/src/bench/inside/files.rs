//! Files on a volume, from inside a container: `load files` in a pod, timed by the guest's clock, which counts the same
//! instructions as the node's.

use anyhow::Result;

use super::ground::{Ground, figure};
use super::pod::Pod;
use crate::bench::result::{KILO_INSTRUCTIONS, Row, THROUGHPUT};

/// Figures of the load program, in the order of the rows.
const KINDS: [&str; 5] = ["write", "read", "create", "stat", "unlink"];

/// Measures the volume `volume` (`empty` or `host`) into rows of these names: write, read, create, stat, unlink.
pub fn measure(ground: &Ground, volume: &str, names: [&'static str; 5]) -> Result<Vec<Row>> {
    let dir = ground.dir.display();
    let pod = Pod::start(
        ground,
        "bench-files",
        &format!(
            "  containers:
  - name: c
    image: busybox
    command: [sleep, '100000']
    resources: {{limits: {{memory: 256Mi}}}}
    volumeMounts:
    - {{name: load, mountPath: /load}}
    - {{name: empty, mountPath: /empty}}
    - {{name: host, mountPath: /host}}
  volumes:
  - {{name: load, hostPath: {{path: {dir}/load}}}}
  - {{name: host, hostPath: {{path: {dir}/host}}}}
  - {{name: empty, emptyDir: {{}}}}"
        ),
    )?;
    let mut found: Vec<Row> = names
        .iter()
        .zip(KINDS)
        .map(|(name, kind)| {
            let bulk = matches!(kind, "write" | "read");
            let unit = if bulk { THROUGHPUT } else { KILO_INSTRUCTIONS };
            Row::new(name, unit, Vec::new())
        })
        .collect();
    // Each is the mean of many operations already.
    for _ in 0..ground.plan.runs.min(3) {
        let output = pod.exec(&["/load/load", "files", &format!("/{volume}")])?;
        for (row, kind) in found.iter_mut().zip(KINDS) {
            let (nanoseconds, count) = figure(&output, kind)?;
            row.samples.push(if row.unit == THROUGHPUT {
                count / 1e6 / (nanoseconds / 1e9)
            } else {
                nanoseconds / count / 1e3
            });
        }
    }
    Ok(found)
}
