//! TCP between the node and a server in a pod: `load serve` there, `load connect` here.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::ground::{Ground, figure};
use super::pod::Pod;
use crate::bench::result::{RATE, Row, THROUGHPUT};
use crate::bench::rows::NETWORK;
use crate::process;

const KINDS: [&str; 4] = ["to-server", "from-server", "requests", "connections"];

pub fn measure(ground: &Ground) -> Result<Vec<Row>> {
    let dir = ground.dir.display();
    // The readiness of the server is its first output, which `run -d` does not wait for: the connection is tried until
    // it is there.
    let pod = Pod::start(
        ground,
        "bench-network",
        &format!(
            "  containers:
  - name: c
    image: busybox
    command: [/load/load, serve, '8000']
    resources: {{limits: {{memory: 256Mi}}}}
    volumeMounts: [{{name: load, mountPath: /load}}]
  volumes:
  - {{name: load, hostPath: {{path: {dir}/load}}}}"
        ),
    )?;
    let found = pod.inspect()?;
    let address = found
        .pointer("/status/podIP")
        .and_then(Value::as_str)
        .context("`vmpod inspect` does not say the pod's address")?;
    let address = format!("{address}:8000");
    await_server(&address)?;
    let mut rows: Vec<Row> = NETWORK
        .iter()
        .zip(KINDS)
        .map(|(name, kind)| {
            let bulk = kind.ends_with("server");
            let unit = if bulk { THROUGHPUT } else { RATE };
            Row::new(name, unit, Vec::new())
        })
        .collect();
    for _ in 0..ground.plan.runs.min(3) {
        let output = process::output(Command::new(ground.load()).args(["connect", &address]))?;
        for (row, kind) in rows.iter_mut().zip(KINDS) {
            let (nanoseconds, count) = figure(&output, kind)?;
            let each_second = count / (nanoseconds / 1e9);
            row.samples.push(if row.unit == THROUGHPUT {
                each_second / 1e6
            } else {
                each_second
            });
        }
    }
    Ok(rows)
}

fn await_server(address: &str) -> Result<()> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match std::net::TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if std::time::Instant::now() > end => {
                return Err(error)
                    .with_context(|| format!("connecting to the pod's server at {address}"));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
}
