//! The pod's surroundings: names, network, shared memory, volumes, sysctls, clock and entropy.
//!
//! Containers share the guest's own network, IPC and UTS namespaces: nothing else lives in the guest but the agent,
//! which uses none of them for itself. With a shared PID namespace the pod gets one of its own, so that the agent stays
//! out of the containers' sight. With a user namespace of its own the pod gets all of them anew, and the agent moves along
//! ([`users`]). Configured once, by [`Sandbox::configure`]; owned by the service.

mod block;
mod netlink;
mod network;
mod pause;
mod random;
mod readahead;
mod users;

pub use random::add_entropy;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use vmpod_agent_protocol::GUEST_ROOT;
use vmpod_agent_protocol::limits::{NAME_BYTES, SANDBOX_ITEMS};
use vmpod_agent_protocol::messages::{
    AttachBlockRequest, BlockDevice, MemoryVolume, SandboxConfig, ShareMount, UserNamespace,
};

use crate::clock;
use crate::container::{
    At as _, ContainerError, Engine, StepError, check_users, guest_id, sysctls,
};

/// Size of /dev/shm unless the host says otherwise, as Kubernetes' runtimes have it.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

const NOTHING: Option<&str> = None;

/// The sandbox's state: whether it was configured, and what is mounted for it.
#[derive(Debug)]
pub struct Sandbox {
    engine: Engine,
    configured: AtomicBool,
    // Held while the pod's pause process is made, so that there is one; never held across an await.
    shares_pids: Mutex<bool>,
    // Written by the configuration, read by the shutdown; never held across an await.
    mounted: Mutex<Vec<String>>,
}

fn refuse(text: String) -> ContainerError {
    ContainerError::InvalidArgument(format!("configure sandbox: {text}"))
}

impl Sandbox {
    /// A sandbox that is not configured yet.
    pub fn new(engine: Engine) -> Self {
        Sandbox {
            engine,
            configured: AtomicBool::new(false),
            shares_pids: Mutex::new(false),
            mounted: Mutex::default(),
        }
    }

    /// Has the kernel find a block device that was attached to the running machine.
    pub fn attach_block(
        &self,
        request: &AttachBlockRequest,
    ) -> Result<BlockDevice, ContainerError> {
        block::check(request).map_err(|text| {
            ContainerError::InvalidArgument(format!("attach block device: {text}"))
        })?;
        block::attach(request).map_err(|StepError(text)| {
            ContainerError::Internal(format!("attach block device {:?}: {text}", request.serial))
        })
    }

    /// Makes the pod's surroundings. Once: a failure leaves a guest that is only good for shutting down.
    pub fn configure(&self, request: &SandboxConfig) -> Result<(), ContainerError> {
        check(request).map_err(refuse)?;
        let sysctls = sysctls(request.sysctls.iter()).map_err(|error| refuse(error.to_string()))?;
        if self.configured.swap(true, Ordering::Relaxed) {
            return Err(ContainerError::FailedPrecondition(
                "configure sandbox: this guest was configured before; a machine holds one pod for its whole life"
                    .into(),
            ));
        }
        let failed =
            |StepError(text)| ContainerError::Internal(format!("configure sandbox: {text}"));
        set_clock_and_entropy(request.clock_realtime_ns, &request.entropy).map_err(failed)?;
        let refused = |error: network::NetworkError| refuse(error.to_string());
        let mut links = network::links();
        if let Some(users) = request.users.as_ref() {
            network::requests(request, &links).map_err(refused)?;
            let users = users::enter(self.engine.reaper(), users, request, &links);
            self.engine.share_users(users.map_err(failed)?);
            // Their numbers may be others now.
            links = network::links();
        }
        names(request).map_err(failed)?;
        let requests = network::requests(request, &links).map_err(refused)?;
        netlink::send(&requests)
            .map_err(|error| ContainerError::Internal(format!("configure sandbox: {error}")))?;
        for (path, value) in sysctls {
            let mut written = fs::write(&path, &value);
            if let (Err(error), Some(users)) = (&written, request.users.as_ref())
                && error.kind() == io::ErrorKind::PermissionDenied
            {
                written = users::as_root_of_pod(users, || fs::write(&path, &value));
            }
            written
                .at(|| format!("set sysctl {} to {value:?}", path.display()))
                .map_err(failed)?;
        }
        let owner = Owner::of(request);
        device_mounts(request.shm_size_bytes, &owner).map_err(failed)?;
        for share in &request.shares {
            self.mount_share(share).map_err(failed)?;
        }
        for volume in &request.memory_volumes {
            self.mount_memory(volume, &owner).map_err(failed)?;
        }
        if request.share_process_namespace {
            self.share_pids()?;
        }
        Ok(())
    }

    /// Has the pod a PID namespace that containers share, unless it has one.
    pub fn share_pids(&self) -> Result<(), ContainerError> {
        let mut shares = self
            .shares_pids
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *shares {
            return Ok(());
        }
        let reaper = self.engine.reaper();
        let users = self.engine.users();
        let (pause, _exit) = reaper
            .watch(|| pause::start(self.engine.mount_point(), users.as_deref()))
            .at(|| "start the pod's pause process")
            .map_err(|StepError(text)| ContainerError::Internal(text))?;
        self.engine.share_pids(pause.pidfd);
        *shares = true;
        Ok(())
    }

    fn mount_share(&self, share: &ShareMount) -> Result<(), StepError> {
        let flags = if share.read_only {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        let step = || format!("mount share {:?} at {}", share.tag, share.guest_path);
        fs::create_dir_all(&share.guest_path).at(step)?;
        mount(
            Some(share.tag.as_str()),
            share.guest_path.as_str(),
            Some("virtiofs"),
            flags,
            NOTHING,
        )
        .at(step)?;
        self.remember(&share.guest_path);
        readahead::extend(&share.guest_path)
            .at(|| format!("have more of share {:?} read ahead", share.tag))
    }

    fn mount_memory(&self, volume: &MemoryVolume, owner: &Owner<'_>) -> Result<(), StepError> {
        let step = || format!("mount a memory volume at {}", volume.guest_path);
        fs::create_dir_all(&volume.guest_path).at(step)?;
        let mode = if volume.mode == 0 {
            0o777
        } else {
            volume.mode & 0o7777
        };
        let mut data = format!("mode={mode:o}");
        if volume.size_bytes != 0 {
            data.push_str(&format!(",size={}", volume.size_bytes));
        }
        data.push_str(&owner.option(volume.gid)?);
        mount(
            Some("tmpfs"),
            volume.guest_path.as_str(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(data.as_str()),
        )
        .at(step)?;
        self.remember(&volume.guest_path);
        Ok(())
    }

    fn remember(&self, path: &str) {
        self.mounted
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(path.to_owned());
    }

    /// Lets go of shares and volumes, the last one first.
    pub fn unmount(&self) {
        let mounted = std::mem::take(
            &mut *self
                .mounted
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for path in mounted.iter().rev() {
            if let Err(error) = umount2(path.as_str(), MntFlags::MNT_DETACH) {
                crate::boot::report(&format!("unmount {path}: {error}"));
            }
        }
    }
}

/// Whom the pod's file systems in memory belong to.
struct Owner<'a>(Option<&'a UserNamespace>);

impl<'a> Owner<'a> {
    fn of(request: &'a SandboxConfig) -> Self {
        Owner(request.users.as_ref())
    }

    /// Mount options of a tmpfs that belongs to the pod's root and its group `gid`, where that is positive.
    fn option(&self, gid: i64) -> Result<String, StepError> {
        let Some(users) = self.0 else {
            return Ok(if gid > 0 {
                format!(",gid={gid}")
            } else {
                String::new()
            });
        };
        let mapped = u32::try_from(gid.max(0))
            .ok()
            .and_then(|gid| guest_id(users.first_gid, users.gids, gid))
            .ok_or_else(|| StepError(format!("the pod's user namespace has no group {gid}")))?;
        Ok(format!(",uid={},gid={mapped}", users.first_uid))
    }
}

/// Sets the wall clock and gives the random pool something new: a machine that goes on from a template has its template's.
fn set_clock_and_entropy(clock_realtime_ns: i64, entropy: &[u8]) -> Result<(), StepError> {
    if clock_realtime_ns > 0 {
        clock::set_realtime_ns(clock_realtime_ns).at(|| "set the wall clock")?;
    }
    if !entropy.is_empty() {
        add_entropy(entropy).at(|| "feed the random pool")?;
    }
    Ok(())
}

fn check(request: &SandboxConfig) -> Result<(), String> {
    let counts = [
        ("interfaces", request.interfaces.len()),
        ("routes", request.routes.len()),
        ("neighbours", request.neighbours.len()),
        ("sysctls", request.sysctls.len()),
        ("shares", request.shares.len()),
        ("memory volumes", request.memory_volumes.len()),
    ];
    for (what, count) in counts {
        if count > SANDBOX_ITEMS {
            return Err(format!(
                "{count} {what} exceed the limit of {SANDBOX_ITEMS}"
            ));
        }
    }
    for interface in &request.interfaces {
        if interface.addresses.len() > SANDBOX_ITEMS {
            return Err(format!(
                "{} addresses of interface {:?} exceed the limit of {SANDBOX_ITEMS}",
                interface.addresses.len(),
                interface.name
            ));
        }
    }
    if request.entropy.len() > NAME_BYTES {
        return Err(format!(
            "{} bytes of entropy exceed the limit of {NAME_BYTES}",
            request.entropy.len()
        ));
    }
    if let Some(users) = request.users.as_ref() {
        check_users(users)?;
    }
    let paths = request.shares.iter().map(|share| &share.guest_path).chain(
        request
            .memory_volumes
            .iter()
            .map(|volume| &volume.guest_path),
    );
    for path in paths {
        let inside = Path::new(path)
            .strip_prefix(GUEST_ROOT)
            .is_ok_and(|below| !below.as_os_str().is_empty());
        if !inside || path.len() > NAME_BYTES || path.split('/').any(|part| part == "..") {
            return Err(format!("{path:?} is not a path below {GUEST_ROOT}"));
        }
    }
    Ok(())
}

fn names(request: &SandboxConfig) -> Result<(), StepError> {
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname)
            .at(|| format!("set the host name {:?}", request.hostname))?;
    }
    if !request.domainname.is_empty() {
        set_domain_name(&request.domainname)
            .at(|| format!("set the domain name {:?}", request.domainname))?;
    }
    Ok(())
}

/// Sets the NIS domain name of the calling process's UTS namespace.
pub fn set_domain_name(name: &str) -> std::io::Result<()> {
    // SAFETY: the pointer and length are those of a live string.
    if unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// /dev/shm, which containers share by bind mounts, and the agent's own devpts and message queues.
fn device_mounts(shm_size_bytes: u64, owner: &Owner<'_>) -> Result<(), StepError> {
    let size = if shm_size_bytes == 0 {
        SHARED_MEMORY_BYTES
    } else {
        shm_size_bytes
    };
    let shm = format!("mode=1777,size={size}{}", owner.option(0)?);
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (path, kind, flags, data) in [
        ("/dev/shm", "tmpfs", safe, shm.as_str()),
        (
            "/dev/pts",
            "devpts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        ("/dev/mqueue", "mqueue", safe, ""),
    ] {
        let step = || format!("mount {path}");
        match nix::unistd::mkdir(path, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).at(step),
        }
        mount(
            Some(kind),
            path,
            Some(kind),
            flags,
            (!data.is_empty()).then_some(data),
        )
        .at(step)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_outside_the_guest_directory_is_refused() {
        for path in ["/etc", "/run/vmpod", "/run/vmpod/../x", "relative", ""] {
            let request = SandboxConfig {
                shares: vec![ShareMount {
                    tag: "t".into(),
                    guest_path: path.into(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            assert!(check(&request).is_err(), "{path:?}");
        }
    }

    #[test]
    fn more_items_than_the_limit_are_refused() {
        let request = SandboxConfig {
            routes: vec![vmpod_agent_protocol::messages::Route::default(); SANDBOX_ITEMS + 1],
            ..Default::default()
        };
        assert!(check(&request).unwrap_err().contains("routes"));
    }
}
