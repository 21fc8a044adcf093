//! Running other programs so that a failure explains itself: the error carries the command and the
//! last lines that it printed. No policy about which programs are run.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// How many closing lines of a failed program an error shows.
const KEPT_LINES: usize = 20;

/// Runs `command` to its end with no input, showing each of its lines through `step`.
///
/// # Errors
/// When the program cannot be started or ends in anything but success; the error then holds its
/// last lines.
pub fn run(command: &mut Command, step: &mut Step) -> Result<()> {
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
        if kept.len() > KEPT_LINES {
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
}
