//! The two listening sockets, and the connection that tells the host that they listen.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use vmpod_agent_protocol::{AGENT_PORT, READY_PORT, STREAM_PORT};

use super::BootError;
use crate::clock;

/// Connections that the kernel queues before the agent accepts them.
const BACKLOG: libc::c_int = 128;

/// The listening socket of the `Agent` service, by its family.
#[derive(Debug)]
pub enum ServiceSocket {
    /// In a guest.
    Vsock(OwnedFd),
    /// On a development machine.
    Unix(OwnedFd),
}

/// What the agent serves on.
#[derive(Debug)]
pub struct Listeners {
    /// The `Agent` service.
    pub service: ServiceSocket,
    /// Byte streams.
    pub streams: OwnedFd,
    /// The connection that said "ready", kept open until the host has called; closing it at once could cancel it.
    pub ready: Option<OwnedFd>,
    /// Monotonic microseconds at which both listened.
    pub ready_at_us: u64,
}

fn vsock_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers; its result is checked before it is owned.
    let fd = unsafe {
        libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const VSOCK_ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_vm>() as _;

fn listen_on(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` is a sockaddr_vm of the given size and outlives the call.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            VSOCK_ADDRESS_BYTES,
        )
    };
    // SAFETY: listen(2) takes no pointers.
    if bound < 0 || unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Listens on both vsock ports and starts the connection to the host's [`READY_PORT`] without waiting for its answer.
pub fn listen_vsock() -> Result<Listeners, BootError> {
    let service = listen_on(AGENT_PORT).map_err(BootError::at("listen on the service port"))?;
    let streams = listen_on(STREAM_PORT).map_err(BootError::at("listen on the stream port"))?;
    let ready_at_us = clock::monotonic_us();
    let ready = vsock_socket().ok();
    if let Some(socket) = &ready {
        let host = vsock_address(libc::VMADDR_CID_HOST, READY_PORT);
        // Not answered yet, or nobody cares to listen there: either way the agent goes on.
        // SAFETY: `host` is a sockaddr_vm of the given size and outlives the call.
        unsafe {
            libc::connect(
                socket.as_raw_fd(),
                (&raw const host).cast(),
                VSOCK_ADDRESS_BYTES,
            );
        }
    }
    Ok(Listeners {
        service: ServiceSocket::Vsock(service),
        streams,
        ready,
        ready_at_us,
    })
}

/// Listens on the Unix sockets `agent.sock` and `stream.sock` in `directory`, for an agent that runs as an ordinary
/// process on a development machine.
pub fn listen_unix(directory: &Path) -> Result<Listeners, BootError> {
    let listen = |name: &str| -> io::Result<OwnedFd> {
        let listener = std::os::unix::net::UnixListener::bind(directory.join(name))?;
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    };
    Ok(Listeners {
        service: ServiceSocket::Unix(
            listen("agent.sock").map_err(BootError::at("listen on agent.sock"))?,
        ),
        streams: listen("stream.sock").map_err(BootError::at("listen on stream.sock"))?,
        ready: None,
        ready_at_us: clock::monotonic_us(),
    })
}
