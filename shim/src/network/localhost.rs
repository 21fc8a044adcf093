//! Connections to localhost in a pod's network namespace on the host, led to the guest's localhost: the CRI's port-forward
//! dials there. A BPF program of type sk_lookup (Linux 5.9) hands every TCP connection in the namespace to one listening
//! socket; its own address is then the one that was dialled. The program hangs on a descriptor, so that it goes with this
//! process. Numbers are those of include/uapi/linux/bpf.h.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::task::JoinHandle;
use vmpod_agent_protocol::stream::StreamHeader;

use super::namespace;
use crate::pod::hybrid_vsock;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Bytes of `union bpf_attr` that are handed over; the kernel takes what is beyond its own as long as it is zero.
const ATTRIBUTE_BYTES: usize = 120;

/// How long the guest may take to open a connection.
const OPEN_LIMIT: Duration = Duration::from_secs(20);

/// Connections that are open at a time.
const CONNECTIONS: usize = 1024;

/// Localhost of a namespace, led elsewhere as long as this lives.
#[derive(Debug)]
pub(super) struct ForwardedLocalhost {
    accepting: JoinHandle<()>,
    /// The program is attached as long as it is open.
    _link: OwnedFd,
}

impl Drop for ForwardedLocalhost {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ForwardedLocalhost {
    /// Leads connections in the network namespace at `path` to the guest behind `socket`.
    pub(super) fn start(path: &Path, socket: &Path) -> io::Result<Self> {
        let listener = namespace::within(path, listen)??;
        let link = attach(&File::open(path)?, listener.as_fd())?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(Self {
            accepting: tokio::spawn(accept(listener, socket.to_owned())),
            _link: link,
        })
    }
}

/// Listens at any port; of both families where the host has them.
fn listen() -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
}

async fn accept(listener: tokio::net::TcpListener, socket: PathBuf) {
    let free = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let accepted = match listener.accept().await {
            Ok((accepted, _)) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to the pod's localhost is lost");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let socket = socket.clone();
        tokio::spawn(async move {
            forward(accepted, &socket).await;
            drop(place);
        });
    }
}

async fn forward(mut accepted: tokio::net::TcpStream, socket: &Path) {
    let Ok(dialled) = accepted.local_addr() else {
        return;
    };
    let header = StreamHeader::Connect {
        port: dialled.port(),
    };
    match hybrid_vsock::open_stream(socket, &header, OPEN_LIMIT).await {
        Ok(mut guest) => {
            let _ = copy_bidirectional(&mut accepted, &mut guest).await;
        }
        Err(error) => {
            tracing::debug!(port = dialled.port(), %error, "nobody listens in the pod");
            // A reset, as from a port that nobody listens at.
            let _ = accepted.set_zero_linger();
        }
    }
}

/// An instruction: `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = code;
    bytes[1] = from << 4 | to;
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    bytes
}

/// The program: a TCP connection goes to the socket in `map`, everything else where it would.
fn program(map: i32) -> Vec<u8> {
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let call = |function| instruction(0x85, 0, 0, 0, function);
    [
        // r2 = context->protocol
        instruction(0x61, 2, 1, 12, 0),
        // To the end unless TCP.
        instruction(0x55, 2, 0, 15, libc::IPPROTO_TCP),
        copy(6, 1),
        // r1 = map: a load of 64 bits, in two parts.
        instruction(0x18, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        // The key, 0, on the stack.
        instruction(0x62, 10, 0, -4, 0),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -4),
        call(MAP_LOOKUP_ELEM),
        // To the end without a socket.
        instruction(0x15, 0, 0, 7, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        instruction(0xb7, 3, 0, 0, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        // SK_PASS
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
    .concat()
}

/// `union bpf_attr` with numbers of 32 bits and pointers at their places.
fn attribute(numbers: &[(usize, u32)], pointers: &[(usize, *const u8)]) -> [u8; ATTRIBUTE_BYTES] {
    let mut bytes = [0; ATTRIBUTE_BYTES];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    for (at, number) in numbers {
        put(*at, &number.to_ne_bytes());
    }
    for (at, pointer) in pointers {
        put(*at, &(*pointer as usize as u64).to_ne_bytes());
    }
    bytes
}

/// bpf(2). Pointers in `attribute` must point to what outlives the call.
fn bpf(command: libc::c_long, attribute: &[u8; ATTRIBUTE_BYTES]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as said, and callers keep what it points to.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attribute.as_ptr(),
            ATTRIBUTE_BYTES as libc::c_long,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(done)
}

fn bpf_descriptor(command: libc::c_long, attribute: &[u8; ATTRIBUTE_BYTES]) -> io::Result<OwnedFd> {
    let number = bpf(command, attribute)?;
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Attaches the program to `namespace` with `listener` as its socket.
fn attach(namespace: &File, listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = |fd: i32| fd.cast_unsigned();
    // map_type, key_size, value_size, max_entries
    let map = bpf_descriptor(
        BPF_MAP_CREATE,
        &attribute(&[(0, BPF_MAP_TYPE_SOCKMAP), (4, 4), (8, 8), (12, 1)], &[]),
    )?;
    let (key, value) = (0_u32, u64::from(number(listener.as_raw_fd())));
    // map_fd, key, value
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &attribute(
            &[(0, number(map.as_raw_fd()))],
            &[
                (8, (&raw const key).cast()),
                (16, (&raw const value).cast()),
            ],
        ),
    )?;
    let instructions = program(map.as_raw_fd());
    let licence = c"Apache-2.0";
    // prog_type, insn_cnt, insns, license, expected_attach_type
    let loaded = bpf_descriptor(
        BPF_PROG_LOAD,
        &attribute(
            &[
                (0, BPF_PROG_TYPE_SK_LOOKUP),
                (4, u32::try_from(instructions.len() / 8).unwrap_or(0)),
                (68, BPF_SK_LOOKUP),
            ],
            &[(8, instructions.as_ptr()), (16, licence.as_ptr().cast())],
        ),
    )?;
    // prog_fd, target_fd, attach_type
    bpf_descriptor(
        BPF_LINK_CREATE,
        &attribute(
            &[
                (0, number(loaded.as_raw_fd())),
                (4, number(namespace.as_raw_fd())),
                (8, BPF_SK_LOOKUP),
            ],
            &[],
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_jumps_to_its_end() {
        let bytes = program(3);
        assert_eq!(bytes.len(), 19 * 8);
        let targets = bytes.chunks(8).enumerate().filter_map(|(at, code)| {
            let offset = i16::from_ne_bytes([code[2], code[3]]);
            matches!(code[0], 0x55 | 0x15).then(|| at + 1 + usize::from(offset.unsigned_abs()))
        });
        assert_eq!(targets.collect::<Vec<_>>(), [17, 17]);
    }

    #[test]
    fn attribute_has_numbers_and_pointers_at_their_places() {
        let byte = 0_u8;
        let bytes = attribute(&[(4, 7)], &[(8, &raw const byte)]);
        assert_eq!(bytes[4..8], 7_u32.to_ne_bytes());
        assert_eq!(
            bytes[8..16],
            ((&raw const byte) as usize as u64).to_ne_bytes()
        );
    }
}
