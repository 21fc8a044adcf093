//! `vmpod attach`: a container's output from now on, and its standard input.

use std::io::Write;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::stream::{StdioStream, StreamHeader};
use vmpod_shim::pod::durable;
use vmpod_shim::pod::hybrid_vsock::open_stream;
use vmpod_shim::pod::process;
use vmpod_shim::pod::roots::{PodPaths, Roots};
use vmpod_shim::pod::status::{ContainerState, PodStatus};

use crate::cli::AttachArguments;
use crate::exec::copy_in;
use crate::follow::{Follower, Style};
use crate::guest::{self, CONNECT_LIMIT};
use crate::terminal::{self, RawTerminal};

/// How often the log is looked at: what was typed shall come back at once.
const INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

/// What is attached to.
#[derive(Debug)]
pub struct Attachment {
    /// Name of the container.
    pub name: String,
    /// Id, in the agent, of its present attempt.
    pub container_id: String,
    /// Standard input is fed.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// What was written before is shown as well.
    pub from_start: bool,
}

/// `vmpod attach`
pub fn attach(roots: &Roots, arguments: &AttachArguments) -> anyhow::Result<u8> {
    let pod = guest::running(roots, &arguments.pod)?;
    let (name, container_id) = pod.running_container(arguments.container.as_deref())?;
    let Some(record) = pod.record.every_container().find(|c| c.name == name) else {
        bail!("container {name:?} is not on record");
    };
    if !record.stdin && !arguments.no_stdin {
        writeln!(
            std::io::stderr(),
            "vmpod: container {name:?} has no standard input (`stdin: true` in the manifest gives it one); its output follows"
        )?;
    }
    let attachment = Attachment {
        container_id,
        stdin: record.stdin && !arguments.no_stdin,
        tty: record.tty,
        from_start: false,
        name,
    };
    follow(
        &pod.pod.paths,
        pod.container(Some(&attachment.name))?.attempt,
        attachment,
    )
}

/// Follows a container to the end of attempt `attempt`, and returns its exit code.
pub fn follow(paths: &PodPaths, attempt: u32, attachment: Attachment) -> anyhow::Result<u8> {
    let Attachment {
        name,
        container_id,
        stdin,
        tty,
        from_start,
    } = attachment;
    let mut follower = Follower::new(paths, std::slice::from_ref(&name), Style::default());
    follower.start_at(&name, attempt);
    if !from_start {
        follower.take()?;
    }
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
            match open_stream(&socket, &header, CONNECT_LIMIT).await {
                Ok(stream) => drop(tokio::spawn(copy_in(stream))),
                // It has ended already: its output and exit code are wanted all the same.
                Err(_) if from_start => {}
                Err(error) => return Err(error.into()),
            }
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
                .and_then(|s| s.every_container().find(|c| c.name == name));
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
