//! `vmpod-vmm`: one machine, one process. Takes its configuration and orders on a control socket (`vmpod-vmm-api`).
//!
//! Exit status: 0 the machine ended in order (stop, reset, signal, pod host gone), 1 it could not be created,
//! 2 it ended out of order (panic, triple fault, KVM or device error).

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use vmpod_vmm::control::{self, Signals, Source, chain};
use vmpod_vmm_api::ExitReason;

const USAGE: &str = "usage: vmpod-vmm --control-fd N | --control PATH | --version\n\
    --control-fd N   serve the inherited Unix stream socket N; end with it and with the parent process\n\
    --control PATH   listen on a Unix socket at PATH\n\
    --version        print the version\n";

enum Action {
    Serve { fd: i32 },
    Listen { path: PathBuf },
    Version,
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Action> {
    let option = arguments.next()?;
    let action = match option.to_str()? {
        "--control-fd" => Action::Serve {
            fd: arguments.next()?.to_str()?.parse().ok()?,
        },
        "--control" => Action::Listen {
            path: arguments.next()?.into(),
        },
        "--version" => Action::Version,
        _ => return None,
    };
    arguments.next().is_none().then_some(action)
}

fn main() -> ExitCode {
    let source = match parse(std::env::args_os().skip(1)) {
        Some(Action::Version) => {
            println!("vmpod-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(Action::Serve { fd }) => die_with_parent()
            .map_err(|e| format!("ask for the parent's death signal: {e}"))
            .and_then(|()| Source::inherited(fd).map_err(|e| chain(&e))),
        Some(Action::Listen { path }) => Source::listen(&path).map_err(|e| chain(&e)),
        None => {
            eprint!("{USAGE}");
            return ExitCode::from(1);
        }
    };
    let result = source.and_then(|source| {
        let signals = Signals::block().map_err(|e| format!("block signals: {e}"))?;
        control::serve(source, signals).map_err(|e| chain(&e))
    });
    match result {
        Ok(reason) => {
            let status = status(&reason);
            if status != 0 {
                eprintln!("vmpod-vmm: {reason}");
            }
            ExitCode::from(status)
        }
        Err(message) => {
            eprintln!("vmpod-vmm: {message}");
            ExitCode::from(1)
        }
    }
}

fn status(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::Stopped
        | ExitReason::Terminated { .. }
        | ExitReason::Reset
        | ExitReason::HostGone => 0,
        ExitReason::Panic { .. }
        | ExitReason::TripleFault
        | ExitReason::Hypervisor { .. }
        | ExitReason::Device { .. } => 2,
    }
}

/// Has the kernel kill this process when its parent dies, as a second line behind the control socket's end.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: these calls have no memory arguments.
    unsafe {
        let parent = libc::getppid();
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that died before the call sends no signal.
        if libc::getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
    }
    Ok(())
}
