//! Progress as a person sees it: a spinner or bar on a terminal, plain lines elsewhere (CI keeps
//! those in its log). One [`Step`] is one piece of work with a beginning and an end; it prints on
//! standard error and never on standard output, which belongs to the command that runs.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A piece of work under way. Ends by [`Step::done`]; dropped without it, it says that it failed.
#[derive(Debug)]
pub struct Step {
    what: String,
    bar: Option<ProgressBar>,
    begun: Instant,
    last_note: String,
    /// The last tenth that was printed where there is no terminal.
    last_tenth: u64,
    ended: bool,
}

impl Step {
    /// Begins a step and says so. `what` is a phrase such as `fetching the node's kernel`.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style(false));
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("  {what} ...");
            None
        };
        Self {
            what,
            bar,
            begun: Instant::now(),
            last_note: String::new(),
            last_tenth: 0,
            ended: false,
        }
    }

    /// Shows what the step is doing now. Without a terminal nothing is printed: a log wants the
    /// stages and not every line of a download.
    pub fn note(&mut self, text: &str) {
        let text = text.trim();
        if text.is_empty() || text == self.last_note {
            return;
        }
        text.clone_into(&mut self.last_note);
        if let Some(bar) = &self.bar {
            bar.set_message(self.last_note.clone());
        }
    }

    /// Shows how much of a counted part is done: a bar on a terminal, elsewhere a line at each
    /// tenth. `total` 0 means that there is nothing to count.
    pub fn at(&mut self, done: u64, total: u64, text: &str) {
        if let Some(bar) = &self.bar {
            let counted = total > 0;
            if counted != bar.length().is_some() {
                bar.set_style(style(counted));
            }
            if counted {
                bar.set_length(total);
                bar.set_position(done);
            } else {
                bar.unset_length();
            }
            bar.set_message(text.trim().to_owned());
            return;
        }
        let tenth = (done * 10).checked_div(total).unwrap_or(0);
        if tenth != self.last_tenth {
            self.last_tenth = tenth;
            if tenth > 0 {
                eprintln!("    {} %, {}", tenth * 10, seconds(self.begun.elapsed()));
            }
        }
    }

    /// Ends the step well and prints how long it took.
    pub fn done(mut self) {
        self.finish("done");
    }

    fn finish(&mut self, how: &str) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "  {}: {how} in {}",
            self.what,
            seconds(self.begun.elapsed())
        );
    }
}

fn style(counted: bool) -> ProgressStyle {
    let template = if counted {
        "{spinner} {prefix} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}"
    } else {
        "{spinner} {prefix} {wide_msg} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Drop for Step {
    fn drop(&mut self) {
        self.finish("failed");
    }
}

/// A duration for people: tenths of a second below a minute, minutes and seconds above.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole >= 60 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_below_a_minute_has_tenths() {
        assert_eq!(seconds(Duration::from_millis(1_260)), "1.3 s");
    }

    #[test]
    fn seconds_above_a_minute_has_minutes() {
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
