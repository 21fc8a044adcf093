//! The serving process of a pod: listens where containerd was told, answers until the pod is over and forgotten.
//!
//! One thread, one event loop. Its mounts are in a namespace of its own: they go with it, whoever kills it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::ttrpc::asynchronous::{Server, Service as Methods};
use tokio::sync::mpsc;

use super::launch::{EVENTS_ADDRESS, SERVING, socket_path};
use super::publisher::Publisher;
use super::sandbox::Place;
use super::sandbox_service;
use super::streaming::Streams;
use super::task_service::Service;
use super::tasks::Tasks;
use crate::pod::roots::Roots;
use crate::pod::tree::{self, TreeError};

/// How long containerd may take for the last events.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// How long containerd may take to hang up after its last answer.
const HANG_UP: Duration = Duration::from_secs(1);

/// How long answers that are on their way may take.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// The process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The mount namespace.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Somebody serves there.
    #[error("another shim of this pod listens at {socket}")]
    Taken {
        /// The socket.
        socket: String,
    },
    /// A system call.
    #[error("cannot {what} {on}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        on: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The service.
    #[error("cannot serve ttrpc")]
    Serve(#[source] containerd_shim_protos::ttrpc::Error),
}

fn system(what: &'static str, on: &str) -> impl FnOnce(io::Error) -> ServerError {
    let on = on.to_owned();
    move |source| ServerError::System { what, on, source }
}

/// Serves the pod that `flags` name until it is over. To be called before any other thread starts.
///
/// # Errors
/// When it cannot serve at all.
pub fn serve(flags: &Flags, roots: Roots) -> Result<(), ServerError> {
    tree::enter_namespace()?;
    let listener = listen(socket_path(&flags.socket))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start", "the event loop"))?;
    let served = runtime.block_on(answer(flags, roots, listener));
    let _ = fs::remove_file(socket_path(&flags.socket));
    // Threads that wait for somebody are not waited for.
    runtime.shutdown_background();
    served
}

/// Listens at `path`; a socket that nobody listens at any more is replaced.
fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let on = path.display().to_string();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(system("make the directory of", &on))?;
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(ServerError::Taken { socket: on });
            }
            fs::remove_file(path).map_err(system("remove the dead socket", &on))?;
            UnixListener::bind(path).map_err(system("listen at", &on))
        }
        other => other.map_err(system("listen at", &on)),
    }
}

async fn answer(flags: &Flags, roots: Roots, listener: UnixListener) -> Result<(), ServerError> {
    let address =
        std::env::var(EVENTS_ADDRESS).unwrap_or_else(|_| format!("{}.ttrpc", flags.address));
    let publisher = Publisher::start(&address, &flags.namespace);
    let place = Place::of(roots, &flags.namespace, &flags.id);
    let host_cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let streams = Streams::new(&flags.socket);
    let tasks = Tasks::new(place, publisher.clone(), streams.clone(), host_cpus);
    listener
        .set_nonblocking(true)
        .map_err(system("use", &flags.socket))?;
    let listener = listener.try_into().map_err(system("use", &flags.socket))?;
    let (open, mut hung_up) = mpsc::channel(1);
    let listener = Listener::new(streams.sort(listener, open.downgrade()));
    let service = Service {
        tasks: Arc::clone(&tasks),
    };
    let sandboxes = sandbox_service::Service::new(Arc::clone(&tasks));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(every_version(service))
        .register_service(create_sandbox(Arc::new(sandboxes)));
    server.start().await.map_err(ServerError::Serve)?;
    say_serving();
    tasks.wait_shutdown().await;
    publisher.flush(LAST_EVENTS).await;
    // The answer to the request that ended it is on its way, and whoever waits for it hangs up. Who finds both the answer and
    // the end of the connection may take the end for the answer: containerd's client does, now and then.
    drop(open);
    let _ = tokio::time::timeout(HANG_UP, hung_up.recv()).await;
    let _ = tokio::time::timeout(LAST_ANSWERS, server.shutdown()).await;
    Ok(())
}

/// The task service under the names of both its versions, which have the same messages.
fn every_version(service: Service) -> HashMap<String, Methods> {
    let service = Arc::new(service);
    let newest = create_task(Arc::clone(&service) as _);
    let older = create_task(service)
        .into_iter()
        .map(|(name, methods)| (name.replace(".v3.", ".v2."), methods));
    newest.into_iter().chain(older).collect()
}

/// Tells whoever waits at the other end of standard output, and lets go of it.
fn say_serving() {
    let mut output = io::stdout().lock();
    let _ = output.write_all(SERVING.as_bytes());
    let _ = output.flush();
    if let Ok(nothing) = fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(nothing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_that_nobody_listens_at_is_replaced_and_another_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").join("x");
        drop(listen(&path).unwrap());
        let held = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ServerError::Taken { .. })));
        drop(held);
    }
}
