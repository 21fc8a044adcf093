//! Runs compiled programs in a small interpreter of classic BPF.

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;

fn run(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| -> u32 {
        match offset {
            DATA_NUMBER => number,
            DATA_ARCHITECTURE => architecture,
            _ => {
                let index = ((offset - DATA_ARGUMENTS) / 8) as usize;
                if (offset - DATA_ARGUMENTS).is_multiple_of(8) {
                    arguments[index] as u32
                } else {
                    (arguments[index] >> 32) as u32
                }
            }
        }
    };
    let mut accumulator = 0;
    let mut place = 0;
    loop {
        let instruction = &filter.program[place];
        place += 1;
        let mut branch = |condition: bool| {
            place += usize::from(if condition {
                instruction.jt
            } else {
                instruction.jf
            });
        };
        match instruction.code {
            LOAD => accumulator = word(instruction.k),
            RETURN => return instruction.k,
            AND => accumulator &= instruction.k,
            JUMP => place += instruction.k as usize,
            EQUAL => branch(accumulator == instruction.k),
            GREATER => branch(accumulator > instruction.k),
            GREATER_EQUAL => branch(accumulator >= instruction.k),
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn call(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
    run(
        filter,
        AUDIT_ARCH_X86_64,
        calls::number(name).unwrap(),
        arguments,
    )
}

fn profile(json: &str) -> Filter {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

#[test]
fn allow_list_allows_what_it_names_and_nothing_else() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
            "syscalls":[{"names":["read","write","openat2","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    for name in ["read", "write", "openat2"] {
        assert_eq!(call(&filter, name, [0; 6]), ALLOW, "{name}");
    }
    for name in ["open", "close", "mount", "clone3"] {
        assert_eq!(call(&filter, name, [0; 6]), EPERM, "{name}");
    }
    assert_eq!(run(&filter, AUDIT_ARCH_X86_64, 500, [0; 6]), RETURN_ENOSYS);
    assert_eq!(
        run(&filter, AUDIT_ARCH_X86_64, X32_CALLS, [0; 6]),
        RETURN_ENOSYS
    );
    assert_eq!(run(&filter, 0x4000_0003, 3, [0; 6]), RETURN_KILL_PROCESS);
}

#[test]
fn deny_list_with_errno_gives_that_errno() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
                        {"names":["read"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    assert_eq!(call(&filter, "mkdir", [0; 6]), 0x0005_000d);
    assert_eq!(call(&filter, "mkdirat", [0; 6]), 0x0005_000d);
    assert_eq!(call(&filter, "read", [0; 6]), RETURN_KILL_PROCESS);
    assert_eq!(call(&filter, "rmdir", [0; 6]), ALLOW);
    assert_eq!(run(&filter, AUDIT_ARCH_X86_64, 900, [0; 6]), ALLOW);
}

#[test]
fn argument_operators_compare_all_64_bits() {
    let value = 0x1_0000_0005_u64;
    type Comparison = fn(u64, u64) -> bool;
    let cases: [(&str, Comparison); 6] = [
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_GT", |a, b| a > b),
        ("SCMP_CMP_GE", |a, b| a >= b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
    ];
    for (operator, expected) in cases {
        let filter = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["personality"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":1,"value":{value},"op":"{operator}"}}]}}]}}"#
        ));
        for argument in [0, 5, value - 1, value, value + 1, 0x2_0000_0000, u64::MAX] {
            let wanted = if expected(argument, value) {
                ALLOW
            } else {
                EPERM
            };
            assert_eq!(
                call(&filter, "personality", [9, argument, 0, 0, 0, 0]),
                wanted,
                "{argument:#x} {operator} {value:#x}"
            );
        }
    }
}

#[test]
fn masked_comparison_of_clone_flags_refuses_namespaces() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert_eq!(call(&filter, "clone", [17, 0, 0, 0, 0, 0]), ALLOW);
    let new_user = u64::from(libc::CLONE_NEWUSER as u32);
    assert_eq!(call(&filter, "clone", [new_user, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(call(&filter, "socket", [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "socket", [3, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn profile_that_needs_a_supervisor_is_refused() {
    let profile: LinuxSeccomp =
        serde_json::from_str(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap();
    assert_eq!(compile(&profile).unwrap_err(), SeccompError::Notify);
}
