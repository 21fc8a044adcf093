//! A pod's machine as the shim keeps it: made with what it needs of the host, watched to its end, and everything taken
//! back then. Containers in it are not its business ([`super::tasks`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::statvfs;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::timeout;
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::{GUEST_SHARED, SHARE_TAG};
use vmpod_vmm_api::Attached;

use super::fault::Fault;
use super::host_block::HostBlock;
use super::sandbox_wish::{SandboxWish, cgroup_directory};
use crate::host::bundle::Bundle;
use crate::network::inherited::Inherited;
use crate::pod::agent::Agent;
use crate::pod::boot::{self, Boot, Witness};
use crate::pod::cgroup::{self, Limits};
use crate::pod::console::console_tail;
use crate::pod::host_mounts::{self, HostMounts};
use crate::pod::id_ranges::{IdRanges, users_of};
use crate::pod::journal::{self, Entry, Journal, chain};
use crate::pod::process::{self, ProcessIdentity};
use crate::pod::record::MachineRecord;
use crate::pod::registry::{self, ReservedPod};
use crate::pod::roots::{PodPaths, Roots};
use crate::pod::tree::{HostBind, HostsFile, SharedTree, resolv_conf};
use crate::pod::vmm::{MachineEnd, Vmm, VmmError};

/// How long the guest may take to power off, and the VMM to go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// Where the unified hierarchy is mounted (cgroups(7)).
const HIERARCHY: &str = "/sys/fs/cgroup";

/// Tasks of a VMM: one a vCPU, one a device, and room.
const VMM_TASKS: u32 = 64;

/// Memory of the VMM beside the guest's: its own, and a part of the page cache of files that it serves.
const VMM_MEMORY: u64 = 256 << 20;

/// Which sandbox of containerd's a pod is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The roots.
    pub roots: Roots,
    /// Its directories.
    pub paths: PodPaths,
    /// Its id for vmpod: twelve hexadecimal digits, because socket paths are short.
    pub id: String,
    /// Namespace of containerd.
    pub namespace: String,
    /// Its id for containerd.
    pub sandbox: String,
}

impl Place {
    /// The place of `sandbox`: always the same, so that whoever cleans up finds it.
    #[must_use]
    pub fn of(roots: Roots, namespace: &str, sandbox: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(namespace);
        hash.update([0]);
        hash.update(sandbox);
        let id: String = hash
            .finalize()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            paths: roots.pod(&id),
            roots,
            id,
            namespace: namespace.to_owned(),
            sandbox: sandbox.to_owned(),
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Sandbox {
    /// Its agent.
    pub agent: Agent,
    /// What the guest sees of the host.
    pub tree: Arc<SharedTree>,
    /// The socket that leads into the guest.
    pub socket: PathBuf,
    /// The tree has the files of the pod's `/etc`: nobody else made them.
    pub has_etc: bool,
    /// The ids of the pod's own user namespace.
    pub users: Option<IdRanges>,
    /// What containers mount on the host. Shared with the keeper and with whoever follows the agent; never held across an await.
    mounts: Arc<Mutex<HostMounts>>,
    /// Somebody follows the agent.
    followed: AtomicBool,
    orders: mpsc::UnboundedSender<Order>,
    ended: watch::Receiver<Option<String>>,
    /// Block devices that the guest has, and their numbers in it. Held while one is attached, so that it is attached once.
    blocks: AsyncMutex<BTreeMap<HostBlock, (u32, u32)>>,
}

/// What the machine's keeper is asked to do.
#[derive(Debug)]
enum Order {
    /// End the machine.
    Stop,
    /// Attach a block device to it.
    Attach {
        file: File,
        serial: String,
        read_only: bool,
        answer: oneshot::Sender<Result<Attached, VmmError>>,
    },
}

/// Tells the log how the start goes.
struct Log;

impl Witness for Log {
    fn vmm_started(&mut self, _vmm: Option<ProcessIdentity>) {}

    fn event(&mut self, kind: &str, message: &str) {
        tracing::info!(kind, message, "machine");
    }
}

impl Sandbox {
    /// Makes the machine of `wish` at `place`.
    ///
    /// # Errors
    /// What cannot be had; nothing is left behind then.
    pub async fn start(place: &Place, wish: &SandboxWish) -> Result<Self, Fault> {
        let bundle = Bundle::locate();
        bundle
            .check()
            .map_err(|error| Fault::because("cannot start the pod's machine", &error))?;
        let left = place.paths.run.exists() || place.paths.state.exists();
        if left && !process::is_locked(&place.paths.lock()) {
            // Of a shim that was killed, or, where only the bulky part is left, of a host that was.
            take_back(&place.paths);
        }
        let reserved =
            registry::adopt(&place.roots, &place.id, &place.sandbox, &place.namespace)
                .map_err(|error| Fault::because("cannot make the pod's directories", &error))?;
        let started = Self::boot(place, wish, bundle, reserved).await;
        if started.is_err() {
            take_back(&place.paths);
        }
        started
    }

    async fn boot(
        place: &Place,
        wish: &SandboxWish,
        bundle: Bundle,
        reserved: ReservedPod,
    ) -> Result<Self, Fault> {
        let paths = &place.paths;
        let mut journal = Journal::open(&paths.journal())
            .map_err(|error| Fault::because("cannot keep the pod's journal", &error))?;
        let machine = MachineRecord {
            vcpus: wish.vcpus,
            memory_mib: wish.memory_mib,
            vmm: bundle.vmm,
            vmlinux: bundle.vmlinux,
            initramfs: bundle.initramfs,
            extra_cmdline: wish.kernel_parameters.clone(),
            jail: true,
            template: wish.template,
        };
        let cgroup = make_cgroup(wish, &machine, &mut journal)?;
        let mut network = match &wish.network {
            Some(namespace) => Inherited::take_over(namespace, &mut journal)
                .map_err(|error| Fault::because("cannot take over the pod's network", &error))?,
            None => Inherited::default(),
        };
        let tree = Arc::new(SharedTree::empty(paths, wish.users)?);
        if let Some(dns) = &wish.dns {
            let hosts = HostsFile {
                address: network.address(),
                hostname: &wish.hostname,
                names: &[],
                aliases: &[],
            };
            tree.fill_etc(&hosts, &resolv_conf(dns))
                .inspect_err(|_| tree.unmount())?;
        }
        let boot = Boot {
            roots: &place.roots,
            paths,
            id: &place.id,
            machine: &machine,
            cards: network.cards(),
            cgroup,
            journal: &mut journal,
            sandbox: request(wish, &network)?,
        };
        let booted = boot.run(&mut Log).await;
        let booted = match booted {
            Ok(booted) => booted,
            Err(error) => {
                tree.unmount();
                return Err(error.into());
            }
        };
        tracing::info!(how = booted.how, took = ?booted.took, "the pod's machine is up");
        let socket = paths.vsock();
        network.forward_localhost(&socket);
        let (orders, ordered) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        let mut mounts = HostMounts::new(paths);
        mounts.belong_to(booted.vmm.identity());
        let mounts = Arc::new(Mutex::new(mounts));
        let keeper = Keeper {
            mounts: Arc::clone(&mounts),
            paths: paths.clone(),
            vmm: booted.vmm,
            agent: booted.agent.clone(),
            tree: Arc::clone(&tree),
            network,
            reserved,
        };
        tokio::spawn(keeper.keep(ordered, end));
        Ok(Self {
            agent: booted.agent,
            tree,
            socket,
            has_etc: wish.dns.is_some(),
            users: wish.users,
            mounts,
            followed: AtomicBool::new(false),
            orders,
            ended,
            blocks: AsyncMutex::default(),
        })
    }

    /// Has the machine end.
    pub fn stop(&self) {
        // One that is not listened to any more has ended.
        let _ = self.orders.send(Order::Stop);
    }

    /// Attaches a block device of the host, unless the machine has it. Returns its major and minor number in the guest.
    ///
    /// # Errors
    /// It cannot be opened, or the VMM or the guest refuses.
    pub async fn attach_block(&self, block: HostBlock) -> Result<(u32, u32), Fault> {
        let mut blocks = self.blocks.lock().await;
        if let Some(&known) = blocks.get(&block) {
            return Ok(known);
        }
        let (answer, answered) = oneshot::channel();
        let serial = block.serial();
        let order = Order::Attach {
            file: block.open()?,
            serial: serial.clone(),
            read_only: !block.writable,
            answer,
        };
        let gone =
            || Fault::precondition("the pod's machine ended before the block device was attached");
        self.orders.send(order).map_err(|_| gone())?;
        let place = answered
            .await
            .map_err(|_| gone())?
            .map_err(|error| Fault::because("cannot attach a block device", &error))?;
        let numbers = self.agent.attach_block(&place, serial).await?;
        blocks.insert(block, numbers);
        Ok(numbers)
    }

    /// Has what container `id` mounts in those of its `binds` that it shares with the host appear there.
    ///
    /// # Errors
    /// When the host's directories cannot be looked at, or the journal cannot be written.
    pub fn share_mounts(&self, id: &str, binds: &[HostBind]) -> Result<(), Fault> {
        let shared = binds.iter().enumerate().filter(|(_, bind)| bind.shared);
        // Mounts of a user namespace never go where there is more power.
        for (number, bind) in shared.filter(|_| self.users.is_none()) {
            let place = format!("containers/{id}/mounts/{number}");
            host_mounts::locked(&self.mounts)
                .share(place, &bind.source)
                .map_err(|error| Fault::because("cannot share mounts with the host", &error))?;
            if !self.followed.swap(true, Ordering::Relaxed) {
                tokio::spawn(host_mounts::follow(
                    self.agent.clone(),
                    Arc::clone(&self.mounts),
                ));
            }
        }
        Ok(())
    }

    /// Takes container `id`'s part of the shared tree away, and what it has mounted on the host.
    pub fn remove_member(&self, id: &str) {
        host_mounts::locked(&self.mounts).forget(&format!("containers/{id}"));
        self.tree.remove_member(id);
    }

    /// Waits for the machine's end; returns how it ended in words.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_default(),
            Err(_) => "whoever watched the machine is gone".to_owned(),
        }
    }

    /// How the machine ended, when it has.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.ended.borrow().clone()
    }
}

/// Takes back what a pod made on the host, and forgets it.
pub fn take_back(paths: &PodPaths) {
    if let Err(error) = journal::undo(&paths.journal()) {
        tracing::error!(error = chain(&error), "the next `vmpod gc` will try again");
        return;
    }
    if let Err(error) = registry::forget(paths) {
        tracing::error!(error = chain(&error), "the next `vmpod gc` will try again");
    }
}

/// Owns the machine and what was made for it.
struct Keeper {
    mounts: Arc<Mutex<HostMounts>>,
    paths: PodPaths,
    vmm: Vmm,
    agent: Agent,
    tree: Arc<SharedTree>,
    network: Inherited,
    /// Its lock says that somebody looks after the pod.
    reserved: ReservedPod,
}

impl Keeper {
    async fn keep(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        end: watch::Sender<Option<String>>,
    ) {
        let words = loop {
            let order = tokio::select! {
                end = self.vmm.ended() => break self.words(&end),
                order = orders.recv() => order,
            };
            if let Some(Order::Attach {
                file,
                serial,
                read_only,
                answer,
            }) = order
            {
                let attached = self.vmm.attach_block(&file, &serial, read_only).await;
                // Whoever asked may have gone.
                let _ = answer.send(attached);
                continue;
            }
            // A guest that goes before it has answered has done what it was asked.
            let _ = self.agent.shutdown(SHUTDOWN_LIMIT).await;
            let _ = timeout(SHUTDOWN_LIMIT, self.vmm.ended()).await;
            break "the pod's machine was stopped".to_owned();
        };
        // Whoever waits for an answer hears of the end.
        drop(orders);
        let _ = self.vmm.kill(SHUTDOWN_LIMIT).await;
        tracing::info!(end = words, "the pod's machine has ended");
        self.network.release();
        host_mounts::forget_all(&self.mounts);
        self.tree.unmount();
        take_back(&self.paths);
        drop(self.reserved);
        end.send_replace(Some(words));
    }

    fn words(&self, end: &MachineEnd) -> String {
        format!(
            "the pod's machine ended by itself: {end}{}",
            console_tail(&self.paths.console())
        )
    }
}

fn request(wish: &SandboxWish, network: &Inherited) -> Result<m::SandboxConfig, Fault> {
    Ok(m::SandboxConfig {
        hostname: wish.hostname.clone(),
        interfaces: network.interfaces(),
        routes: network.routes(),
        neighbours: network.neighbours(),
        sysctls: wish
            .sysctls
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        shares: vec![m::ShareMount {
            tag: SHARE_TAG.into(),
            guest_path: GUEST_SHARED.into(),
            ..Default::default()
        }],
        shm_size_bytes: wish.shm.as_deref().map_or(0, size_of_shm),
        entropy: boot::entropy()?,
        users: wish.users.map(users_of).into(),
        ..Default::default()
    })
}

/// Bytes of the file system at `path`; 0 when it has no bound or cannot be looked at.
fn size_of_shm(path: &Path) -> u64 {
    statvfs(path).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

/// The cgroup that containerd named, so that the pod's machine counts as the pod; vmpod's own where it cannot be had.
fn make_cgroup(
    wish: &SandboxWish,
    machine: &MachineRecord,
    journal: &mut Journal,
) -> Result<Option<std::fs::File>, Fault> {
    let hierarchy = Path::new(HIERARCHY);
    if !hierarchy.join("cgroup.controllers").exists() {
        return Ok(None);
    }
    let Some(path) = wish
        .cgroup
        .as_deref()
        .and_then(|path| cgroup_directory(hierarchy, path))
    else {
        return Ok(None);
    };
    let fail =
        |error: &dyn std::error::Error| Fault::because("cannot make the pod's cgroup", error);
    journal
        .record(&Entry::Cgroup { path: path.clone() })
        .map_err(|error| fail(&error))?;
    cgroup::create(
        &path,
        Limits {
            memory_bytes: machine
                .memory_mib
                .checked_mul(1 << 20)
                .and_then(|bytes| bytes.checked_add(VMM_MEMORY)),
            pids: VMM_TASKS + u32::from(machine.vcpus),
        },
    )
    .map_err(|error| fail(&error))?;
    cgroup::open_members(&path)
        .map(Some)
        .map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_a_sandbox_is_the_same_every_time_and_its_own() {
        let place = |namespace, sandbox| Place::of(Roots::default(), namespace, sandbox).id;
        assert_eq!(place("k8s.io", "a"), place("k8s.io", "a"));
        assert_eq!(place("k8s.io", "a").len(), 12);
        assert_ne!(place("k8s.io", "a"), place("k8s.io", "b"));
        assert_ne!(place("k8s.io", "a"), place("k8s.ioa", ""));
    }
}
