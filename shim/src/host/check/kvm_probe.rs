//! Measures a KVM instead of believing it: a guest of one page in 64-bit kernel mode runs a counted loop and ends.
//!
//! On hardware the loop takes about a millisecond. A KVM without hardware below it (kvm-pvm) emulates guest kernel code
//! at one or two million instructions a second, and ends with an internal error on some of them. The guest runs in a
//! process of its own, which is killed when its time is up.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};

use super::bounded_output;

/// The version that KVM has had since Linux 2.6.22 (Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
pub const API_VERSION: i32 = 12;

/// `KVM_GET_API_VERSION`: `_IO(0xAE, 0x00)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;

/// Rounds of the loop, of four instructions each.
const ROUNDS: u32 = 150_000;

/// Instructions of the loop.
pub const INSTRUCTIONS: u64 = ROUNDS as u64 * 4;

/// Instructions a second below which guest kernel code is emulated one by one. Emulated hosts with a translating
/// emulator are above 100 million, interpreting ones below 5 million.
pub const EMULATED_BELOW: u64 = 15_000_000;

/// Time of the process that runs the guest.
const LIMIT: Duration = Duration::from_millis(1000);

/// What the guest did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It ran to its end.
    Ran {
        /// Instructions of the loop.
        instructions: u64,
        /// Time of the loop.
        nanoseconds: u64,
    },
    /// KVM gave up on an instruction.
    Unemulated {
        /// What it said.
        what: String,
    },
    /// It was not done in time.
    Slow {
        /// The time, in milliseconds.
        limit_ms: u64,
    },
    /// It could not be made.
    Failed {
        /// Why.
        message: String,
    },
}

/// API version of the KVM behind `device`; negative when it is none.
#[must_use]
pub fn api_version(device: &File) -> i32 {
    // SAFETY: the request takes no argument and writes no memory, on whatever the descriptor is.
    unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) }
}

/// Runs the guest in a process of its own, for at most a second.
#[must_use]
pub fn measure() -> Outcome {
    let failed = |message: String| Outcome::Failed { message };
    let mut command = Command::new("/proc/self/exe");
    command.args(["check", "--probe-kvm"]);
    match bounded_output(command, LIMIT) {
        Err(error) => failed(format!("cannot start a process: {error}")),
        Ok(None) => Outcome::Slow {
            limit_ms: u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX),
        },
        Ok(Some(output)) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            failed(format!(
                "the process that ran it ended with {}",
                output.status
            ))
        }),
    }
}

/// Runs the guest here and prints the outcome, for [`measure`]. Returns the process's exit status.
#[must_use]
pub fn run_in_this_process() -> u8 {
    let outcome = run_guest().unwrap_or_else(|message| Outcome::Failed { message });
    match serde_json::to_string(&outcome) {
        Ok(text) => {
            println!("{text}");
            0
        }
        Err(_) => 1,
    }
}

/// Guest-physical addresses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
const MEMORY: usize = 0x20_0000;

/// The loop, then an instruction that some emulators do not know, then `hlt`.
fn code() -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, ROUNDS
    code.extend_from_slice(&ROUNDS.to_le_bytes());
    code.extend_from_slice(&[
        0x48, 0xff, 0xc0, // inc rax
        0x48, 0x31, 0xd8, // xor rax, rbx
        0xff, 0xc9, // dec ecx
        0x75, 0xf6, // jnz, back to inc
        0xe6, 0x80, // out 0x80, al: the loop is done
        0xf3, 0x48, 0x0f, 0xb8, 0xd0, // popcnt rdx, rax
        0xf4, // hlt
    ]);
    code
}

fn run_guest() -> Result<Outcome, String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(step("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(step("KVM_CREATE_VM"))?;
    let memory = Memory::new().ok_or("there is no memory for it")?;
    memory.write(PML4, &(PDPT | 3).to_le_bytes());
    memory.write(PDPT, &(PAGE_DIRECTORY | 3).to_le_bytes());
    // One large page over everything there is.
    memory.write(PAGE_DIRECTORY, &0x83_u64.to_le_bytes());
    memory.write(CODE, &code());
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.address(),
    };
    // SAFETY: the region is mapped for its whole length, and `memory` outlives `vm` and its vCPU: it was declared before
    // the vCPU, and the VM is not used after this function.
    unsafe { vm.set_user_memory_region(region) }.map_err(step("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("KVM_CREATE_VCPU"))?;
    let cpuid: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(step("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(step("KVM_SET_CPUID2"))?;
    let mut special = vcpu.get_sregs().map_err(step("KVM_GET_SREGS"))?;
    special.cr3 = PML4;
    special.cr4 = 1 << 5; // PAE
    special.cr0 = (1 << 31) | (1 << 5) | (1 << 4) | (1 << 1) | 1; // PG, NE, ET, MP, PE
    special.efer = (1 << 10) | (1 << 8); // LMA, LME
    let segment = |kind, long| kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment {
        selector: 0x8,
        ..segment(11, 1)
    };
    let data = segment(3, 0);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    vcpu.set_sregs(&special).map_err(step("KVM_SET_SREGS"))?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rflags: 2,
        rbx: 0x5555_5555,
        ..kvm_regs::default()
    })
    .map_err(step("KVM_SET_REGS"))?;

    let started = Instant::now();
    let mut looped = None;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => looped = Some(started.elapsed()),
            Ok(VcpuExit::Hlt) => {
                let Some(time) = looped else {
                    return Err("it halted before it was done".to_owned());
                };
                return Ok(Outcome::Ran {
                    instructions: INSTRUCTIONS,
                    nanoseconds: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
                });
            }
            Ok(VcpuExit::InternalError) => {
                let what = if looped.is_some() {
                    "popcnt ends in KVM_EXIT_INTERNAL_ERROR"
                } else {
                    "a loop of plain arithmetic ends in KVM_EXIT_INTERNAL_ERROR"
                };
                return Ok(Outcome::Unemulated {
                    what: what.to_owned(),
                });
            }
            Ok(other) => return Err(format!("it ended with {other:?}")),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(step("KVM_RUN")(error)),
        }
    }
}

/// Memory of the guest.
struct Memory {
    start: *mut libc::c_void,
}

impl Memory {
    fn new() -> Option<Self> {
        // SAFETY: a fresh anonymous mapping touches nothing that is there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (start != libc::MAP_FAILED).then_some(Self { start })
    }

    fn address(&self) -> u64 {
        self.start as u64
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let Some(end) = usize::try_from(at)
            .ok()
            .and_then(|at| at.checked_add(bytes.len()))
        else {
            return;
        };
        if end <= MEMORY {
            // SAFETY: the range lies in the mapping (checked), which nobody else has a reference into.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    self.start.cast::<u8>().add(end - bytes.len()),
                    bytes.len(),
                );
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it is left.
        unsafe {
            libc::munmap(self.start, MEMORY);
        }
    }
}
