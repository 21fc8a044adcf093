//! The device rules of `linux.resources.devices` as a BPF program on the container's control group.
//!
//! The program is built by hand (a dozen instructions a rule) and attached before the container's first process is
//! born. Later rules win over earlier ones, and what no rule names is denied. Loaded programs are kept by the engine and
//! attached again where the rules are the same, because checking and compiling one costs more than the rest of a
//! container's control group. Source: bpf(2), the kernel's Documentation/admin-guide/cgroup-v2.rst ("Device
//! controller"), include/uapi/linux/bpf.h.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::boot::HIERARCHY;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Programs that are kept: pods rarely have containers of more kinds, and each is a descriptor.
const KEPT: usize = 8;

/// Access bits of `struct bpf_cgroup_dev_ctx`.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MAKE | READ | WRITE;
/// Kinds of `struct bpf_cgroup_dev_ctx`.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// BPF_LDX | BPF_MEM | BPF_W.
const LOAD_WORD: u8 = 0x61;
/// BPF_ALU | BPF_AND | BPF_K.
const AND: u8 = 0x54;
/// BPF_ALU | BPF_RSH | BPF_K.
const SHIFT_RIGHT: u8 = 0x74;
/// BPF_ALU | BPF_MOV | BPF_X.
const COPY: u8 = 0xbc;
/// BPF_ALU | BPF_MOV | BPF_K.
const SET: u8 = 0xb4;
/// BPF_JMP32 | BPF_JNE | BPF_K.
const JUMP_UNLESS_EQUAL: u8 = 0x56;
/// BPF_JMP32 | BPF_JNE | BPF_X.
const JUMP_UNLESS_SAME: u8 = 0x5e;
/// BPF_JMP32 | BPF_JEQ | BPF_K.
const JUMP_IF_EQUAL: u8 = 0x16;
/// BPF_JMP | BPF_EXIT.
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: u32,
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// One rule with everything that matches anything left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Rule {
    fn matches_all(self) -> bool {
        self.kind.is_none() && self.access == ALL && self.major.is_none() && self.minor.is_none()
    }
}

/// Devices that every container may use whatever its rules: making nodes, the default devices, and terminals.
const ALWAYS: [(u32, u32, Option<u32>, Option<u32>); 11] = [
    (CHARACTER, MAKE, None, None),
    (BLOCK, MAKE, None, None),
    (CHARACTER, ALL, Some(1), Some(3)),
    (CHARACTER, ALL, Some(1), Some(5)),
    (CHARACTER, ALL, Some(1), Some(7)),
    (CHARACTER, ALL, Some(1), Some(8)),
    (CHARACTER, ALL, Some(1), Some(9)),
    (CHARACTER, ALL, Some(5), Some(0)),
    (CHARACTER, ALL, Some(5), Some(1)),
    (CHARACTER, ALL, Some(5), Some(2)),
    (CHARACTER, ALL, Some(136), None),
];

fn rules(given: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    given
        .iter()
        .flat_map(|rule| {
            let access = rule.access().as_deref().unwrap_or("rwm");
            let access = if access.is_empty() { "rwm" } else { access };
            let access = access.chars().fold(0, |bits, letter| {
                bits | match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MAKE,
                    _ => 0,
                }
            });
            let kind = match rule.typ() {
                None | Some(LinuxDeviceType::A) => None,
                Some(LinuxDeviceType::B) => Some(BLOCK),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
                Some(LinuxDeviceType::P) => return None,
            };
            Some(Rule {
                allow: rule.allow(),
                kind,
                access,
                major: number(rule.major()),
                minor: number(rule.minor()),
            })
        })
        .chain(ALWAYS.into_iter().map(|(kind, access, major, minor)| Rule {
            allow: true,
            kind: Some(kind),
            access,
            major,
            minor,
        }))
        .collect()
}

/// The program for `given`; `None` when everything is allowed and no program is needed.
fn program(given: &[LinuxDeviceCgroup]) -> Option<Vec<Instruction>> {
    let rules = rules(given);
    // Read from the end, the first match decides. When only allowances come before one of everything: no filter.
    let everything = rules
        .iter()
        .rev()
        .find(|rule| !rule.allow || rule.matches_all());
    if given.is_empty() || everything.is_some_and(|rule| rule.allow) {
        return None;
    }
    // r1: context; r2: kind; r3: access; r4: major; r5: minor; r1 is scratch afterwards.
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for (place, rule) in rules.iter().enumerate().rev() {
        // The same rule further on has decided already.
        let said = rules.iter().skip(place + 1).any(|later| later == rule);
        if rule.access == 0 || said {
            continue;
        }
        let mut block: Vec<Instruction> = Vec::new();
        if let Some(kind) = rule.kind {
            block.push(instruction(JUMP_UNLESS_EQUAL, 2, 0, 0, kind));
        }
        if rule.access != ALL {
            block.push(instruction(COPY, 1, 3, 0, 0));
            block.push(instruction(AND, 1, 0, 0, rule.access));
            // An allowance must cover all that is wanted; a denial holds when it touches any of it.
            block.push(if rule.allow {
                instruction(JUMP_UNLESS_SAME, 1, 3, 0, 0)
            } else {
                instruction(JUMP_IF_EQUAL, 1, 0, 0, 0)
            });
        }
        if let Some(major) = rule.major {
            block.push(instruction(JUMP_UNLESS_EQUAL, 4, 0, 0, major));
        }
        if let Some(minor) = rule.minor {
            block.push(instruction(JUMP_UNLESS_EQUAL, 5, 0, 0, minor));
        }
        block.push(instruction(SET, 0, 0, 0, u32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (place, instruction) in block.iter_mut().enumerate() {
            if matches!(
                instruction.code,
                JUMP_UNLESS_EQUAL | JUMP_UNLESS_SAME | JUMP_IF_EQUAL
            ) {
                instruction.offset = i16::try_from(length - place - 1).unwrap_or(i16::MAX);
            }
        }
        code.extend(block);
        if rule.matches_all() {
            // Anything after this would be unreachable, which the verifier refuses.
            return Some(code);
        }
    }
    code.push(instruction(SET, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    Some(code)
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads here.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH reads here.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the structure is a prefix of union bpf_attr of the size given, and everything it points to outlives the
    // call; the kernel only reads it for these commands.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            mem::size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let loaded = bpf(
        BPF_PROG_LOAD,
        &LoadAttributes {
            kind: BPF_PROG_TYPE_CGROUP_DEVICE,
            count: u32::try_from(code.len()).map_err(io::Error::other)?,
            instructions: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        },
    )?;
    let fd = libc::c_int::try_from(loaded).map_err(io::Error::other)?;
    // SAFETY: BPF_PROG_LOAD returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has `program` decide, with those of the groups above and below, about the devices of the control group behind `group`.
fn attach_to(group: impl AsFd, program: &OwnedFd) -> io::Result<()> {
    bpf(
        BPF_PROG_ATTACH,
        &AttachAttributes {
            target: group.as_fd().as_raw_fd().unsigned_abs(),
            program: program.as_raw_fd().unsigned_abs(),
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        },
    )?;
    Ok(())
}

/// The programs that were loaded so far, with their code.
#[derive(Debug, Default)]
pub struct DeviceFilters {
    // Shared by all calls that make containers; never held across an await.
    loaded: Mutex<Vec<(Vec<Instruction>, OwnedFd)>>,
}

impl DeviceFilters {
    /// Loads the program of containers without device rules of their own ahead, so that a machine that is saved as a
    /// template has it. It stays loaded for good, and with it the area of 2 MiB that the kernel sets up for the first
    /// compiled program. A program that allows everything is attached at the top of the control groups: with the first
    /// one that is attached anywhere the kernel rewrites its code, which machines of a template otherwise have in common.
    ///
    /// # Errors
    /// The kernel refuses programs.
    pub fn prepare(&self) -> io::Result<()> {
        let mut deny_all = LinuxDeviceCgroup::default();
        deny_all.set_allow(false);
        if let Some(code) = program(&[deny_all]) {
            self.with_program(code, |_| Ok(()))?;
        }
        let all = [instruction(SET, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)];
        attach_to(File::open(HIERARCHY)?, &load(&all)?)
    }

    /// Attaches the rules to the control group behind `group`, for good.
    pub fn attach(&self, given: &[LinuxDeviceCgroup], group: impl AsFd) -> io::Result<()> {
        let Some(code) = program(given) else {
            return Ok(());
        };
        self.with_program(code, |program| attach_to(group, program))
    }

    fn with_program(
        &self,
        code: Vec<Instruction>,
        act: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, program)) = loaded.iter().find(|(known, _)| *known == code) {
            return act(program);
        }
        let program = load(&code)?;
        act(&program)?;
        if loaded.len() < KEPT {
            loaded.push((code, program));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    /// Runs the program on one access.
    fn allowed(code: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0_u32; 6];
        let mut place = 0;
        loop {
            let instruction = code[place];
            place += 1;
            let to = usize::from(instruction.registers & 15);
            let from = usize::from(instruction.registers >> 4);
            let jump = match instruction.code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(instruction.offset / 4).unwrap()];
                    false
                }
                COPY => {
                    registers[to] = registers[from];
                    false
                }
                AND => {
                    registers[to] &= instruction.immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= instruction.immediate;
                    false
                }
                SET => {
                    registers[to] = instruction.immediate;
                    false
                }
                JUMP_UNLESS_EQUAL => registers[to] != instruction.immediate,
                JUMP_UNLESS_SAME => registers[to] != registers[from],
                JUMP_IF_EQUAL => registers[to] == instruction.immediate,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if jump {
                place += usize::try_from(instruction.offset).unwrap();
            }
        }
    }

    #[test]
    fn rules_of_an_ordinary_container_allow_default_devices_only() {
        let code = program(&given(r#"[{"allow":false,"access":"rwm"}]"#)).unwrap();
        assert!(allowed(&code, CHARACTER, READ | WRITE, 1, 3));
        assert!(allowed(&code, CHARACTER, READ, 136, 7));
        assert!(allowed(&code, BLOCK, MAKE, 8, 0));
        assert!(!allowed(&code, BLOCK, READ, 8, 0));
        assert!(!allowed(&code, CHARACTER, READ, 1, 1));
    }

    #[test]
    fn rules_that_repeat_what_everybody_may_do_make_the_same_program() {
        let plain = program(&given(r#"[{"allow":false,"access":"rwm"}]"#));
        let repeated = program(&given(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","access":"m"},
                {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]"#,
        ));
        assert!(plain.is_some());
        assert_eq!(plain, repeated);
        let mut prepared = LinuxDeviceCgroup::default();
        prepared.set_allow(false);
        assert_eq!(plain, program(&[prepared]));
    }

    #[test]
    fn rule_for_one_device_allows_the_access_it_names() {
        let code = program(&given(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"r"}]"#,
        ))
        .unwrap();
        assert!(allowed(&code, CHARACTER, READ, 10, 229));
        assert!(!allowed(&code, CHARACTER, READ | WRITE, 10, 229));
        assert!(!allowed(&code, CHARACTER, READ, 10, 228));
        assert!(!allowed(&code, BLOCK, READ, 10, 229));
    }

    #[test]
    fn denial_after_an_allowance_wins() {
        let code = program(&given(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":1,"access":"w"}]"#,
        ))
        .unwrap();
        assert!(allowed(&code, CHARACTER, READ, 1, 1));
        assert!(!allowed(&code, CHARACTER, READ | WRITE, 1, 1));
        assert!(allowed(&code, BLOCK, WRITE, 8, 1));
    }

    #[test]
    fn privileged_container_needs_no_program() {
        assert_eq!(
            program(&given(
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#
            )),
            None
        );
        assert_eq!(program(&[]), None);
    }
}
