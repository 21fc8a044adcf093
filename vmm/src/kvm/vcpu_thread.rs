//! The thread of a vCPU: runs the guest and answers its exits until it is told to stop or the machine ends.
//!
//! Owns the vCPU descriptor. It is got out of the guest by a signal whose handler sets `immediate_exit`, so that a kick
//! that comes between the look at the gate and KVM_RUN is not lost.

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmpod_vmm_api::ExitReason;

use super::exits::{ExitCounts, ExitKind};
use super::run_gate::{RunGate, Wanted};
use crate::ending::Ending;

/// Stack of a vCPU thread in bytes: answering an exit never goes deep, but activating a device from it may.
const STACK: usize = 256 << 10;

/// What the guest reaches outside its memory. Called from vCPU threads.
pub trait GuestAccess: Send + Sync {
    /// Reads from an I/O port; false when nothing answers there.
    fn read_port(&self, port: u16, data: &mut [u8]) -> bool;
    /// Writes to an I/O port.
    fn write_port(&self, port: u16, data: &[u8]) -> PortWrite;
    /// Reads from a physical address without memory; false when nothing answers there.
    fn read_address(&self, address: u64, data: &mut [u8]) -> bool;
    /// Writes to a physical address without memory; false when nothing answers there.
    fn write_address(&self, address: u64, data: &[u8]) -> bool;
}

/// What a port write led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// Taken.
    Done,
    /// Nothing answers at this port.
    Unknown,
    /// The machine ends.
    End(ExitReason),
}

/// What all vCPU threads of a machine share.
#[derive(Clone)]
pub struct Shared {
    /// Ports and windows.
    pub access: Arc<dyn GuestAccess>,
    /// Run, pause, stop.
    pub gate: Arc<RunGate>,
    /// Where the end is reported.
    pub ending: Arc<Ending>,
    /// Called by each vCPU thread before it enters the guest.
    pub prepare: fn(),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A started vCPU.
#[derive(Debug)]
pub struct VcpuThread {
    thread: JoinHandle<()>,
    counts: Arc<ExitCounts>,
}

thread_local! {
    /// `kvm_run` of the vCPU that runs on this thread, for the signal handler.
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: libc::c_int) {
    // `try_with` because the thread may be ending. The cell has no destructor, so this is a plain load.
    let _ = RUNNING.try_with(|running| {
        let run = running.get();
        if !run.is_null() {
            // SAFETY: the pointer is set by the thread this handler runs on, from the mapping of its own vCPU, and is
            // cleared before the mapping goes away. KVM reads the byte; nothing else on this thread writes it while the
            // handler runs.
            unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
        }
    });
}

/// Installs the handler of the kick signal. Once per process, before the first vCPU thread.
///
/// # Errors
/// sigaction(2) failed.
pub fn install_kick_handler() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one (no flags, empty mask); the handler is async-signal-safe: it reads a
    // thread-local without destructor and writes one byte.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
        libc::sigaction(kick_signal(), &raw const action, ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl VcpuThread {
    /// Starts the thread of vCPU `id`; it obeys the gate from the first instruction on.
    ///
    /// # Errors
    /// The host lacks a thread.
    pub fn start(id: u8, vcpu: VcpuFd, shared: Shared) -> io::Result<Self> {
        let counts = Arc::new(ExitCounts::default());
        let seen = Arc::clone(&counts);
        let thread = Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK)
            .spawn(move || run(id, vcpu, &shared, &seen))?;
        Ok(Self { thread, counts })
    }

    /// Gets the thread out of the guest, so that it looks at the gate.
    pub fn kick(&self) {
        // SAFETY: the thread has not been joined, so its handle is valid; a finished thread only makes this fail.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Counts of this vCPU.
    #[must_use]
    pub fn counts(&self) -> &ExitCounts {
        &self.counts
    }

    /// Waits for the thread to end, which it does when the gate says stop or the machine has ended.
    pub fn join(self) {
        // A panicked vCPU thread is over too.
        let _ = self.thread.join();
    }
}

/// Whether the loop goes on.
enum After {
    Continue,
    End(ExitReason),
}

fn run(id: u8, mut vcpu: VcpuFd, shared: &Shared, counts: &ExitCounts) {
    (shared.prepare)();
    RUNNING.set(ptr::from_mut(vcpu.get_kvm_run()));
    loop {
        match shared.gate.wanted() {
            Wanted::Run => {}
            Wanted::Pause => {
                if let After::End(reason) = settle(id, &mut vcpu, shared, counts) {
                    shared.ending.report(reason);
                    break;
                }
                if shared.gate.stand() == Wanted::Run {
                    // Tells the guest that it stood still, so that its lockup detector keeps quiet. A guest that has
                    // not set up kvm-clock is not told, which is what the error says.
                    let _ = vcpu.kvmclock_ctrl();
                }
                continue;
            }
            Wanted::Stop => break,
        }
        if let After::End(reason) = enter(id, &mut vcpu, shared, counts) {
            shared.ending.report(reason);
            break;
        }
    }
    RUNNING.set(ptr::null_mut());
    shared.gate.leave();
}

/// Most accesses of one instruction, far above what a string instruction can leave open.
const OPEN_ACCESSES: usize = 64;

/// Completes the access that the last exit was for: KVM does that on the next entry, and until then the registers are not
/// those of a whole instruction. No further instruction runs.
fn settle(id: u8, vcpu: &mut VcpuFd, shared: &Shared, counts: &ExitCounts) -> After {
    for _ in 0..OPEN_ACCESSES {
        // Taken back by the answer to the interruption.
        vcpu.set_kvm_immediate_exit(1);
        let before = counts.of(ExitKind::Intr);
        if let After::End(reason) = enter(id, vcpu, shared, counts) {
            return After::End(reason);
        }
        if counts.of(ExitKind::Intr) != before {
            break;
        }
    }
    vcpu.set_kvm_immediate_exit(0);
    After::Continue
}

/// Runs the guest until its next exit and answers it.
fn enter(id: u8, vcpu: &mut VcpuFd, shared: &Shared, counts: &ExitCounts) -> After {
    let access = &shared.access;
    let kind = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            if access.read_port(port, data) {
                ExitKind::Io
            } else {
                data.fill(0xff);
                ExitKind::IoUnknown
            }
        }
        Ok(VcpuExit::IoOut(port, data)) => match access.write_port(port, data) {
            PortWrite::Done => ExitKind::Io,
            PortWrite::Unknown => ExitKind::IoUnknown,
            PortWrite::End(reason) => {
                counts.add(ExitKind::Io);
                return After::End(reason);
            }
        },
        Ok(VcpuExit::MmioRead(address, data)) => {
            if access.read_address(address, data) {
                ExitKind::Mmio
            } else {
                data.fill(0xff);
                ExitKind::MmioUnknown
            }
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            if access.write_address(address, data) {
                ExitKind::Mmio
            } else {
                ExitKind::MmioUnknown
            }
        }
        Ok(VcpuExit::Hlt) => ExitKind::Hlt,
        Ok(VcpuExit::Intr) => ExitKind::Intr,
        Ok(VcpuExit::Shutdown) => return After::End(ExitReason::TripleFault),
        Ok(VcpuExit::InternalError) => {
            let message = internal_error(id, vcpu);
            return After::End(ExitReason::Hypervisor { message });
        }
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return After::End(ExitReason::Hypervisor {
                message: format!(
                    "vCPU {id} could not enter the guest on host CPU {cpu}: hardware reason {reason:#x}"
                ),
            });
        }
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
            return After::End(ExitReason::Hypervisor {
                message: format!(
                    "vCPU {id}: the host could not provide guest memory at {gpa:#x}, {size} bytes (out of memory, or a file under it was cut short)"
                ),
            });
        }
        Ok(exit) => {
            let message = format!("vCPU {id}: an exit that no Linux guest causes: {exit:?}");
            return After::End(ExitReason::Hypervisor { message });
        }
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
            vcpu.set_kvm_immediate_exit(0);
            ExitKind::Intr
        }
        Err(e) => {
            let at = instruction_pointer(vcpu);
            return After::End(ExitReason::Hypervisor {
                message: format!("vCPU {id}: KVM_RUN failed{at}: {e}"),
            });
        }
    };
    counts.add(kind);
    After::Continue
}

/// What KVM says about an internal error (Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR).
fn internal_error(id: u8, vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member of the union is the one that was written.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let what = match internal.suberror {
        1 => "it could not emulate an instruction",
        2 => "an exception came up while another was delivered",
        3 => "a vectoring event met an error",
        4 => "an exit was unexpected",
        _ => "unknown",
    };
    let count = (internal.ndata as usize).min(internal.data.len());
    let data: Vec<String> = internal
        .data
        .iter()
        .take(count)
        .map(|d| format!("{d:#x}"))
        .collect();
    format!(
        "vCPU {id}: KVM internal error {} ({what}){}, data [{}]",
        internal.suberror,
        instruction_pointer(vcpu),
        data.join(", ")
    )
}

fn instruction_pointer(vcpu: &VcpuFd) -> String {
    vcpu.get_regs()
        .map(|regs| format!(" at guest address {:#x}", regs.rip))
        .unwrap_or_default()
}
