//! The `start` action: containerd executes the shim in a bundle and reads from its output where the pod's serving process
//! listens (containerd, core/runtime/v2/README.md, "Start"). A container of a pod that runs is served by the pod's; for any
//! other a serving process is started, and waited for until it serves.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim::{Flags, StartOpts};
use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::bundle::{BundleError, OciBundle, Role};
use super::settings;
use super::task_service::settings_path;

/// Environment variable with the address of containerd's event service.
pub const EVENTS_ADDRESS: &str = "TTRPC_ADDRESS";

/// Bytes that containerd hands over at most.
const INPUT_BYTES: u64 = 10 << 20;

/// What a serving process writes when it serves. Anything else is why it does not.
pub const SERVING: &str = "serving\n";

/// Bytes of what a serving process says before it serves.
const WORDS_BYTES: u64 = 16 * 1024;

/// A shim cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The sandbox that the container belongs to is not served.
    #[error(
        "container {id} belongs to sandbox {sandbox}, whose shim does not answer at {}; the sandbox has ended", socket.display()
    )]
    NoSandbox {
        /// The container.
        id: String,
        /// Its sandbox.
        sandbox: String,
        /// Where it should be served.
        socket: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The serving process said why it does not serve, or went without a word.
    #[error("the shim of {id} does not serve: {words}")]
    NotServing {
        /// The sandbox.
        id: String,
        /// Its words.
        words: String,
    },
    /// A system call.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// containerd's message.
    #[error("what containerd hands over is meant for {theirs}, not for {ours}")]
    Mixed {
        /// The id on the command line.
        ours: String,
        /// The id in the message.
        theirs: String,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// How containerd wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// The address as text: containerd 1.x, and 2.0 to 2.2, which take it as version 2 of the task service.
    Text,
    /// [`BootstrapResult`]: from 2.3 on.
    Message,
}

/// Does the action in the working directory. Returns what is to be written to standard output.
///
/// # Errors
/// When nobody serves the container afterwards.
pub fn start(flags: &Flags) -> Result<Vec<u8>, LaunchError> {
    let mut input = Vec::new();
    // Nothing is handed over when somebody tries the shim by hand.
    if !io::stdin().is_terminal() {
        io::stdin()
            .lock()
            .take(INPUT_BYTES)
            .read_to_end(&mut input)
            .map_err(system("read what containerd hands over"))?;
    }
    let (options, reply) = options(flags, &input)?;
    let bundle = std::env::current_dir().map_err(system("find the bundle"))?;
    let role = match OciBundle::read(&bundle) {
        Ok(read) => read.role,
        // A sandbox that is made by the sandbox service has none.
        Err(BundleError::Missing { .. }) => Role::Sandbox,
        Err(error) => return Err(error.into()),
    };
    let address = match role {
        Role::Member(sandbox) => {
            let address = options.socket_address(&sandbox);
            let socket = socket_path(&address);
            UnixStream::connect(socket).map_err(|source| LaunchError::NoSandbox {
                id: options.id.clone(),
                sandbox,
                socket: socket.to_owned(),
                source,
            })?;
            address
        }
        Role::Sandbox | Role::Single => {
            let address = options.socket_address(&options.id);
            serve(&options, &address)?;
            address
        }
    };
    fs::write(bundle.join("address"), &address)
        .map_err(system("write the address into the bundle"))?;
    Ok(match reply {
        Reply::Text => address.into_bytes(),
        Reply::Message => BootstrapResult {
            version: TASK_API_VERSION,
            address,
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        }
        .write_to_bytes()
        .map_err(|error| system("encode the answer")(io::Error::other(error)))?,
    })
}

/// What containerd wants, from its message or from the command line.
fn options(flags: &Flags, input: &[u8]) -> Result<(StartOpts, Reply), LaunchError> {
    if let Ok(message) = BootstrapParams::parse_from_bytes(input)
        && !message.containerd_ttrpc_address.is_empty()
    {
        if message.instance_id != flags.id || message.namespace != flags.namespace {
            return Err(LaunchError::Mixed {
                ours: format!("{}/{}", flags.namespace, flags.id),
                theirs: format!("{}/{}", message.namespace, message.instance_id),
            });
        }
        return Ok((message.into(), Reply::Message));
    }
    // The runtime's options, from containerd 1.7 on.
    let told = Any::parse_from_bytes(input).ok();
    Ok((
        StartOpts {
            id: flags.id.clone(),
            publish_binary: flags.publish_binary.clone(),
            address: flags.address.clone(),
            ttrpc_address: std::env::var(EVENTS_ADDRESS)
                .unwrap_or_else(|_| format!("{}.ttrpc", flags.address)),
            namespace: flags.namespace.clone(),
            debug: flags.debug,
            extensions: told.into_iter().collect(),
            ..Default::default()
        },
        Reply::Text,
    ))
}

/// The path of a socket's address.
#[must_use]
pub fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Starts a serving process at `address` and waits until it serves.
fn serve(options: &StartOpts, address: &str) -> Result<(), LaunchError> {
    let program = std::env::current_exe().map_err(system("find the shim's program"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &options.namespace])
        .args(["-id", &options.id])
        .args(["-address", &options.address])
        .args(["-socket", address])
        .env(EVENTS_ADDRESS, &options.ttrpc_address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // What is meant for containerd's process group is not meant for the pod.
        .process_group(0);
    if options.debug {
        command.arg("-debug");
    }
    // Who is asked for a sandbox alone is not told again.
    if let Some(path) = options.extensions.iter().find_map(settings_path) {
        command.env(settings::PATH_VARIABLE, path);
    }
    let mut child = command
        .spawn()
        .map_err(system("start the serving process"))?;
    // It is worth a little less than containerd to the out-of-memory killer; where that cannot be said it is as it was.
    let _ = containerd_shim::cgroup::adjust_oom_score(child.id());
    let mut words = String::new();
    if let Some(output) = child.stdout.take() {
        output
            .take(WORDS_BYTES)
            .read_to_string(&mut words)
            .map_err(system("hear from the serving process"))?;
    }
    if words == SERVING {
        return Ok(());
    }
    let status = child
        .wait()
        .map_err(system("wait for the serving process"))?;
    Err(LaunchError::NotServing {
        id: options.id.clone(),
        words: if words.is_empty() {
            format!("it ended with {status} and said nothing")
        } else {
            words
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            id: "a".into(),
            namespace: "n".into(),
            address: "/run/c.sock".into(),
            ..Default::default()
        }
    }

    #[test]
    fn options_of_the_command_line_are_answered_with_text() {
        let (options, reply) = options(&flags(), b"").unwrap();
        assert_eq!((&*options.id, &*options.namespace), ("a", "n"));
        assert_eq!(reply, Reply::Text);
        assert!(options.ttrpc_address.ends_with(".ttrpc"));
    }

    #[test]
    fn options_of_a_message_are_answered_with_one_and_checked() {
        let mut message = BootstrapParams {
            instance_id: "a".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "/run/x.ttrpc".into(),
            ..Default::default()
        };
        let (found, reply) = options(&flags(), &message.write_to_bytes().unwrap()).unwrap();
        assert_eq!(reply, Reply::Message);
        assert_eq!(found.ttrpc_address, "/run/x.ttrpc");
        message.instance_id = "b".into();
        assert!(matches!(
            options(&flags(), &message.write_to_bytes().unwrap()),
            Err(LaunchError::Mixed { .. })
        ));
    }

    #[test]
    fn options_next_to_runtime_options_are_those_of_the_command_line() {
        // A protobuf Any, as containerd 1.7 hands over.
        let mut any = containerd_shim_protos::protobuf::well_known_types::any::Any::new();
        any.type_url = "containerd.runc.v1.Options".into();
        any.value = vec![1, 2, 3];
        let (_, reply) = options(&flags(), &any.write_to_bytes().unwrap()).unwrap();
        assert_eq!(reply, Reply::Text);
    }
}
