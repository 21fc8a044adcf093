//! Writes a seccomp filter as a BPF program (seccomp(2), Documentation/userspace-api/seccomp_filter.rst).
//!
//! The allowed numbers are a bitmap in the program's constants, so that it stays short and takes the same few steps for
//! every call: when a filter is installed the kernel runs it once for each number there is, and a program that compares
//! number after number costs more than a millisecond then.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What an argument of a call has to be. Arguments are compared in their lower 32 bits, which is all that the kernel looks
/// at in those that are checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// One of these values.
    OneOf(Vec<u32>),
    /// None of these bits.
    Without(u32),
    /// At least one of these bits.
    With(u32),
    /// The call does not exist: it fails with ENOSYS, so that the C library falls back to an older one.
    Absent,
}

/// What threads may call.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Numbers that are allowed with any arguments.
    calls: Vec<u32>,
    /// Numbers that are allowed when an argument (by index) is right.
    checked: BTreeMap<u32, (u8, Condition)>,
}

// Opcodes (linux/bpf_common.h).
const LOAD_ABSOLUTE: u16 = 0x20;
const LOAD_IMMEDIATE: u16 = 0x00;
const AND: u16 = 0x54;
const RIGHT_SHIFT: u16 = 0x74;
const RIGHT_SHIFT_X: u16 = 0x7c;
const TAX: u16 = 0x07;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on do not exist, or belong to the x32 interface.
const NUMBERS: u32 = 512;
const WORDS: usize = (NUMBERS / 32) as usize;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Jumps over `jt` or `jf` instructions.
fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn allow() -> sock_filter {
    statement(RETURN, libc::SECCOMP_RET_ALLOW)
}

/// Ends in SIGSYS, whose handler reports the call.
fn refuse() -> sock_filter {
    statement(RETURN, libc::SECCOMP_RET_TRAP)
}

impl Allowed {
    /// Allows calls with any arguments.
    pub fn calls(&mut self, numbers: &[libc::c_long]) {
        self.calls
            .extend(numbers.iter().filter_map(|&n| u32::try_from(n).ok()));
    }

    /// Allows a call when its argument `index` fulfils the condition. Values of the same call's conditions add up; this
    /// wins over [`Self::calls`].
    pub fn checked(&mut self, number: libc::c_long, index: u8, condition: Condition) {
        let Ok(number) = u32::try_from(number) else {
            return;
        };
        match (self.checked.get_mut(&number), condition) {
            (Some((_, Condition::OneOf(values))), Condition::OneOf(more)) => {
                values.extend(more);
                values.sort_unstable();
                values.dedup();
            }
            (_, condition) => {
                self.checked.insert(number, (index, condition));
            }
        }
    }

    /// True if the call may be made with some arguments.
    #[cfg(test)]
    pub fn allows(&self, number: u32) -> bool {
        self.calls.contains(&number) || self.checked.contains_key(&number)
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> BpfProgram {
        let mut program = vec![
            statement(LOAD_ABSOLUTE, ARCHITECTURE),
            branch(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
            refuse(),
            statement(LOAD_ABSOLUTE, NUMBER),
        ];
        for (&number, (index, condition)) in &self.checked {
            let block = check(*index, condition);
            // A block has a few instructions for each value, of which there are below 20.
            let length = u8::try_from(block.len()).unwrap_or(u8::MAX);
            program.push(branch(JUMP_EQUAL, number, 0, length));
            program.extend(block);
        }
        program.extend(self.bitmap());
        program
    }

    /// With the number loaded: allows what the bitmap holds.
    fn bitmap(&self) -> BpfProgram {
        let mut words = [0u32; WORDS];
        for &number in &self.calls {
            if let Some(word) = words.get_mut((number / 32) as usize) {
                *word |= 1 << (number % 32);
            }
        }
        let used: Vec<(u32, u32)> = (0u32..).zip(words).filter(|(_, word)| *word != 0).collect();
        let mut program = vec![
            branch(JUMP_GREATER_EQUAL, NUMBERS, 0, 1),
            refuse(),
            statement(AND, 31),
            statement(TAX, 0),
            statement(LOAD_ABSOLUTE, NUMBER),
            statement(RIGHT_SHIFT, 5),
        ];
        for (i, (index, _)) in used.iter().enumerate() {
            // Over the other comparisons and the refusal to the pair of this word. At most 16 words: below 48.
            let over = (used.len() - 1 - i) + 1 + 2 * i;
            program.push(branch(JUMP_EQUAL, *index, over as u8, 0));
        }
        program.push(refuse());
        for (i, (_, word)) in used.iter().enumerate() {
            program.push(statement(LOAD_IMMEDIATE, *word));
            // Over the pairs that follow.
            program.push(statement(JUMP, (2 * (used.len() - 1 - i)) as u32));
        }
        program.extend([
            statement(RIGHT_SHIFT_X, 0),
            statement(AND, 1),
            branch(JUMP_EQUAL, 1, 0, 1),
            allow(),
            refuse(),
        ]);
        program
    }
}

/// Decides on one call by its argument.
fn check(index: u8, condition: &Condition) -> BpfProgram {
    let mut block = vec![statement(LOAD_ABSOLUTE, ARGUMENTS + 8 * u32::from(index))];
    match condition {
        Condition::OneOf(values) => {
            for (i, value) in values.iter().enumerate() {
                // To the allowance behind the last comparison and the refusal.
                let over = u8::try_from(values.len() - i).unwrap_or(u8::MAX);
                block.push(branch(JUMP_EQUAL, *value, over, 0));
            }
            block.extend([refuse(), allow()]);
        }
        Condition::Without(bits) => {
            block.extend([branch(JUMP_SET, *bits, 1, 0), allow(), refuse()]);
        }
        Condition::Absent => {
            // ENOSYS
            return vec![statement(
                RETURN,
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
            )];
        }
        Condition::With(bits) => {
            block.extend([branch(JUMP_SET, *bits, 0, 1), allow(), refuse()]);
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does, on a call with these arguments.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 6]) -> bool {
        verdict(program, architecture, number, arguments) == libc::SECCOMP_RET_ALLOW
    }

    fn verdict(
        program: &[sock_filter],
        architecture: u32,
        number: u32,
        arguments: [u32; 6],
    ) -> u32 {
        let load = |offset: u32| match offset {
            0 => number,
            4 => architecture,
            _ => arguments[((offset - 16) / 8) as usize],
        };
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        loop {
            let i = &program[at];
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LOAD_ABSOLUTE => a = load(i.k),
                LOAD_IMMEDIATE => a = i.k,
                AND => a &= i.k,
                RIGHT_SHIFT => a >>= i.k,
                RIGHT_SHIFT_X => a >>= x,
                TAX => x = a,
                JUMP => at += i.k as usize,
                JUMP_EQUAL => jump(a == i.k),
                JUMP_GREATER_EQUAL => jump(a >= i.k),
                JUMP_SET => jump(a & i.k != 0),
                RETURN => return i.k,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn allowed() -> Allowed {
        let mut allowed = Allowed::default();
        allowed.calls(&[0, 1, 31, 32, 63, 230, 435, 511]);
        allowed.checked(16, 1, Condition::OneOf(vec![7, 9]));
        allowed.checked(16, 1, Condition::OneOf(vec![8]));
        allowed.checked(9, 2, Condition::Without(4));
        allowed.checked(56, 0, Condition::With(0x10000));
        allowed.checked(436, 0, Condition::Absent);
        allowed
    }

    #[test]
    fn program_allows_exactly_the_numbers_of_its_list() {
        let program = allowed().program();
        for number in 0..2000 {
            let expected = [0, 1, 31, 32, 63, 230, 435, 511].contains(&number);
            if ![9, 16, 56, 436].contains(&number) {
                assert_eq!(
                    run(&program, AUDIT_ARCH_X86_64, number, [0; 6]),
                    expected,
                    "{number}"
                );
            }
        }
        assert!(!run(&program, AUDIT_ARCH_X86_64, 0x4000_0000, [0; 6]));
        assert!(!run(&program, 0x4000_0003, 0, [0; 6]));
    }

    #[test]
    fn program_checks_arguments_of_checked_calls() {
        let program = allowed().program();
        let call = |number, index: usize, value| {
            let mut arguments = [0; 6];
            arguments[index] = value;
            run(&program, AUDIT_ARCH_X86_64, number, arguments)
        };
        assert_eq!(
            [6, 7, 8, 9, 10].map(|v| call(16, 1, v)),
            [false, true, true, true, false]
        );
        assert_eq!([3, 4, 7].map(|v| call(9, 2, v)), [true, false, false]);
        assert_eq!([0, 0x10000].map(|v| call(56, 0, v)), [false, true]);
        assert_eq!(
            verdict(&program, AUDIT_ARCH_X86_64, 436, [0; 6]),
            libc::SECCOMP_RET_ERRNO | 38
        );
    }
}
