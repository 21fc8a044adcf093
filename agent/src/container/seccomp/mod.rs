//! `linux.seccomp` compiled to a classic BPF program, as libseccomp would understand it on x86_64.
//!
//! Pure but for [`Filter::install`]. System calls with the same unconditional action are joined into ranges and found
//! by binary search, so that a profile with hundreds of calls costs about ten instructions a call. Only the native
//! architecture is served: the guest's kernel has neither 32-bit nor x32 calls. Not supported: SCMP_ACT_NOTIFY.
//! Source: seccomp(2), OCI runtime specification (config-linux.md, "Seccomp").

mod calls;

use std::collections::BTreeMap;
use std::io;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Calls from here on are of the x32 kind.
const X32_CALLS: u32 = 0x4000_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
const FLAG_LOG: libc::c_ulong = 2;
const FLAG_SPEC_ALLOW: libc::c_ulong = 4;

/// BPF_LD | BPF_W | BPF_ABS.
const LOAD: u16 = 0x20;
/// BPF_RET | BPF_K.
const RETURN: u16 = 0x06;
/// BPF_ALU | BPF_AND | BPF_K.
const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA.
const JUMP: u16 = 0x05;
/// BPF_JMP | BPF_JEQ | BPF_K.
const EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGT | BPF_K.
const GREATER: u16 = 0x25;
/// BPF_JMP | BPF_JGE | BPF_K.
const GREATER_EQUAL: u16 = 0x35;

/// Offsets in `struct seccomp_data`.
const DATA_NUMBER: u32 = 0;
const DATA_ARCHITECTURE: u32 = 4;
const DATA_ARGUMENTS: u32 = 16;

/// A program may have at most this many instructions (BPF_MAXINSNS).
const INSTRUCTIONS: usize = 4096;

/// A profile that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// The action needs a supervisor, which the guest does not have.
    #[error("action SCMP_ACT_NOTIFY is not supported")]
    Notify,
    /// An argument index beyond the six of a system call.
    #[error("argument index {0} of a system call is out of range")]
    Argument(usize),
    /// More rules than a BPF program can hold.
    #[error("the profile compiles to {0} instructions, the kernel takes {INSTRUCTIONS}")]
    TooLong(usize),
}

/// A compiled profile.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    action: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Action(u32),
    /// Tried in order; the action when none matches.
    Rules(Vec<Rule>, u32),
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::Notify);
    }
    Ok(action.as_u32(errno.map(|errno| errno & 0xffff)))
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        let conditions = entry.args().clone().unwrap_or_default();
        if let Some(bad) = conditions.iter().find(|condition| condition.index() > 5) {
            return Err(SeccompError::Argument(bad.index()));
        }
        for name in entry.names() {
            // Calls of other architectures and kernels are in every profile; they cannot be made here.
            let Some(number) = calls::number(name) else {
                continue;
            };
            let of_call = rules.entry(number).or_default();
            if repeats_an_argument(&conditions) {
                // Two conditions on one argument mean "either", as with runc.
                of_call.extend(conditions.iter().map(|condition| Rule {
                    conditions: vec![*condition],
                    action,
                }));
            } else {
                of_call.push(Rule {
                    conditions: conditions.clone(),
                    action,
                });
            }
        }
    }
    let segments = segments(rules, default);
    let mut program = vec![
        statement(LOAD, DATA_ARCHITECTURE),
        jump(EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        statement(RETURN, RETURN_KILL_PROCESS),
        statement(LOAD, DATA_NUMBER),
        jump(GREATER_EQUAL, X32_CALLS, 0, 1),
        statement(RETURN, RETURN_ENOSYS),
    ];
    program.extend(search(&segments));
    if program.len() > INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // One thread, and no supervisor to be waited for.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    Ok(Filter { program, flags })
}

fn repeats_an_argument(conditions: &[LinuxSeccompArg]) -> bool {
    conditions.iter().enumerate().any(|(place, condition)| {
        conditions
            .iter()
            .take(place)
            .any(|earlier| earlier.index() == condition.index())
    })
}

/// Ranges of call numbers, each from its start to the next one's start, with what to do there.
fn segments(rules: BTreeMap<u32, Vec<Rule>>, default: u32) -> Vec<(u32, Leaf)> {
    let last = rules.keys().next_back().copied();
    let mut segments: Vec<(u32, Leaf)> = Vec::new();
    let push = |segments: &mut Vec<(u32, Leaf)>, start: u32, leaf: Leaf| {
        if segments.last().map(|(_, leaf)| leaf) != Some(&leaf) {
            segments.push((start, leaf));
        }
    };
    let mut next = 0;
    for (number, rules) in rules {
        if number > next {
            push(&mut segments, next, Leaf::Action(default));
        }
        let unconditional = rules
            .iter()
            .find(|rule| rule.conditions.is_empty())
            .map(|rule| rule.action);
        let conditional: Vec<Rule> = rules
            .into_iter()
            .filter(|rule| !rule.conditions.is_empty())
            .collect();
        let leaf = match (conditional.is_empty(), unconditional) {
            (true, Some(action)) => Leaf::Action(action),
            (_, unconditional) => Leaf::Rules(conditional, unconditional.unwrap_or(default)),
        };
        push(&mut segments, number, leaf);
        next = number + 1;
    }
    // A call newer than the profile does not exist as far as its author knew: programs fall back on ENOSYS, but not
    // on EPERM. runc does the same.
    let is_errno = default & 0xffff_0000 == 0x0005_0000;
    let newer = if last.is_some() && is_errno {
        RETURN_ENOSYS
    } else {
        default
    };
    push(&mut segments, next, Leaf::Action(newer));
    segments
}

/// Binary search over ranges; the call number is in the accumulator. Every path ends in a return.
fn search(segments: &[(u32, Leaf)]) -> Vec<libc::sock_filter> {
    match segments {
        [] => Vec::new(),
        [(_, leaf)] => emit_leaf(leaf),
        _ => {
            let (left, right) = segments.split_at(segments.len() / 2);
            let boundary = right.first().map_or(0, |(start, _)| *start);
            let left = search(left);
            let mut code = vec![
                jump(GREATER_EQUAL, boundary, 0, 1),
                statement(JUMP, u32::try_from(left.len()).unwrap_or(u32::MAX)),
            ];
            code.extend(left);
            code.extend(search(right));
            code
        }
    }
}

fn emit_leaf(leaf: &Leaf) -> Vec<libc::sock_filter> {
    match leaf {
        Leaf::Action(action) => vec![statement(RETURN, *action)],
        Leaf::Rules(rules, otherwise) => {
            let mut code = Vec::new();
            for rule in rules {
                code.extend(emit_rule(rule));
            }
            code.push(statement(RETURN, *otherwise));
            code
        }
    }
}

/// A jump target inside a condition.
#[derive(Clone, Copy)]
enum To {
    /// Instructions ahead in the same condition.
    Ahead(u8),
    /// Past the whole rule: it does not match.
    Fail,
}

fn emit_rule(rule: &Rule) -> Vec<libc::sock_filter> {
    let mut pending: Vec<(u16, u32, To, To)> = Vec::new();
    for condition in &rule.conditions {
        emit_condition(condition, &mut pending);
    }
    let length = pending.len() + 1;
    let mut code: Vec<libc::sock_filter> = pending
        .into_iter()
        .enumerate()
        .map(|(place, (code, k, yes, no))| {
            let resolve = |to| match to {
                To::Ahead(count) => count,
                // At most 6 conditions of at most 6 instructions: always in range.
                To::Fail => u8::try_from(length - place - 1).unwrap_or(u8::MAX),
            };
            jump(code, k, resolve(yes), resolve(no))
        })
        .collect();
    code.push(statement(RETURN, rule.action));
    code
}

fn emit_condition(condition: &LinuxSeccompArg, code: &mut Vec<(u16, u32, To, To)>) {
    use LinuxSeccompOperator as Op;
    use To::{Ahead, Fail};
    let low_offset = DATA_ARGUMENTS + 8 * u32::try_from(condition.index()).unwrap_or(0);
    let split = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let (high, low) = split(condition.value());
    let load_high = (LOAD, low_offset + 4, Ahead(0), Ahead(0));
    let load_low = (LOAD, low_offset, Ahead(0), Ahead(0));
    match condition.op() {
        Op::ScmpCmpEq => code.extend([
            load_high,
            (EQUAL, high, Ahead(0), Fail),
            load_low,
            (EQUAL, low, Ahead(0), Fail),
        ]),
        Op::ScmpCmpNe => code.extend([
            load_high,
            (EQUAL, high, Ahead(0), Ahead(2)),
            load_low,
            (EQUAL, low, Fail, Ahead(0)),
        ]),
        op @ (Op::ScmpCmpGt | Op::ScmpCmpGe) => code.extend([
            load_high,
            (GREATER, high, Ahead(3), Ahead(0)),
            (EQUAL, high, Ahead(0), Fail),
            load_low,
            (
                if op == Op::ScmpCmpGt {
                    GREATER
                } else {
                    GREATER_EQUAL
                },
                low,
                Ahead(0),
                Fail,
            ),
        ]),
        op @ (Op::ScmpCmpLt | Op::ScmpCmpLe) => code.extend([
            load_high,
            (GREATER, high, Fail, Ahead(0)),
            (EQUAL, high, Ahead(0), Ahead(2)),
            load_low,
            (
                if op == Op::ScmpCmpLt {
                    GREATER_EQUAL
                } else {
                    GREATER
                },
                low,
                Fail,
                Ahead(0),
            ),
        ]),
        Op::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = split(condition.value_two().unwrap_or(0));
            code.extend([
                load_high,
                (AND, high, Ahead(0), Ahead(0)),
                (EQUAL, wanted_high, Ahead(0), Fail),
                load_low,
                (AND, low, Ahead(0), Ahead(0)),
                (EQUAL, wanted_low, Ahead(0), Fail),
            ]);
        }
    }
}

fn statement(code: u16, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

impl Filter {
    /// Installs the filter in the calling process, for good. Wants no_new_privs or CAP_SYS_ADMIN.
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `len` instructions from `filter`, which outlives the call and is not written to.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                SECCOMP_SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
