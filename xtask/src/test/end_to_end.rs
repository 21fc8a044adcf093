//! The tests that need a host for pods. Where that is an emulated node, which has one processor, and this machine has more,
//! those of containerd run in a second node beside the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::Result;

use super::programs::{self, Program};
use super::tally::Tally;
use super::{counted, no_result_is_an_error};
use crate::bundle::{self, Bundle};
use crate::host::Host;
use crate::images;
use crate::packages;

/// The test program whose cases drive containerd, and the package that has it.
const CONTAINERD: &str = "containerd";

/// Releases whose containerd is driven as well, and the cases that are about the seam between containerd and the shim:
/// 1.7, and the newest that Debian has, 2.1 or later, where the runtime makes the sandbox itself.
const OTHER_CONTAINERDS: [(&str, &[&str]); 2] = [
    (
        "trixie",
        &["tasks::", "pods::", "exec_with", "port_forward"],
    ),
    (
        "sid",
        &[
            "tasks::",
            "pods::",
            "accidents::",
            "streams::",
            "exec_with",
            "port_forward",
            "user_namespace",
            "namespaces_of_the_host",
            "image_is_a_volume",
            "interface_has",
            "stats_count",
            "bad_input::",
        ],
    ),
];

/// End-to-end tests that may fail and pass when run again, in one run of everything. They drive clocks, signals and
/// machines of an emulated host whose speed changes under them; more than these few are a fault of the change.
const UNSTEADY_TESTS: usize = 3;

/// One run of a test program.
struct Round<'a> {
    title: String,
    program: &'a Program,
    /// Parts of names of tests; all tests when there is none.
    filters: Vec<&'a str>,
    environment: Vec<(String, String)>,
}

/// Something to show.
enum Shown {
    /// A line of a test program.
    Line(String),
    /// A title.
    Title(String),
}

impl Shown {
    fn show(self) {
        match self {
            Self::Line(line) => println!("{line}"),
            Self::Title(title) => eprintln!("-- {title}"),
        }
    }
}

/// What the rounds on one host found.
#[derive(Default)]
struct Found {
    tests: Tally,
    /// Programs that ended without a result, or could not be run, and why.
    broken: Vec<String>,
}

/// A host with what the tests need on it.
struct Ground {
    host: Host,
    environment: Vec<(String, String)>,
}

impl Ground {
    fn prepare(host: Host, bundle: &Bundle, debug: bool) -> Result<Self> {
        let place = host.place_bundle(bundle)?;
        images::ensure(&images::all(), &host, &place, images::Refresh::Changed)?;
        let binary = place.join("bin/vmpod").to_string_lossy().into_owned();
        let mut environment = vec![
            ("VMPOD_BIN".to_owned(), binary),
            // For others than vmpod that want the images too.
            ("VMPOD_IMAGES".to_owned(), images::archives()?.join(":")),
        ];
        if debug {
            environment.push(("VMPOD_DEBUG_BUNDLE".to_owned(), "1".to_owned()));
        }
        Ok(Self { host, environment })
    }

    /// Runs the rounds one after the other. When one cannot be run the others are not tried.
    fn run(
        &self,
        rounds: &[Round<'_>],
        again: &AtomicUsize,
        shown: &mut dyn FnMut(Shown),
    ) -> Found {
        let mut found = Found::default();
        for round in rounds {
            let mut tests = Tally::default();
            let ended = self.run_round(round, again, &mut tests, shown);
            found.tests.add(tests);
            match ended {
                Ok(status) => found
                    .broken
                    .extend(status.map(|status| format!("{} ({status})", round.title))),
                Err(error) => {
                    found.broken.push(format!("{} ({error:#})", round.title));
                    break;
                }
            }
        }
        found
    }

    /// Runs a program, and once more what failed in it, as long as `again` lasts.
    fn run_round(
        &self,
        round: &Round<'_>,
        again: &AtomicUsize,
        tests: &mut Tally,
        shown: &mut dyn FnMut(Shown),
    ) -> Result<Option<u8>> {
        shown(Shown::Title(round.title.clone()));
        let status = self.run_program(round, &round.filters, tests, shown)?;
        let failed = tests.failures().to_vec();
        let left = |left: usize| left.checked_sub(failed.len());
        if !failed.is_empty()
            && again
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok()
        {
            let names = failed.join(", ");
            shown(Shown::Title(format!("{}, once more: {names}", round.title)));
            let mut arguments = vec!["--exact"];
            arguments.extend(failed.iter().map(String::as_str));
            let mut second = Tally::default();
            self.run_program(round, &arguments, &mut second, shown)?;
            tests.run_again(&failed, &second);
        }
        Ok(status)
    }

    fn run_program(
        &self,
        round: &Round<'_>,
        more: &[&str],
        tally: &mut Tally,
        shown: &mut dyn FnMut(Shown),
    ) -> Result<Option<u8>> {
        let mut arguments = vec![round.program.executable.clone()];
        arguments.extend(["--ignored", "--test-threads=1"].map(str::to_owned));
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let mut environment = self.environment.clone();
        environment.extend(round.environment.iter().cloned());
        let invocation = round.program.invocation(arguments, environment);
        let mut show = |line: &str| shown(Shown::Line(line.to_owned()));
        counted(tally, &mut show, |lines| {
            self.host.run(&invocation, Some(lines))
        })
    }
}

/// Runs the tests that need a host for pods on one, in every test program that has any.
///
/// # Errors
/// When there is no host, something does not build, or a program ends without a result.
pub fn run(debug: bool, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let programs = programs::build()?;
    let bundle = bundle::build(debug)?;
    let mut first = Vec::new();
    let mut second = Vec::new();
    for program in &programs {
        if !program.has_ignored_tests(filter)? {
            continue;
        }
        let rounds = if program.name == CONTAINERD {
            &mut second
        } else {
            &mut first
        };
        rounds.push(Round {
            title: program.title(),
            program,
            filters: filter.into_iter().collect(),
            environment: Vec::new(),
        });
        if filter.is_none() && program.name == CONTAINERD {
            rounds.extend(other_containerds(program)?);
        }
    }
    let host = Host::ready()?;
    // With a filter there is little to do, most often in one of the two.
    let beside = if filter.is_none() {
        host.beside()?
    } else {
        None
    };
    let ground = Ground::prepare(host, &bundle, debug)?;
    let again = AtomicUsize::new(UNSTEADY_TESTS);
    let found = match beside {
        Some(beside) => {
            let beside = Ground::prepare(beside, &bundle, debug)?;
            let (of_first, of_second) = side_by_side((&ground, &first), (&beside, &second), &again);
            vec![of_first, of_second]
        }
        None => {
            first.append(&mut second);
            vec![ground.run(&first, &again, &mut Shown::show)]
        }
    };
    let mut broken = Vec::new();
    for found in found {
        tally.add(found.tests);
        broken.extend(found.broken);
    }
    no_result_is_an_error(&broken)
}

/// The cases about the seam between containerd and the shim, with the containerd of other releases.
fn other_containerds(program: &Program) -> Result<Vec<Round<'_>>> {
    let path = std::env::var("PATH").unwrap_or_default();
    let round = |(release, cases): (&str, &'static [&'static str])| {
        let place = packages::unpacked_of_release(release, &[CONTAINERD])?;
        let programs = place.join("usr/bin");
        Ok(Round {
            title: format!("{}, containerd of {release}", program.title()),
            program,
            filters: cases.to_vec(),
            environment: vec![("PATH".to_owned(), format!("{}:{path}", programs.display()))],
        })
    };
    OTHER_CONTAINERDS.into_iter().map(round).collect()
}

/// Runs the rounds of both at once. What the second has to say is shown when the first is through.
fn side_by_side(
    (first, first_rounds): (&Ground, &[Round<'_>]),
    (second, second_rounds): (&Ground, &[Round<'_>]),
    again: &AtomicUsize,
) -> (Found, Found) {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let second = scope.spawn(move || {
            second.run(second_rounds, again, &mut |shown| {
                let _ = sender.send(shown);
            })
        });
        let of_first = first.run(first_rounds, again, &mut Shown::show);
        receiver.into_iter().for_each(Shown::show);
        let of_second = second
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (of_first, of_second)
    })
}
