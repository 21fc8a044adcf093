//! `vmpod exec`: a command in a container, with its streams and, if wanted, a terminal.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::stream::{StdioStream, StreamHeader};
use vmpod_shim::images::resolve_user;
use vmpod_shim::pod::agent::{Agent, AgentError};
use vmpod_shim::pod::hybrid_vsock::open_stream;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::record::ContainerRecord;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status;

use crate::cli::ExecArguments;
use crate::guest::{self, CONNECT_LIMIT};
use crate::terminal::{self, RawTerminal};

/// How long output may stay open after the command's end: a process that it left behind can hold it.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Bytes copied at a time.
const CHUNK_BYTES: usize = 32 * 1024;

/// `vmpod exec`
pub fn exec(roots: &Roots, arguments: &ExecArguments) -> anyhow::Result<u8> {
    let pod = guest::running(roots, &arguments.pod)?;
    let (name, container_id) = pod.running_container(arguments.container.as_deref())?;
    let record = pod
        .record
        .every_container()
        .find(|container| container.name == name)
        .with_context(|| format!("container {name:?} is not on record"))?;
    let process = process(record, arguments)?;
    let socket = pod.pod.paths.vsock();
    let runtime = guest::runtime()?;
    let result = runtime.block_on(run(
        &socket,
        m::ProcessRef {
            container_id,
            exec_id: exec_id(),
            ..Default::default()
        },
        &process,
        arguments,
    ));
    // A read of standard input that nobody answers would hold the runtime's end up.
    runtime.shutdown_background();
    result
}

/// The OCI `process` object: what is left out is taken from the container's own.
fn process(record: &ContainerRecord, arguments: &ExecArguments) -> anyhow::Result<Value> {
    let own = record.oci_spec.get("process");
    let mut process = json!({
        "args": arguments.command,
        "terminal": arguments.tty,
    });
    if let Some(directory) = &arguments.workdir {
        process["cwd"] = json!(directory);
    }
    let mut environment: Vec<Value> = own
        .and_then(|own| own.get("env"))
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if arguments.tty {
        let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        environment.push(json!(format!("TERM={terminal}")));
    }
    for setting in &arguments.env {
        if !setting.contains('=') {
            bail!("--env {setting:?}: expected NAME=VALUE");
        }
        environment.push(json!(setting));
    }
    // The last setting of a name wins.
    let mut seen = std::collections::BTreeSet::new();
    environment.reverse();
    environment.retain(|setting| {
        let name = setting.as_str().and_then(|s| s.split('=').next());
        seen.insert(name.map(str::to_owned))
    });
    environment.reverse();
    process["env"] = Value::Array(environment);
    if let Some(user) = &arguments.user {
        let user = resolve_user(&record.layers, user)?;
        process["user"] = json!({
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": user.additional_gids,
        });
    }
    Ok(process)
}

/// An id that no other exec of the container has.
fn exec_id() -> String {
    let mut bytes = [0_u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    let random: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("exec-{random}")
}

async fn run(
    socket: &Path,
    process: m::ProcessRef,
    oci_process: &Value,
    arguments: &ExecArguments,
) -> anyhow::Result<u8> {
    let agent = guest_agent(socket).await?;
    let (rows, columns) = terminal::size();
    let created = agent
        .create_exec(&m::CreateExecRequest {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone(),
            oci_process: serde_json::to_vec(oci_process)?,
            stdio: Some(m::Stdio {
                stdin: arguments.interactive,
                stdout: true,
                stderr: !arguments.tty,
                terminal: arguments.tty,
                rows,
                columns,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
        .await;
    if let Err(error) = created {
        return refused(&error);
    }
    let open = |stream| {
        let header = StreamHeader::Stdio {
            container: process.container_id.clone(),
            exec: process.exec_id.clone(),
            stream,
        };
        async move { open_stream(socket, &header, CONNECT_LIMIT).await }
    };
    let stdout = open(StdioStream::Stdout).await?;
    let stderr = if arguments.tty {
        None
    } else {
        Some(open(StdioStream::Stderr).await?)
    };
    let stdin = if arguments.interactive {
        Some(open(StdioStream::Stdin).await?)
    } else {
        None
    };
    // Listened for before the command runs, so that none is lost.
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let raw = if arguments.tty && arguments.interactive {
        RawTerminal::enter()?
    } else {
        None
    };
    if let Err(error) = agent.start_exec(&process).await {
        drop(raw);
        return refused(&error);
    }
    let outputs = [
        Some(tokio::spawn(copy_out(stdout, std::io::stdout()))),
        stderr.map(|stream| tokio::spawn(copy_out(stream, std::io::stderr()))),
    ];
    if let Some(stream) = stdin {
        tokio::spawn(copy_in(stream));
    }
    let waiting = agent.wait_process(&process);
    tokio::pin!(waiting);
    let exit = loop {
        tokio::select! {
            exit = &mut waiting => break exit,
            _ = next(&mut resized) => resize(&agent, &process).await,
            _ = next(&mut interrupted) => forward(&agent, &process, 2).await,
            _ = next(&mut terminated) => forward(&agent, &process, 15).await,
        }
    };
    for output in outputs.into_iter().flatten() {
        drain(output).await;
    }
    drop(raw);
    let exit = status::exit(&exit?);
    if exit.oom_killed {
        writeln!(
            std::io::stderr(),
            "vmpod: the command was killed because its container ran out of memory"
        )?;
    } else if exit.code != 0 && !exit.message.is_empty() {
        writeln!(std::io::stderr(), "vmpod: {}", exit.message)?;
    }
    Ok(exit.code)
}

/// Says why a command did not start, with the status that shells give such a command.
fn refused(error: &AgentError) -> anyhow::Result<u8> {
    let text = error.to_string();
    let code = if text.contains("not found") || text.contains("No such file") {
        127
    } else if text.to_lowercase().contains("permission denied") {
        126
    } else {
        crate::OWN_ERROR
    };
    writeln!(std::io::stderr(), "vmpod: {}", chain(error))?;
    Ok(code)
}

async fn guest_agent(socket: &Path) -> anyhow::Result<Agent> {
    Ok(Agent::connect(socket, CONNECT_LIMIT).await?.0)
}

async fn next(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn resize(agent: &Agent, process: &m::ProcessRef) {
    let (rows, columns) = terminal::size();
    let _ = agent
        .resize_terminal(&m::ResizeTerminalRequest {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone(),
            rows,
            columns,
            ..Default::default()
        })
        .await;
}

async fn forward(agent: &Agent, process: &m::ProcessRef, number: u32) {
    let _ = agent
        .signal_process(&m::SignalRequest {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone(),
            signal: number,
            ..Default::default()
        })
        .await;
}

async fn drain(mut task: JoinHandle<()>) {
    if timeout(DRAIN_LIMIT, &mut task).await.is_err() {
        task.abort();
    }
}

/// Copies a stream of the guest to `out` until it ends or nobody reads any more.
pub async fn copy_out(mut stream: UnixStream, mut out: impl Write) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length) = stream.read(&mut chunk).await {
        if length == 0 || out.write_all(&chunk[..length]).is_err() || out.flush().is_err() {
            return;
        }
    }
}

/// Copies standard input to a stream of the guest, and its end. Standard input is read by a thread of its own: a read of a
/// terminal cannot be taken back.
pub async fn copy_in(mut stream: UnixStream) {
    let (sender, mut chunks) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length) = std::io::stdin().lock().read(&mut chunk) {
            if length == 0 || sender.blocking_send(chunk[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
    }
    if stream.shutdown().await.is_err() {
        return;
    }
    // Closing the connection at once could overtake the bytes: it stays until the process is gone.
    let _ = stream.read(&mut [0]).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn environment_of_exec_adds_to_the_containers_own() {
        let record: ContainerRecord = serde_json::from_value(json!({
            "name": "c", "image": "i", "image_digest": "", "layers": [],
            "oci_spec": {"process": {"env": ["PATH=/bin", "A=1"]}},
            "sidecar": false, "tty": false, "stdin": false, "stdin_once": false,
            "termination_message_path": "", "message_from_logs": false, "stop_signal": 0,
        }))
        .unwrap();
        let Command::Exec(arguments) =
            Cli::parse_from(["vmpod", "exec", "-e", "A=2", "p", "env"]).command
        else {
            panic!("another verb");
        };
        let process = process(&record, &arguments).unwrap();
        assert_eq!(process["env"], json!(["PATH=/bin", "A=2"]));
        assert_eq!(process["args"], json!(["env"]));
        assert!(process.get("cwd").is_none());
    }
}
