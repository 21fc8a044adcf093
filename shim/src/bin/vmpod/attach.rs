//! `vmpod attach`: a container's output from now on, and its standard input.

use std::io::Write;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::stream::{StdioStream, StreamHeader};
use vmpod_shim::pod::durable;
use vmpod_shim::pod::hybrid_vsock::open_stream;
use vmpod_shim::pod::process;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::{ContainerState, PodStatus};

use crate::cli::AttachArguments;
use crate::exec::copy_in;
use crate::follow::{Follower, Style};
use crate::guest::{self, CONNECT_LIMIT};
use crate::terminal::{self, RawTerminal};

/// How often the log is looked at: what was typed shall come back at once.
const INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

/// `vmpod attach`
pub fn attach(roots: &Roots, arguments: &AttachArguments) -> anyhow::Result<u8> {
    let pod = guest::running(roots, &arguments.pod)?;
    let (name, container_id) = pod.running_container(arguments.container.as_deref())?;
    let Some(record) = pod
        .record
        .init_containers
        .iter()
        .chain(&pod.record.containers)
        .find(|container| container.name == name)
    else {
        bail!("container {name:?} is not on record");
    };
    let (stdin, tty) = (record.stdin && !arguments.no_stdin, record.tty);
    if !record.stdin && !arguments.no_stdin {
        writeln!(
            std::io::stderr(),
            "vmpod: container {name:?} has no standard input (`stdin: true` in the manifest gives it one); its output follows"
        )?;
    }
    let paths = &pod.pod.paths;
    let mut follower = Follower::new(paths, std::slice::from_ref(&name), Style::default());
    follower.start_at(&name, pod.container(Some(&name))?.attempt);
    // What was written before is not shown.
    follower.take()?;
    let socket = paths.vsock();
    let runtime = guest::runtime()?;
    let result = runtime.block_on(async {
        let raw = if stdin && tty {
            RawTerminal::enter()?
        } else {
            None
        };
        if stdin {
            let header = StreamHeader::Stdio {
                container: container_id.clone(),
                exec: String::new(),
                stream: StdioStream::Stdin,
            };
            tokio::spawn(copy_in(open_stream(&socket, &header, CONNECT_LIMIT).await?));
        }
        let agent = guest::agent(paths).await?;
        let mut resized = signal(SignalKind::window_change())?;
        let mut first = true;
        loop {
            if first && tty {
                first = false;
                let (rows, columns) = terminal::size();
                let _ = agent
                    .resize_terminal(&m::ResizeTerminalRequest {
                        container_id: container_id.clone(),
                        rows,
                        columns,
                        ..Default::default()
                    })
                    .await;
            }
            let attended = process::is_locked(&paths.lock());
            let status = durable::read_json::<PodStatus>(&paths.status()).ok();
            let container = status
                .as_ref()
                .and_then(|s| s.all_containers().find(|c| c.name == name));
            let over = !attended
                || container.is_none_or(|c| {
                    c.state != ContainerState::Running
                        || format!("{}.{}", c.name, c.attempt) != container_id
                });
            let more = follower.show()?;
            if over && !more {
                drop(raw);
                let code = container.and_then(|c| {
                    let exit = if c.state == ContainerState::Terminated {
                        c.exit.as_ref()
                    } else {
                        c.last_exit.as_ref().or(c.exit.as_ref())
                    };
                    exit.map(|exit| exit.code)
                });
                return Ok(code.unwrap_or(0));
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = resized.recv() => first = true,
            }
        }
    });
    runtime.shutdown_background();
    result
}
