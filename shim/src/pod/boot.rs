//! From nothing to an agent that has its sandbox: VMM, readiness, handshake; by booting, or from a template. Owned by
//! whoever looks after the pod, which keeps VMM and agent; what becomes of containers is not decided here.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{Instant, sleep_until};
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::{AGENT_PORT, READY_PORT, SHARE_TAG};
use vmpod_vmm_api::{
    JailConfig, KernelConfig, MachineConfig, NetConfig, NetworkConfig, SenderConfig, ShareConfig,
    VsockConfig,
};

use super::agent::{Agent, AgentError};
use super::clock;
use super::console::console_tail;
use super::hybrid_vsock;
use super::journal::{Entry, Journal, JournalError, chain};
use super::lesson::Lesson;
use super::process::ProcessIdentity;
use super::record::MachineRecord;
use super::roots::{PodPaths, Roots};
use super::status::bounded;
use super::template::{Shape, Templates};
use super::vmm::{MachineEnd, Vmm, VmmError, VmmStart};

/// How long a machine may take from its start to a ready agent. Hardware takes well under a second; an emulated host that
/// is loaded takes many.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the handshake may take once the agent has said that it is ready.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// How long the agent may take to close an empty connection before a template is made.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// How long a VMM may take to go after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Bytes after which the guest's console log starts anew.
const CONSOLE_BYTES: u64 = 256 * 1024;

/// MAC address of the card of every machine: machines that go on from one template have the same. The agent gives it the
/// pod's own before it is used.
pub const CARD_MAC: &str = "02:00:00:00:00:01";

/// Context id of every guest: each VMM has a vsock of its own, so that ids never meet.
const GUEST_CID: u32 = 3;

/// A machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The machine's configuration.
    #[error(transparent)]
    Config(#[from] vmpod_vmm_api::ConfigError),
    /// The VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The machine ended before the agent was there.
    #[error("the machine ended before its agent was ready: {end}{console}")]
    Died {
        /// How.
        end: MachineEnd,
        /// Last lines of the guest's console, with a heading.
        console: String,
    },
    /// The agent never came.
    #[error("the agent was not ready {} s after the machine's start{console}", limit.as_secs())]
    NotReady {
        /// The bound.
        limit: Duration,
        /// Last lines of the guest's console, with a heading.
        console: String,
    },
    /// The agent refused or went silent.
    #[error("cannot {what}{console}")]
    Agent {
        /// Phase of the start.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<AgentError>,
        /// Last lines of the guest's console, with a heading.
        console: String,
    },
    /// A system call.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Who wants to hear how a start goes.
pub trait Witness: Send {
    /// A VMM runs; its machine does not yet.
    fn vmm_started(&mut self, vmm: Option<ProcessIdentity>);
    /// Something happened: a word for it and the details.
    fn event(&mut self, kind: &str, message: &str);
}

/// A network card of the machine.
#[derive(Debug)]
pub struct Card {
    /// Its tap, which the VMM inherits.
    pub tap: OwnedFd,
    /// The MAC address that it announces. Not the pod's: the agent gives it that.
    pub mac: String,
    /// Bytes of a packet.
    pub mtu: u16,
    /// As whom the guest may send; `None`: as anybody.
    pub sender: Option<SenderConfig>,
    /// What goes beyond this network waits until the VMM is told to let it; `None`: nothing waits.
    pub own_network: Option<NetworkConfig>,
}

/// A machine to start, and what its agent is told first.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Where templates are.
    pub roots: &'a Roots,
    /// The pod's directories.
    pub paths: &'a PodPaths,
    /// Id of the pod.
    pub id: &'a str,
    /// The machine.
    pub machine: &'a MachineRecord,
    /// Its cards.
    pub cards: Vec<Card>,
    /// Member list of the VMM's cgroup.
    pub cgroup: Option<File>,
    /// Takes the VMM's name before it does anything.
    pub journal: &'a mut Journal,
    /// The pod's surroundings; the clock is set when it is sent.
    pub sandbox: m::SandboxConfig,
}

/// A machine whose agent has its sandbox.
#[derive(Debug)]
pub struct Booted {
    /// The process.
    pub vmm: Vmm,
    /// The connection.
    pub agent: Agent,
    /// What the agent said of itself.
    pub answer: m::HandshakeResponse,
    /// How the machine came up, in words.
    pub how: String,
    /// How long it took.
    pub took: Duration,
    /// What the machine could teach, if its template's machines are not known yet.
    pub lesson: Option<Lesson>,
}

/// A machine whose agent has answered.
type Up = (Vmm, Agent, m::HandshakeResponse, String);

impl Boot<'_> {
    /// Starts the machine and gives its agent the sandbox.
    ///
    /// # Errors
    /// What failed, with the end of the guest's console. The machine is gone then.
    pub async fn run(mut self, witness: &mut dyn Witness) -> Result<Booted, BootError> {
        for (directory, mode) in [(self.paths.machine(), 0o700), (self.paths.jail(), 0o755)] {
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(directory)
                .map_err(failing("make the VMM's directories"))?;
        }
        self.give_to_vmm(&self.paths.machine())
            .map_err(failing("give the VMM its directory"))?;
        let config = self.config();
        config.validate()?;
        let started = Instant::now();
        let shape = self.shape(&config, witness);
        let restored = match &shape {
            Some(shape) => self.restore(&config, shape, witness).await?,
            None => None,
        };
        let (vmm, agent, answer, how) = match restored {
            Some(up) => up,
            None => self.cold(config, shape.clone(), witness).await?,
        };
        Ok(Booted {
            vmm,
            agent,
            answer,
            how,
            took: started.elapsed(),
            lesson: Lesson::due(self.roots, shape),
        })
    }

    /// The name of the machine's template; `None` when the pod wants none.
    fn shape(&self, config: &MachineConfig, witness: &mut dyn Witness) -> Option<Shape> {
        if !self.machine.template {
            return None;
        }
        match Shape::of(config, &self.machine.vmm) {
            Ok(shape) => Some(shape),
            Err(error) => {
                witness.event("TemplateFailed", &chain(&error));
                None
            }
        }
    }

    /// Has the machine go on from the template of its shape. `None` when there is none, or none that works: it is taken
    /// away then, and the witness hears why. What the agent refuses it would refuse after a boot as well, so that it is an
    /// error.
    async fn restore(
        &mut self,
        config: &MachineConfig,
        shape: &Shape,
        witness: &mut dyn Witness,
    ) -> Result<Option<Up>, BootError> {
        let templates = Templates::of(self.roots);
        let Some(directory) = templates.find(shape) else {
            return Ok(None);
        };
        let config = MachineConfig {
            restore: Some(directory),
            ..config.clone()
        };
        let mut vmm = self.start_vmm(witness)?;
        let up = async {
            vmm.create(config).await?;
            self.greet(&mut vmm).await
        };
        match up.await {
            Ok((agent, answer)) => {
                let how = format!("restored from template {shape}");
                witness.event("MachineRestored", &how);
                Ok(Some((vmm, agent, answer, how)))
            }
            Err(error) if is_refusal(&error) => Err(error),
            Err(error) => {
                // Gone before another takes its sockets and its place.
                let _ = vmm.kill(KILL_LIMIT).await;
                templates.discard(shape);
                let message = format!(
                    "template {shape} is of no use and was removed; the machine boots: {}",
                    bounded(&chain(&error))
                );
                tracing::warn!(message);
                witness.event("TemplateFailed", &message);
                Ok(None)
            }
        }
    }

    /// Boots the machine; when it has a `shape` it is saved as the template of that as soon as its agent is ready.
    async fn cold(
        &mut self,
        mut config: MachineConfig,
        shape: Option<Shape>,
        witness: &mut dyn Witness,
    ) -> Result<Up, BootError> {
        // The listener is there before the guest can connect.
        let socket = self.paths.vsock_listener(READY_PORT);
        let ready = UnixListener::bind(&socket).map_err(failing("listen for the agent"))?;
        self.give_to_vmm(&socket).map_err(failing(
            "let the VMM connect to the socket that waits for the agent",
        ))?;
        let templates = Templates::of(self.roots);
        let mut saving = None;
        if let Some(shape) = shape {
            match templates.begin(self.paths, &config) {
                Ok(scratch) => {
                    config.snapshot_to = Some(scratch.clone());
                    saving = Some((shape, scratch));
                }
                Err(error) => witness.event("TemplateFailed", &chain(&error)),
            }
        }
        let started = Instant::now();
        let mut vmm = self.start_vmm(witness)?;
        vmm.create(config).await?;
        tokio::select! {
            accepted = ready.accept() => {
                accepted.map_err(failing("take the agent's connection"))?;
            }
            end = vmm.ended() => {
                return Err(BootError::Died { end, console: self.console_tail() });
            }
            () = sleep_until(started + READY_LIMIT) => {
                return Err(BootError::NotReady {
                    limit: READY_LIMIT,
                    console: self.console_tail(),
                });
            }
        }
        drop(ready);
        let _ = fs::remove_file(&socket);
        if let Some((shape, scratch)) = saving {
            match self.save(&mut vmm, &templates, &shape, &scratch).await {
                Ok(()) => witness.event("TemplateSaved", &shape.to_string()),
                Err(message) => witness.event(
                    "TemplateFailed",
                    &format!("template {shape} could not be saved: {message}"),
                ),
            }
        }
        let (agent, answer) = self.greet(&mut vmm).await?;
        Ok((vmm, agent, answer, "booted".into()))
    }

    /// Saves the machine as a template, before the agent knows anything of the pod. A pod that leaves none runs all the
    /// same.
    async fn save(
        &self,
        vmm: &mut Vmm,
        templates: &Templates,
        shape: &Shape,
        scratch: &Path,
    ) -> Result<(), String> {
        // The agent said that it listens; this waits until it works, and leaves no connection in the template.
        hybrid_vsock::touch(&self.paths.vsock(), AGENT_PORT, SETTLE_LIMIT)
            .await
            .map_err(|error| chain(&error))?;
        vmm.snapshot().await.map_err(|error| chain(&error))?;
        templates
            .publish(scratch, shape)
            .map_err(|error| chain(&error))
    }

    fn start_vmm(&mut self, witness: &mut dyn Witness) -> Result<Vmm, BootError> {
        let vmm = Vmm::start(VmmStart {
            program: &self.machine.vmm,
            log: &self.paths.vmm_log(),
            cgroup: self.cgroup.as_ref(),
            alone: self.machine.jail,
            inherited: self.cards.iter().map(|card| card.tap.as_fd()).collect(),
        })?;
        if let Some(identity) = vmm.identity() {
            self.journal.record(&Entry::Process {
                role: "VMM".into(),
                identity,
            })?;
        }
        witness.vmm_started(vmm.identity());
        Ok(vmm)
    }

    /// Shakes hands with the agent and gives it the pod's surroundings. Its clock and random pool come first of them, so
    /// that nothing happens in a restored machine with those of its template.
    async fn greet(&self, vmm: &mut Vmm) -> Result<(Agent, m::HandshakeResponse), BootError> {
        while_alive(&self.paths.console(), vmm, async {
            let mut sandbox = self.sandbox.clone();
            sandbox.clock_realtime_ns = clock::now_ns();
            Agent::greet(&self.paths.vsock(), HANDSHAKE_LIMIT, Some(sandbox))
                .await
                .map_err(|e| (e, "set up the pod's sandbox in the guest"))
        })
        .await
    }

    fn config(&self) -> MachineConfig {
        let wish = self.machine;
        MachineConfig {
            id: self.id.to_owned(),
            vcpus: wish.vcpus,
            memory_mib: wish.memory_mib,
            kernel: KernelConfig {
                vmlinux: wish.vmlinux.clone(),
                initramfs: Some(wish.initramfs.clone()),
                extra_cmdline: wish.extra_cmdline.clone(),
            },
            console_log: self.paths.console(),
            console_log_bytes: CONSOLE_BYTES,
            shares: vec![ShareConfig {
                tag: SHARE_TAG.into(),
                path: self.paths.shared(),
                queues: 1,
                read_only: false,
            }],
            nets: self
                .cards
                .iter()
                .map(|card| NetConfig {
                    tap_fd: card.tap.as_raw_fd(),
                    mac: card.mac.clone(),
                    mtu: card.mtu,
                    sender: card.sender.clone(),
                    own_network: card.own_network,
                })
                .collect(),
            blocks: vec![],
            vsock: Some(VsockConfig {
                guest_cid: GUEST_CID,
                uds_path: self.paths.vsock(),
            }),
            balloon: true,
            snapshot_to: None,
            restore: None,
            jail: wish.jail.then(|| JailConfig {
                root: self.paths.jail(),
                open_files: 1 << 16,
                user: Some(vmm_user(self.id)),
            }),
        }
    }

    /// Makes the user of the pod's VMM the owner of `path`; a VMM that is not confined is root and needs no such thing.
    fn give_to_vmm(&self, path: &Path) -> std::io::Result<()> {
        if !self.machine.jail {
            return Ok(());
        }
        let user = vmm_user(self.id);
        std::os::unix::fs::lchown(path, Some(user), Some(user))
    }

    fn console_tail(&self) -> String {
        console_tail(&self.paths.console())
    }
}

fn failing(what: &'static str) -> impl FnOnce(std::io::Error) -> BootError {
    move |source| BootError::System { what, source }
}

fn is_refusal(error: &BootError) -> bool {
    matches!(error, BootError::Agent { source, .. } if source.is_refusal())
}

/// Waits for something of the agent as long as its machine lives, whose console is at `console`.
///
/// # Errors
/// The agent's, or the machine's end.
pub async fn while_alive<T>(
    console: &Path,
    vmm: &mut Vmm,
    calls: impl Future<Output = Result<T, (AgentError, &'static str)>>,
) -> Result<T, BootError> {
    let done = tokio::select! {
        done = calls => done,
        end = vmm.ended() => {
            return Err(BootError::Died { end, console: console_tail(console) });
        }
    };
    done.map_err(|(source, what)| BootError::Agent {
        what,
        source: Box::new(source),
        console: console_tail(console),
    })
}

/// Random bytes for the guest's pool. The system gives so few at once without cutting them short (getrandom(2)).
const ENTROPY_BYTES: usize = 64;

/// Random bytes for [`Boot::sandbox`]: machines that go on from one template would draw the same numbers without them.
///
/// # Errors
/// The host gives none.
pub fn entropy() -> Result<Vec<u8>, BootError> {
    let mut entropy = vec![0_u8; ENTROPY_BYTES];
    rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty()).map_err(
        |errno| BootError::System {
            what: "draw random bytes for the guest, which must not share them with another",
            source: errno.into(),
        },
    )?;
    Ok(entropy)
}

/// The user and group that the VMM of pod `id` runs as: one of 16 million in the range that no convention gives to anybody
/// (systemd, "Users, Groups, UIDs and GIDs on systemd Systems"), by the beginning of the id.
fn vmm_user(id: &str) -> u32 {
    const FIRST: u32 = 0x7000_0000;
    let number = id.get(..6).and_then(|d| u32::from_str_radix(d, 16).ok());
    FIRST + number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_user_of_a_pod_is_its_own_and_nobody_elses() {
        assert_eq!(vmm_user("00000f123456"), 0x7000_000f);
        assert_eq!(vmm_user("ffffffffffff"), 0x70ff_ffff);
        assert_ne!(vmm_user("0123456789ab"), vmm_user("0123466789ab"));
    }
}
