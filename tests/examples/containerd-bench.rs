//! Measures pods of a real containerd, under runc and under vmpod, for `cargo xtask bench`: each line of its output is a
//! figure's name, a tab, and nanoseconds, or KiB where the name says so. In a node that counts instructions, nanoseconds
//! are instructions.
//!
//! Usage: `containerd-bench SAMPLES`, with the environment of the test program `containerd`.

use std::time::{Duration, Instant};

use rustix::fs::inotify;
use vmpod_tests::{Container, Sandbox, containerd, processes_with};

/// What a container writes, which is waited for.
const COMMAND: &str = "echo ready; exec sleep 100000";

fn say(name: &str, value: u128) {
    println!("{name}\t{value}");
}

/// Waits until the container has written something. Sleeps in between, because an idle wait costs no instructions.
fn await_output(container: &Container<'_>) {
    let log = container.log_path();
    let directory = log.parent().expect("a directory of logs");
    let watch = inotify::init(inotify::CreateFlags::empty()).expect("inotify");
    let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&watch, directory, wanted).expect("watch the logs");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    while !std::fs::metadata(log).is_ok_and(|found| found.len() > 0) {
        events.next().expect("an event of the log");
    }
}

/// A pod with one container, to its first output. Returns what `RunPodSandbox` took, and all of it.
fn start(handler: &str) -> (Duration, Duration) {
    let begun = Instant::now();
    let pod = Sandbox::run(handler);
    let sandbox = begun.elapsed();
    let container = pod.shell(COMMAND);
    await_output(&container);
    (sandbox, begun.elapsed())
}

/// So many pods at once, to the first output of the last one.
fn many(handler: &str, pods: usize) -> Duration {
    let begun = Instant::now();
    let barrier = std::sync::Barrier::new(pods + 1);
    std::thread::scope(|scope| {
        for _ in 0..pods {
            scope.spawn(|| {
                let pod = Sandbox::run(handler);
                let container = pod.shell(COMMAND);
                await_output(&container);
                barrier.wait();
            });
        }
        barrier.wait();
        begun.elapsed()
    })
}

/// KiB of the process's share of memory; `None` of one that has gone. Guest memory, which is kept out of core dumps
/// (flag `dd`), is left out.
fn share(pid: u32) -> Option<u128> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut sum, mut pss, mut special) = (0, 0, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") => pss = words.next()?.parse().ok()?,
            Some("VmFlags:") if special || !words.any(|flag| flag == "dd") => sum += pss,
            Some(first) if !first.ends_with(':') => {
                special = words.nth(4).is_some_and(|path| path.starts_with('['));
            }
            _ => {}
        }
    }
    Some(sum)
}

fn main() {
    let samples: usize = std::env::args()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("usage: containerd-bench SAMPLES");
    containerd();
    for handler in ["runc", "vmpod"] {
        // The first fills caches, and leaves the template.
        for sample in 0..=samples {
            let (sandbox, whole) = start(handler);
            if sample > 0 {
                say(&format!("sandbox {handler}"), sandbox.as_nanos());
                say(&format!("start {handler}"), whole.as_nanos());
            }
        }
        for pods in [5, 10] {
            let took = many(handler, pods);
            say(&format!("start {pods} {handler}"), took.as_nanos());
        }
        let pod = Sandbox::run(handler);
        let container = pod.shell(COMMAND);
        await_output(&container);
        for sample in 0..=samples {
            let begun = Instant::now();
            let ran = container.exec(&["true"], 60).expect("an exec");
            assert_eq!(ran.code, 0, "{ran:?}");
            if sample > 0 {
                say(&format!("exec {handler}"), begun.elapsed().as_nanos());
            }
        }
        // What the guest has freed is on its way back to the host for a moment.
        std::thread::sleep(Duration::from_secs(5));
        let programs = [&format!("containerd-shim-{handler}-v2"), "vmpod-vmm"];
        let shares = programs
            .into_iter()
            .flat_map(processes_with)
            .filter_map(|(pid, _)| share(pid));
        say(&format!("memory {handler} KiB"), shares.sum());
    }
    containerd().kill();
}
