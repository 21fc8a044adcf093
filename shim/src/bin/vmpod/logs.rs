//! `vmpod logs`: what containers have written, and what they go on to write.

use anyhow::bail;
use vmpod_shim::pod::durable;
use vmpod_shim::pod::logs::{Line, latest_attempt};
use vmpod_shim::pod::process;
use vmpod_shim::pod::record::PodRecord;
use vmpod_shim::pod::registry;
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::PodStatus;

use crate::cli::LogsArguments;
use crate::follow::{Follower, Style, Wakeup};

/// `vmpod logs`
pub fn logs(roots: &Roots, arguments: &LogsArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let pod = registry::find(roots, &arguments.pod)?;
    let record: PodRecord = durable::read_json(&pod.paths.config())?;
    let all: Vec<String> = record
        .every_container()
        .map(|container| container.name.clone())
        .collect();
    let wanted = arguments
        .container
        .as_ref()
        .or(arguments.positional.as_ref());
    let names = match wanted {
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!(
            "pod {:?} has no container {name:?}; it has {}",
            record.name,
            all.join(", ")
        ),
        None => all,
    };
    let mut follower = Follower::new(
        &pod.paths,
        &names,
        Style {
            names: names.len() > 1,
            timestamps: arguments.timestamps,
        },
    );
    for name in &names {
        let latest = latest_attempt(&pod.paths.logs().join(name));
        match (latest, arguments.previous) {
            (Some(latest), false) => follower.start_at(name, latest),
            (Some(latest), true) if latest > 0 => follower.show_only(name, latest - 1),
            (_, true) if wanted.is_some() => {
                bail!("container {name:?} has had no attempt before the present one")
            }
            (_, true) => follower.show_only(name, u32::MAX),
            (None, false) => {}
        }
    }
    let mut wakeup = Wakeup::new();
    // Watched before the first look, so that nothing falls in between.
    wakeup.watch(&follower);
    let lines = follower.take()?;
    follower.print(last(&lines, &names, arguments.tail).as_slice())?;
    if arguments.previous || !arguments.follow {
        follower.finish()?;
        return Ok(0);
    }
    loop {
        let attended = process::is_locked(&pod.paths.lock());
        let ended = durable::read_json::<PodStatus>(&pod.paths.status())
            .map_or(!attended, |status| status.phase.is_final());
        // Looked at once more after the end was seen: the last lines come before it.
        let fresh = wakeup.watch(&follower);
        let more = follower.show()?;
        if (ended || !attended) && !more && !fresh {
            break;
        }
        if !fresh && !more {
            wakeup.wait(&[]);
        }
    }
    follower.finish()?;
    Ok(0)
}

/// The last `tail` lines of each container, in the order they have.
fn last(lines: &[(String, Line)], names: &[String], tail: Option<usize>) -> Vec<(String, Line)> {
    let Some(tail) = tail else {
        return lines.to_vec();
    };
    let mut left: Vec<(&String, usize)> = names.iter().map(|name| (name, tail)).collect();
    let mut kept: Vec<(String, Line)> = lines
        .iter()
        .rev()
        .filter(|(container, line)| {
            left.iter_mut()
                .find(|(name, _)| *name == container)
                .is_some_and(|(_, left)| {
                    // A partial record belongs to the line that was counted at its end.
                    if line.partial {
                        return *left > 0;
                    }
                    let keep = *left > 0;
                    *left = left.saturating_sub(1);
                    keep
                })
        })
        .cloned()
        .collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmpod_shim::pod::logs::LogStream;

    #[test]
    fn tail_counts_lines_of_each_container() {
        let line = |container: &str, text: &str| {
            (
                container.to_owned(),
                Line {
                    time: String::new(),
                    stream: LogStream::Stdout,
                    partial: false,
                    text: text.as_bytes().to_vec(),
                },
            )
        };
        let lines = [
            line("a", "1"),
            line("b", "2"),
            line("a", "3"),
            line("a", "4"),
        ];
        let names = ["a".to_owned(), "b".to_owned()];
        let texts: Vec<Vec<u8>> = last(&lines, &names, Some(2))
            .into_iter()
            .map(|(_, line)| line.text)
            .collect();
        assert_eq!(texts, [b"2", b"3", b"4"]);
        assert!(last(&lines, &names, Some(0)).is_empty());
    }
}
