//! `vmpod-supervise`: looks after one pod, from its preparation to its end. Started by `vmpod run` and by nobody else.
//!
//! A program of its own because it stays for as long as the pod runs: it has neither manifests nor registries nor a command
//! line for people in it, so that it is a tenth of `vmpod` in memory, and starts in a part of the time. The library does
//! everything.
//!
//! Exit status: 0 the pod was started and has ended, 1 it was not started.

use std::ffi::OsString;
use std::process::ExitCode;

use vmpod_shim::diagnostics;
use vmpod_shim::pod::journal::chain;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::supervisor::{self, SuperviseStart};

const USAGE: &str =
    "usage: vmpod-supervise RUN STATE ID LOCK-FD REPORT-FD (started by `vmpod run`)";

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<(Roots, String, i32, i32)> {
    let roots = Roots {
        run: arguments.next()?.into(),
        state: arguments.next()?.into(),
    };
    let id = arguments.next()?.into_string().ok()?;
    let mut number = || arguments.next()?.to_str()?.parse().ok();
    let descriptors = (number()?, number()?);
    arguments
        .next()
        .is_none()
        .then_some((roots, id, descriptors.0, descriptors.1))
}

fn main() -> ExitCode {
    let Some((roots, id, lock, report)) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    diagnostics::start(diagnostics::WARNINGS);
    match SuperviseStart::inherit(roots, id, lock, report) {
        Ok(start) => ExitCode::from(u8::from(!supervisor::supervise(start))),
        Err(error) => {
            eprintln!(
                "vmpod-supervise: cannot take over the pod: {}",
                chain(&error)
            );
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<(Roots, String, i32, i32)> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn parse_takes_five_words_and_nothing_else() {
        let words = ["/run/vmpod", "/var/lib/vmpod", "0123456789ab", "5", "6"];
        let (roots, id, lock, report) = parsed(&words).unwrap();
        assert_eq!(roots.state.to_str(), Some("/var/lib/vmpod"));
        assert_eq!((&*id, lock, report), ("0123456789ab", 5, 6));
        assert!(parsed(&words[..4]).is_none());
        assert!(parsed(&[&words[..], &["x"]].concat()).is_none());
        assert!(parsed(&["a", "b", "c", "5", "x"]).is_none());
    }
}
