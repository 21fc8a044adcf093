//! The `vmpod` command line, run with a time limit.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::LIMIT;

/// A `vmpod` command to be run.
#[derive(Debug)]
pub struct Vmpod {
    command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; 128 + signal for a killed process.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Wall time.
    pub took: Duration,
}

/// `vmpod` with these words. The binary is named by `VMPOD_BIN`.
///
/// # Panics
/// When `VMPOD_BIN` is not set: the tests are started by `cargo xtask test`.
pub fn vmpod<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Vmpod {
    let binary = std::env::var_os("VMPOD_BIN")
        .expect("VMPOD_BIN names the binary under test: run cargo xtask test");
    program(&PathBuf::from(binary), words)
}

/// Another program with these words, run the same way.
pub fn program<S: AsRef<OsStr>>(path: &Path, words: impl IntoIterator<Item = S>) -> Vmpod {
    let mut command = Command::new(path);
    command.args(words);
    Vmpod {
        command,
        input: None,
        limit: LIMIT,
    }
}

impl Vmpod {
    /// One more word.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    /// More words.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command.args(words);
        self
    }

    /// Gives it standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Another limit than [`LIMIT`].
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it and leaves it to the caller. Output is piped.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}", self.command))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end in time (it is killed then, and what it had printed is shown).
    pub fn run(mut self) -> Outcome {
        let started = Instant::now();
        let line = format!("{:?}", self.command);
        let input = self.input.take();
        let limit = self.limit;
        self.command.stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        let writer = child.stdin.take().map(|mut stdin| {
            std::thread::spawn(move || {
                // The command may end without reading its input.
                let _ = stdin.write_all(&input.unwrap_or_default());
            })
        });
        let out = read_all(child.stdout.take());
        let err = read_all(child.stderr.take());
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for a child") {
                break status;
            }
            if started.elapsed() > limit && !late {
                late = true;
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        let text = |reader: std::thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
        };
        let outcome = Outcome {
            command: line,
            code: status.code().unwrap_or_else(|| {
                128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default()
            }),
            out: text(out),
            err: text(err),
            took: started.elapsed(),
        };
        assert!(!late, "did not end within {limit:?}: {outcome}");
        outcome
    }

    /// Runs it and expects exit status 0. Returns standard output.
    ///
    /// # Panics
    /// Any other status.
    pub fn ok(self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.code, 0, "{outcome}");
        outcome.out
    }

    /// Runs it and expects this exit status and each of these texts in standard error.
    ///
    /// # Panics
    /// Another status, or a text is missing.
    pub fn fails(self, code: i32, texts: &[&str]) -> Outcome {
        let outcome = self.run();
        assert_eq!(outcome.code, code, "{outcome}");
        for text in texts {
            assert!(
                outcome.err.contains(text),
                "no {text:?} in standard error of {outcome}"
            );
        }
        outcome
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\nexit status {} after {:?}\n--- standard output\n{}\n--- standard error\n{}",
            self.command, self.code, self.took, self.out, self.err
        )
    }
}
