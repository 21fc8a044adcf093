//! `vmpod events`: what happened to pods, from their event files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use vmpod_shim::pod::clock;
use vmpod_shim::pod::events::{PodEvent, read_from};
use vmpod_shim::pod::process;
use vmpod_shim::pod::registry;
use vmpod_shim::pod::roots::Roots;

use crate::cli::{EventsArguments, Output};
use crate::follow::Wakeup;

/// `vmpod events`
pub fn events(roots: &Roots, arguments: &EventsArguments) -> anyhow::Result<u8> {
    registry::reap(roots)?;
    let mut chosen = Vec::new();
    for selector in &arguments.pods {
        chosen.push(registry::find(roots, selector)?.paths.run);
    }
    let mut offsets: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut wakeup = Wakeup::new();
    loop {
        let mut fresh = wakeup.watch_directory(roots.pods());
        let directories = if arguments.pods.is_empty() {
            registry::list(roots)?
                .into_iter()
                .map(|pod| pod.paths.run)
                .collect()
        } else {
            chosen.clone()
        };
        let mut new = Vec::new();
        for directory in &directories {
            fresh |= wakeup.watch_directory(directory.clone());
            let path = directory.join("events.jsonl");
            let offset = offsets.entry(path.clone()).or_insert_with(|| {
                // The part before the last rotation comes first.
                let mut before = path.clone().into_os_string();
                before.push(".1");
                new.extend(read_from(before.as_ref(), 0).0);
                0
            });
            let (events, next) = read_from(&path, *offset);
            *offset = next;
            new.extend(events);
        }
        new.sort_by_key(|event| event.at_ns);
        print(&new, arguments.output)?;
        if !arguments.follow {
            return Ok(0);
        }
        let gone = !arguments.pods.is_empty()
            && directories
                .iter()
                .all(|directory| !process::is_locked(&directory.join("lock")));
        if gone && new.is_empty() && !fresh {
            return Ok(0);
        }
        if !fresh {
            wakeup.wait(&[]);
        }
    }
}

fn print(events: &[PodEvent], output: Output) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for event in events {
        if output == Output::Json {
            serde_json::to_writer(&mut out, event)?;
            writeln!(out)?;
            continue;
        }
        write!(
            out,
            "{}  {}  {}",
            clock::rfc3339_ns(event.at_ns),
            event.name,
            event.kind
        )?;
        if !event.container.is_empty() {
            write!(out, "  {}.{}", event.container, event.attempt)?;
        }
        if let Some(code) = event.exit_code {
            write!(out, "  code {code}")?;
        }
        if !event.message.is_empty() {
            write!(out, "  {}", event.message.trim_end())?;
        }
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}
