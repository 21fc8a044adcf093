//! The container engine on a real kernel: namespaces, mounts, control groups, privileges, streams.
//!
//! Wants root and busybox; a case whose needs the machine does not meet is reported as skipped, with the reason. Each
//! case runs in a forked, single-threaded process with its own mount, UTS, IPC and network namespaces and its own
//! control group, which are gone afterwards.

mod cases;
mod fixture;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};

use fixture::{Fixture, SKIPPED};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in cases::ALL {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for (name, case) in cases::ALL {
        let wanted = filters.is_empty()
            || filters.iter().any(|filter| {
                if exact {
                    name == filter
                } else {
                    name.contains(filter.as_str())
                }
            });
        if !wanted {
            continue;
        }
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        match run(case) {
            Some(0) => {
                println!("ok");
                passed += 1;
            }
            Some(SKIPPED) => skipped += 1,
            other => {
                println!("FAILED ({other:?})");
                failed.push(*name);
            }
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} skipped",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len()
    );
    for name in &failed {
        println!("    failed: {name}");
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a case in a forked process and gives its exit code; `None`: a signal.
fn run(case: &cases::Case) -> Option<i32> {
    // SAFETY: this process has one thread, so that the child's copy is consistent.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // One line that says what was expected and where, never a stack: a case is short.
        std::panic::set_hook(Box::new(|panic| println!("{panic}")));
        let code = std::panic::catch_unwind(|| Fixture::run(*case)).unwrap_or(101);
        std::process::exit(code);
    }
    let mut status = 0;
    // SAFETY: waitpid writes one integer.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    fixture::clean_up(pid);
    ExitStatus::from_raw(status).code()
}
