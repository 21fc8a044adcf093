//! The read-only HTTP side: `/healthz`, `/pods`, `/metrics`. A thread for each connection, a bounded number of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use vmpod_shim::pod::clock;
use vmpod_shim::pod::object::pod_object;
use vmpod_shim::pod::registry;
use vmpod_shim::pod::roots::Roots;

use super::{Counters, metrics};

/// Connections at a time; further ones are closed at once.
const CONNECTIONS: usize = 32;

/// Bytes of a request.
const REQUEST_BYTES: u64 = 16 * 1024;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A look at the folder that is older than this is no good sign.
const STALE_NS: u64 = 60_000_000_000;

/// Begins to answer at `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) fn start(roots: Roots, address: &str, counters: Arc<Counters>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}; --listen takes another address, or none")
    })?;
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, most likely: not a reason to spin.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (roots, counters, open) = (roots.clone(), Arc::clone(&counters), Arc::clone(&open));
            std::thread::spawn(move || {
                // A client that went away is nobody's trouble.
                let _ = answer(&stream, &roots, &counters);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

fn answer(stream: &TcpStream, roots: &Roots, counters: &Counters) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(REQUEST_BYTES)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    // The header fields are read, so that closing does not reset the connection, and do not matter.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/healthz") => healthz(counters),
        ("GET" | "HEAD", "/pods") => pods(roots, counters),
        ("GET" | "HEAD", "/metrics") => (
            "200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
            metrics::text(roots, counters),
        ),
        ("GET" | "HEAD", _) => (
            "404 Not Found",
            "text/plain",
            "there are /healthz, /metrics and /pods\n".to_owned(),
        ),
        _ => (
            "405 Method Not Allowed",
            "text/plain",
            "this is read-only\n".to_owned(),
        ),
    };
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        out.write_all(body.as_bytes())?;
    }
    out.flush()
}

fn healthz(counters: &Counters) -> (&'static str, &'static str, String) {
    let now = u64::try_from(clock::now_ns()).unwrap_or(0);
    let looked = counters.looked_at_ns.load(Ordering::Relaxed);
    if now.saturating_sub(looked) < STALE_NS {
        ("200 OK", "text/plain", "ok".to_owned())
    } else {
        (
            "500 Internal Server Error",
            "text/plain",
            "the folder of manifests has not been looked at for a minute\n".to_owned(),
        )
    }
}

fn same_pod(one: &Value, other: &Value) -> bool {
    ["namespace", "name"]
        .iter()
        .all(|field| one["metadata"][field] == other["metadata"][field])
}

fn pods(roots: &Roots, counters: &Counters) -> (&'static str, &'static str, String) {
    match registry::list(roots) {
        Ok(pods) => {
            let mut items: Vec<_> = pods.iter().map(pod_object).collect();
            // One whose start has got as far as a pod is that pod, though the start may not be through.
            let mut waiting = counters.pending().objects();
            waiting.retain(|pod| items.iter().all(|there| !same_pod(there, pod)));
            items.extend(waiting);
            let list = json!({
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": {},
                "items": items,
            });
            ("200 OK", "application/json", format!("{list}\n"))
        }
        Err(error) => (
            "500 Internal Server Error",
            "text/plain",
            format!("{}\n", vmpod_shim::pod::journal::chain(&error)),
        ),
    }
}
