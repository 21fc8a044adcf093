//! How the VMM confines itself before the first guest instruction: namespaces, a root and a user of its own, few
//! capabilities, limits, and a system call filter for each kind of thread.
//!
//! Order matters: limits, then [`Jail::enter`] (the new root), then the machine opens its directories, then
//! [`Jail::close`] while there is still one thread; each thread narrows itself down with [`confine_thread`]. Does not
//! know devices or KVM.

mod capabilities;
mod filter;
mod limits;
mod program;
mod root;
mod syscalls;
mod user;

use std::io;
use std::sync::OnceLock;

use vmpod_vmm_api::{JailConfig, MachineConfig};

pub use self::capabilities::SERVE_FILES;
use self::filter::Filters;
pub use self::filter::{FilterError, ThreadKind};
pub use self::root::{Places, RootError};

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Mounts and namespaces.
    #[error("confine the VMM")]
    Root(#[from] RootError),
    /// System call filters.
    #[error("confine the VMM")]
    Filter(#[from] FilterError),
    /// Limits, capabilities, attributes.
    #[error("confine the VMM: {what}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn process(what: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Process { what, source }
}

/// What a system call says that returns 0 or -1.
fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The filters, once the process is confined. Every thread reads them at its start.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// A process that has changed its root and is not sealed yet.
#[derive(Debug)]
pub struct Jail {
    serves_files: bool,
    snapshot: bool,
    user: Option<u32>,
}

impl Jail {
    /// Sets limits and changes the root; returns where the machine finds its directories now.
    ///
    /// # Errors
    /// The process is not privileged, or a directory of the configuration is not there.
    pub fn enter(jail: &JailConfig, config: &MachineConfig) -> Result<(Self, Places), JailError> {
        limits::set(jail.open_files).map_err(process("set resource limits"))?;
        limits::unprotect_from_oom_killer().map_err(process("set oom_score_adj"))?;
        limits::settle_allocator().map_err(process("allocate in a thread"))?;
        let places = root::enter(&jail.root, config)?;
        let serves_files = !config.shares.is_empty();
        let snapshot = config.snapshot_to.is_some();
        Ok((
            Self {
                serves_files,
                snapshot,
                user: jail.user,
            },
            places,
        ))
    }

    /// Drops privileges and installs the filter of the process. To be called when everything is open and there is still
    /// one thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn close(self) -> Result<(), JailError> {
        let filters = Filters::compile(self.snapshot);
        capabilities::reduce(self.serves_files, self.user).map_err(process("drop capabilities"))?;
        limits::seal().map_err(process("set process attributes"))?;
        filters.install_for_process()?;
        // A second machine in one process is refused earlier, so this is the first value.
        let _ = FILTERS.set(filters);
        Ok(())
    }
}

/// Narrows the calling thread down to what its kind does. Nothing happens in a process that is not confined.
///
/// # Errors
/// The kernel refuses.
pub fn confine_thread(kind: ThreadKind) -> Result<(), JailError> {
    let Some(filters) = FILTERS.get() else {
        return Ok(());
    };
    if !matches!(kind, ThreadKind::Files | ThreadKind::Spawner) {
        capabilities::give_up().map_err(process("drop a thread's capabilities"))?;
    }
    if kind == ThreadKind::Files {
        user::serve_as_root().map_err(process("serve files as root"))?;
    }
    filters.install(kind)?;
    Ok(())
}

/// [`confine_thread`] for a thread that has nobody to report to: ends the process when it fails, because a thread with
/// more rights than it should have must not meet the guest.
pub fn confine_thread_or_exit(kind: ThreadKind) {
    if let Err(error) = confine_thread(kind) {
        eprintln!("vmpod-vmm: {}", crate::control::chain(&error));
        std::process::exit(2);
    }
}
