//! `vmpod port-forward`: connections to the host's loopback become connections to the pod's own localhost.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use vmpod_agent_protocol::stream::StreamHeader;
use vmpod_shim::pod::hybrid_vsock::open_stream;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::process;
use vmpod_shim::pod::roots::Roots;

use crate::cli::ForwardArguments;
use crate::guest::{self, CONNECT_LIMIT};

/// `vmpod port-forward`
pub fn forward(roots: &Roots, arguments: &ForwardArguments) -> anyhow::Result<u8> {
    let pod = guest::running(roots, &arguments.pod)?;
    let ports = arguments
        .ports
        .iter()
        .map(|text| ports(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let socket = pod.pod.paths.vsock();
    let lock = pod.pod.paths.lock();
    guest::runtime()?.block_on(async {
        // Said before anything is promised: the agent is there.
        guest::agent(&pod.pod.paths).await?;
        for (local, remote) in ports {
            let listener = listen(arguments.address, local, remote).await?;
            let socket = socket.clone();
            tokio::spawn(async move {
                while let Ok((connection, from)) = listener.accept().await {
                    let socket = socket.clone();
                    tokio::spawn(async move {
                        serve(connection, from, &socket, remote).await;
                    });
                }
            });
        }
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        loop {
            tokio::select! {
                _ = interrupted.recv() => return Ok(0),
                _ = terminated.recv() => return Ok(0),
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {
                    if !process::is_locked(&lock) {
                        bail!("pod {:?} has ended", pod.status.name);
                    }
                }
            }
        }
    })
}

async fn listen(address: IpAddr, local: u16, remote: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((address, local))
        .await
        .with_context(|| format!("cannot listen on {address} port {local}"))?;
    writeln!(
        std::io::stdout(),
        "Forwarding from {} -> {remote}",
        listener.local_addr()?
    )?;
    std::io::stdout().flush()?;
    Ok(listener)
}

async fn serve(mut connection: TcpStream, from: SocketAddr, socket: &Path, port: u16) {
    let header = StreamHeader::Connect { port };
    match open_stream(socket, &header, CONNECT_LIMIT).await {
        Ok(mut stream) => {
            let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
        }
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "vmpod: connection from {from} to port {port} of the pod: {}",
                chain(&error)
            );
        }
    }
}

/// Local and remote port of `PORT`, `LOCAL:PORT` or `:PORT`.
fn ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let number = |part: &str| {
        part.parse::<u16>().with_context(|| {
            format!("{text:?}: expected PORT or LOCAL:PORT, ports from 1 to 65535")
        })
    };
    let (local, remote) = match text.split_once(':') {
        None => (number(text)?, number(text)?),
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
    };
    if remote == 0 {
        bail!("{text:?}: the pod's port cannot be 0");
    }
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_of_each_form_are_read() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports(":80").unwrap(), (0, 80));
        for text in ["0", "x", "80:", "70000", "1:0"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
