//! Running other programs so that a failure explains itself: the error carries the command and the
//! last lines that it printed. Also runs a command on a caller's behalf, as if it
//! had been typed. No policy about which programs are run.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// How many closing lines of a failed program an error shows.
const KEPT_LINES: usize = 20;

/// The same for compilers, whose first complaint counts most and may be far up.
const KEPT_COMPILER_LINES: usize = 400;

/// Runs `command` to its end with no input, showing each of its lines through `step`.
///
/// # Errors
/// When the program cannot be started or ends in anything but success; the error then holds its
/// last lines.
pub fn run(command: &mut Command, step: &mut Step) -> Result<()> {
    run_keeping(command, step, KEPT_LINES)
}

/// As [`run`], with enough lines in the error for a compiler's complaints.
///
/// # Errors
/// As [`run`].
pub fn compile(command: &mut Command, step: &mut Step) -> Result<()> {
    run_keeping(command, step, KEPT_COMPILER_LINES)
}

fn run_keeping(command: &mut Command, step: &mut Step, lines_kept: usize) -> Result<()> {
    let shown = show(command);
    let (reader, writer) = std::io::pipe().context("creating a pipe")?;
    let second = writer.try_clone().context("duplicating a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let mut child = command
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    // The command holds the writing ends; replaced, so that the reader below sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut kept = VecDeque::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .context("reading a program's output")?
        > 0
    {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        step.note(&text);
        kept.push_back(text);
        if kept.len() > lines_kept {
            kept.pop_front();
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{shown}`"))?;
    if status.success() {
        return Ok(());
    }
    let lines: Vec<String> = kept.into();
    bail!(
        "`{shown}` failed ({status}); its last lines:\n{}",
        lines.join("\n")
    );
}

/// Runs `command` to its end with no input and returns what it printed on standard output.
///
/// # Errors
/// When the program cannot be started or fails; the error then holds its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{shown}`"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed ({}): {}", output.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it, without quoting and cut to a readable length.
fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    if text.chars().count() > 300 {
        text = text.chars().take(297).chain("...".chars()).collect();
    }
    text
}

/// A command on a caller's behalf, to be run here or in a node.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub arguments: Vec<String>,
    /// Directory to run in; where it does not exist in a node, `/` serves.
    pub directory: PathBuf,
    /// Variables that the command gets on top of the inherited ones.
    pub environment: Vec<(String, String)>,
    /// Whether a node gives the command a terminal.
    pub terminal: bool,
}

impl Invocation {
    /// Runs it on this machine. With `lines` its standard output goes there and the exit status
    /// is returned; without, it takes this process's place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_here(&self, lines: Option<&mut dyn FnMut(&str)>) -> Result<u8> {
        let (program, arguments) = self.arguments.split_first().context("no command to run")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.directory);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let Some(lines) = lines else {
            return Err(command.exec()).with_context(|| format!("starting {program}"));
        };
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        each_line(&mut child, lines);
        Ok(code(
            child
                .wait()
                .with_context(|| format!("waiting for {program}"))?,
        ))
    }
}

/// How long a program may print nothing: a test that hangs, or something that it left behind and that
/// holds its output open, must not hold up everything else.
const SILENCE: Duration = Duration::from_secs(900);

/// Gives each line of the child's piped standard output to `lines`, until there are no more. A child
/// that is silent for too long is killed, and a line says so.
pub fn each_line(child: &mut Child, lines: &mut dyn FnMut(&str)) {
    each_line_within(child, SILENCE, lines);
}

fn each_line_within(child: &mut Child, silence: Duration, lines: &mut dyn FnMut(&str)) {
    let Some(output) = child.stdout.take() else {
        return;
    };
    let (sender, receiver) = mpsc::channel();
    // Reading cannot be given up, but whoever reads can be left behind.
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    loop {
        match receiver.recv_timeout(silence) {
            Ok(line) => lines(&line),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                lines(&format!(
                    "error: nothing was printed for {} s: killed",
                    silence.as_secs()
                ));
                return;
            }
        }
    }
}

/// An exit status as a shell counts it.
pub fn code(status: ExitStatus) -> u8 {
    let number = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(number).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_with_failing_program_shows_its_last_lines() {
        let mut step = Step::begin("failing on purpose");
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo last >&2; exit 3"]);
        let error = format!("{:#}", run(&mut command, &mut step).unwrap_err());
        assert!(error.contains("first\nlast"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn output_with_missing_program_names_it() {
        let error = output(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/program"));
    }

    #[test]
    fn each_line_of_a_program_that_falls_silent_ends_with_its_death() {
        let script = "echo one; echo two; exec sleep 600";
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = Vec::new();
        each_line_within(&mut child, Duration::from_secs(3), &mut |line| {
            seen.push(line.to_owned());
        });
        assert_eq!(code(child.wait().unwrap()), 137);
        assert_eq!(seen[..2], ["one", "two"]);
        assert!(seen[2].contains("nothing was printed for 3 s"), "{seen:?}");
    }

    #[test]
    fn code_of_a_signal_is_counted_as_shells_do() {
        assert_eq!(code(ExitStatus::from_raw(2)), 130);
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
    }
}
