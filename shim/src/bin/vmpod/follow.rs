//! The output of a pod's containers as it comes: log files, across attempts, and what wakes a reader of them.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use vmpod_shim::pod::logs::{Line, LogReader, LogStream, all_attempts};
use vmpod_shim::pod::roots::PodPaths;

/// How often files are looked at even though nothing said that they changed.
const INTERVAL: Duration = Duration::from_millis(500);

/// How lines are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The container's name in front.
    pub names: bool,
    /// The time in front.
    pub timestamps: bool,
}

/// One container's log as far as it was read.
#[derive(Debug)]
struct Source {
    container: String,
    /// Attempt being read.
    attempt: Option<(u32, LogReader)>,
    /// Attempts before this one are not shown.
    from: u32,
    /// Nor those after this one.
    to: u32,
    /// Beginnings of lines, standard output and error.
    partial: [Vec<u8>; 2],
}

/// Follows containers of a pod.
#[derive(Debug)]
pub struct Follower {
    paths: PodPaths,
    sources: Vec<Source>,
    style: Style,
    width: usize,
    colours: bool,
    /// Whether what else is known of the pod is of interest, as its end is to who has no other word of it.
    status_too: bool,
}

impl Follower {
    /// Follows `containers` of the pod at `paths`, from the beginning of each log of attempt `from` on.
    pub fn new(paths: &PodPaths, containers: &[String], style: Style) -> Self {
        Self {
            paths: paths.clone(),
            sources: containers
                .iter()
                .map(|container| Source {
                    container: container.clone(),
                    attempt: None,
                    from: 0,
                    to: u32::MAX,
                    partial: [Vec::new(), Vec::new()],
                })
                .collect(),
            style,
            width: containers.iter().map(String::len).max().unwrap_or(0),
            colours: io::stdout().is_terminal(),
            status_too: true,
        }
    }

    /// Leaves changes of the pod's status out of what wakes.
    #[must_use]
    pub fn of_logs_alone(mut self) -> Self {
        self.status_too = false;
        self
    }

    /// Leaves out attempts of `container` before `attempt`.
    pub fn start_at(&mut self, container: &str, attempt: u32) {
        for source in &mut self.sources {
            if source.container == container {
                source.from = attempt;
            }
        }
    }

    /// Shows attempt `attempt` of `container` alone.
    pub fn show_only(&mut self, container: &str, attempt: u32) {
        for source in &mut self.sources {
            if source.container == container {
                source.from = attempt;
                source.to = attempt;
            }
        }
    }

    /// Lines that have come, in the order of their times; lines of one container are in order.
    pub fn take(&mut self) -> io::Result<Vec<(String, Line)>> {
        let mut out = Vec::new();
        for source in &mut self.sources {
            source.take(&self.paths, &mut out)?;
        }
        out.sort_by(|a, b| a.1.time.cmp(&b.1.time));
        Ok(out)
    }

    /// Shows lines that have come. Returns whether there were any.
    pub fn show(&mut self) -> io::Result<bool> {
        let lines = self.take()?;
        self.print(&lines)?;
        Ok(!lines.is_empty())
    }

    /// Shows beginnings of lines that never ended.
    pub fn finish(&mut self) -> io::Result<()> {
        self.show()?;
        let (style, width, colours) = (self.style, self.width, self.colours);
        for (number, source) in self.sources.iter_mut().enumerate() {
            for (index, stream) in [LogStream::Stdout, LogStream::Stderr]
                .into_iter()
                .enumerate()
            {
                let text = std::mem::take(&mut source.partial[index]);
                if !text.is_empty() {
                    let line = Line {
                        time: String::new(),
                        stream,
                        partial: false,
                        text,
                    };
                    write_line(&source.container, &line, style, width, colours, number)?;
                }
            }
        }
        Ok(())
    }

    /// Writes `lines` to standard output and error, each where the container wrote it.
    pub fn print(&mut self, lines: &[(String, Line)]) -> io::Result<()> {
        for (container, line) in lines {
            let Some(number) = self.sources.iter().position(|s| &s.container == container) else {
                continue;
            };
            let index = usize::from(line.stream == LogStream::Stderr);
            let partial = &mut self.sources[number].partial[index];
            if line.partial {
                if self.style.names || self.style.timestamps {
                    // Whole lines alone can be told apart by what is in front of them.
                    partial.extend_from_slice(&line.text);
                    continue;
                }
                write_raw(line.stream, &line.text)?;
                continue;
            }
            let mut whole = line.clone();
            if !partial.is_empty() {
                let mut text = std::mem::take(partial);
                text.extend_from_slice(&line.text);
                whole.text = text;
            }
            write_line(
                container,
                &whole,
                self.style,
                self.width,
                self.colours,
                number,
            )?;
        }
        io::stdout().flush()
    }

    fn directories(&self) -> Vec<PathBuf> {
        // Logs are made when the first container is, below what is there from the start.
        let mut directories = vec![self.paths.state.clone(), self.paths.logs()];
        if self.status_too {
            directories.push(self.paths.run.clone());
        }
        directories.extend(
            self.sources
                .iter()
                .map(|source| self.paths.logs().join(&source.container)),
        );
        directories
    }
}

impl Source {
    fn take(&mut self, paths: &PodPaths, out: &mut Vec<(String, Line)>) -> io::Result<()> {
        loop {
            if let Some((_, reader)) = &mut self.attempt {
                let lines = reader.read()?;
                out.extend(lines.into_iter().map(|line| (self.container.clone(), line)));
            }
            let present = self.attempt.as_ref().map(|(number, _)| *number);
            let next = all_attempts(&paths.logs().join(&self.container))
                .into_iter()
                .find(|number| {
                    (self.from..=self.to).contains(number) && present.is_none_or(|p| *number > p)
                });
            match next {
                None => return Ok(()),
                Some(number) => {
                    let log = paths.log(&self.container, number);
                    self.attempt = Some((number, LogReader::new(&log)));
                }
            }
        }
    }
}

fn write_line(
    container: &str,
    line: &Line,
    style: Style,
    width: usize,
    colours: bool,
    number: usize,
) -> io::Result<()> {
    const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
    let mut text = Vec::with_capacity(line.text.len() + 64);
    if style.names {
        if colours {
            let colour = COLOURS[number % COLOURS.len()];
            write!(text, "\x1b[{colour}m{container:<width$} |\x1b[0m ")?;
        } else {
            write!(text, "{container:<width$} | ")?;
        }
    }
    if style.timestamps {
        write!(text, "{} ", line.time)?;
    }
    text.extend_from_slice(&line.text);
    text.push(b'\n');
    write_raw(line.stream, &text)
}

fn write_raw(stream: LogStream, text: &[u8]) -> io::Result<()> {
    match stream {
        LogStream::Stdout => io::stdout().lock().write_all(text),
        LogStream::Stderr => io::stderr().lock().write_all(text),
    }
}

/// Wakes when files of a pod change, with an interval as the safety net.
#[derive(Debug)]
pub struct Wakeup {
    inotify: Option<Inotify>,
    watched: BTreeSet<PathBuf>,
}

impl Wakeup {
    /// A wake-up that watches nothing yet.
    pub fn new() -> Self {
        Self {
            // A host that is out of inotify instances is served by the interval.
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok(),
            watched: BTreeSet::new(),
        }
    }

    /// Watches the directories of `follower` that are there by now. Returns whether there is a new one: what was in it
    /// before may not have been seen.
    pub fn watch(&mut self, follower: &Follower) -> bool {
        let mut new = false;
        for directory in follower.directories() {
            new |= self.watch_directory(directory);
        }
        new
    }

    /// Watches one directory if it is there.
    pub fn watch_directory(&mut self, directory: PathBuf) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        if self.watched.contains(&directory) {
            return false;
        }
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO;
        let added = inotify.add_watch(&directory, flags).is_ok();
        if added {
            self.watched.insert(directory);
        }
        added
    }

    /// Waits for a change, for one of `others` to become readable, or for the interval. Returns whether there was a change.
    pub fn wait(&self, others: &[BorrowedFd<'_>]) -> bool {
        let mut polled: Vec<PollFd<'_>> = others
            .iter()
            .map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN))
            .collect();
        if let Some(inotify) = &self.inotify {
            polled.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
        }
        let interval = if self.inotify.is_some() {
            INTERVAL
        } else {
            Duration::from_millis(50)
        };
        let limit = PollTimeout::try_from(interval).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut polled, limit);
        if let Some(inotify) = &self.inotify {
            let mut changed = false;
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {
                changed = true;
            }
            return changed;
        }
        false
    }
}
