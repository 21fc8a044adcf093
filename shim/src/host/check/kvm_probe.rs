//! Measures a KVM instead of believing it: a guest of one page in 64-bit kernel mode runs a counted loop some times and
//! ends.
//!
//! On hardware a round takes a tenth of a millisecond. A KVM without hardware below it (kvm-pvm) emulates guest kernel
//! code at one or two million instructions a second, and ends with an internal error on some of them. The fastest round
//! counts: a loaded host takes the processor away from some, not from all. The guest runs in a process of its own, which
//! says how each round went and is killed when its time is up.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};

/// The version that KVM has had since Linux 2.6.22 (Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
pub const API_VERSION: i32 = 12;

/// `KVM_GET_API_VERSION`: `_IO(0xAE, 0x00)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;

/// Turns of the loop in one round, of four instructions each.
const TURNS: u32 = 20_000;

/// Instructions of a round.
pub const INSTRUCTIONS: u64 = TURNS as u64 * 4;

/// Rounds.
const ROUNDS: usize = 6;

/// Instructions a second below which guest kernel code is emulated one by one. Hosts with a translating emulator are
/// above 100 million, interpreting ones at 1 to 3 million.
pub const EMULATED_BELOW: u64 = 6_000_000;

/// Time of the process that runs the guest.
const LIMIT: Duration = Duration::from_millis(1200);

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

/// Runs the guest in a process of its own, for a little more than a second at most.
#[must_use]
pub fn measure() -> Outcome {
    let failed = |message: String| Outcome::Failed { message };
    let child = Command::new("/proc/self/exe")
        .args(["check", "--probe-kvm"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return failed(format!("cannot start a process: {error}")),
    };
    let (sender, lines) = std::sync::mpsc::channel();
    if let Some(output) = child.stdout.take() {
        // Ends with the process, which is killed below.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
    }
    let deadline = Instant::now() + LIMIT;
    let mut best: Option<Outcome> = None;
    let mut late = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if let Ok(outcome) = serde_json::from_str(&line) {
                    best = Some(better(best, outcome));
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                break;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    match best {
        Some(outcome) => outcome,
        None if late => Outcome::Slow {
            limit_ms: u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX),
        },
        None => failed("the process that ran it ended without a word".to_owned()),
    }
}

/// The faster of two rounds; anything else that is said has the last word.
fn better(before: Option<Outcome>, now: Outcome) -> Outcome {
    match (before, now) {
        (
            Some(Outcome::Ran {
                instructions,
                nanoseconds: before,
            }),
            Outcome::Ran { nanoseconds, .. },
        ) => Outcome::Ran {
            instructions,
            nanoseconds: nanoseconds.min(before),
        },
        (_, now) => now,
    }
}

/// Runs the guest here and prints an outcome for each round, for [`measure`]. Returns the process's exit status.
#[must_use]
pub fn run_in_this_process() -> u8 {
    let say = |outcome: &Outcome| {
        if let Ok(text) = serde_json::to_string(outcome) {
            println!("{text}");
        }
    };
    match run_guest(&say) {
        Ok(()) => 0,
        Err(message) => {
            say(&Outcome::Failed { message });
            1
        }
    }
}

/// Guest-physical addresses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
const MEMORY: usize = 0x20_0000;

/// Rounds of a loop, then an instruction that some emulators do not know, then `hlt`.
fn code() -> Vec<u8> {
    let mut code = vec![0xbe]; // mov esi, ROUNDS
    code.extend_from_slice(&u32::try_from(ROUNDS).unwrap_or(1).to_le_bytes());
    code.push(0xb9); // round: mov ecx, TURNS
    code.extend_from_slice(&TURNS.to_le_bytes());
    code.extend_from_slice(&[
        0x48, 0xff, 0xc0, // turn: inc rax
        0x48, 0x31, 0xd8, // xor rax, rbx
        0xff, 0xc9, // dec ecx
        0x75, 0xf6, // jnz turn
        0xe6, 0x80, // out 0x80, al: the round is done
        0xff, 0xce, // dec esi
        0x75, 0xeb, // jnz round
        0xf3, 0x48, 0x0f, 0xb8, 0xd0, // popcnt rdx, rax
        0xf4, // hlt
    ]);
    code
}

fn run_guest(say: &dyn Fn(&Outcome)) -> Result<(), String> {
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

    let mut began = Instant::now();
    let mut rounds = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => {
                let took = began.elapsed();
                rounds += 1;
                say(&Outcome::Ran {
                    instructions: INSTRUCTIONS,
                    nanoseconds: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
                });
                began = Instant::now();
            }
            Ok(VcpuExit::Hlt) if rounds == ROUNDS => return Ok(()),
            Ok(VcpuExit::Hlt) => return Err("it halted before it was done".to_owned()),
            Ok(VcpuExit::InternalError) => {
                let what = if rounds == ROUNDS {
                    "popcnt ends in KVM_EXIT_INTERNAL_ERROR"
                } else {
                    "a loop of plain arithmetic ends in KVM_EXIT_INTERNAL_ERROR"
                };
                say(&Outcome::Unemulated {
                    what: what.to_owned(),
                });
                return Ok(());
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
