//! Which mounts of a mount table (proc_pid_mountinfo(5)) lie in shared volumes, and what of the host's tree they show. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vmpod_agent_protocol::limits::{NAME_BYTES, VOLUME_MOUNTS};
use vmpod_agent_protocol::messages::VolumeMount;

/// Type of the file systems that the host shows.
const SHARE: &str = "virtiofs";

/// A line of the table, as far as it matters.
struct Line<'a> {
    id: &'a str,
    parent: &'a str,
    device: &'a str,
    /// Path in its file system.
    root: String,
    /// Where it is, relative to the shared tree; empty: at its root.
    place: String,
    read_only: bool,
    kind: &'a str,
}

/// Takes the octal escapes out of a path. `None`: what is left is not UTF-8.
fn unescaped(field: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() {
            after.get(3..).unwrap_or_default()
        } else {
            after
        };
    }
    String::from_utf8(bytes).ok()
}

/// `path` below `directory`, without the slash between them.
pub(super) fn below<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(directory)?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix('/')
}

fn line<'a>(text: &'a str, shared: &str) -> Option<Line<'a>> {
    let (mount, file_system) = text.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let mut next = || fields.next();
    let (id, parent, device, root) = (next()?, next()?, next()?, next()?);
    let (place, options) = (next()?, next()?);
    let place = unescaped(place)?;
    Some(Line {
        id,
        parent,
        device,
        root: unescaped(root)?,
        place: below(&place, shared)?.to_owned(),
        read_only: options.split(',').any(|option| option == "ro"),
        kind: file_system.split(' ').next()?,
    })
}

/// The mounts of table `text` in `volumes`, which are paths relative to the shared tree, which is mounted at `shared`.
///
/// Where the host has a mount in its tree, the guest's kernel makes one by itself: these show nothing but what is there anyway.
/// Of several on one place the last one counts. What lies in a mount that the host cannot have is left out.
pub(super) fn mounts(text: &str, shared: &str, volumes: &BTreeSet<&str>) -> Vec<VolumeMount> {
    let lines: Vec<Line<'_>> = text.lines().filter_map(|text| line(text, shared)).collect();
    // Where in the tree each file system begins.
    let mut origins: HashMap<&str, &str> = HashMap::new();
    for line in lines
        .iter()
        .filter(|line| line.kind == SHARE && line.root == "/")
    {
        origins.entry(line.device).or_insert(&line.place);
    }
    // Mounts of which the host has the same at the same place.
    let mut common: BTreeSet<&str> = BTreeSet::new();
    let mut found = BTreeMap::new();
    for line in &lines {
        let Some(origin) = origins.get(line.device).filter(|_| line.kind == SHARE) else {
            continue;
        };
        if line.root == "/" && *origin == line.place {
            common.insert(line.id);
            continue;
        }
        let in_volume = volumes
            .iter()
            .any(|volume| below(&line.place, volume).is_some_and(|rest| !rest.is_empty()));
        let source = joined(origin, line.root.trim_start_matches('/'));
        let tellable = source.len() <= NAME_BYTES
            && line.place.len() <= NAME_BYTES
            // What was deleted has no path any more.
            && !line.root.ends_with("//deleted");
        if !in_volume || !tellable || !common.contains(line.parent) {
            continue;
        }
        common.insert(line.id);
        let mount = VolumeMount {
            place: line.place.clone(),
            source,
            read_only: line.read_only,
            ..Default::default()
        };
        found.insert(line.place.clone(), mount);
    }
    // In the order of paths a mount comes after the one that it lies in.
    found.into_values().take(VOLUME_MOUNTS).collect()
}

fn joined(directory: &str, rest: &str) -> String {
    match (directory, rest) {
        ("", rest) => rest.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, rest) => format!("{directory}/{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with a container's root file system and two of its volumes.
    const TREE: &str = "\
20 1 0:2 / / rw shared:1 - tmpfs root rw
40 20 0:30 / /run/vmpod/shared rw,relatime shared:2 - virtiofs vmpod rw
41 40 0:31 / /run/vmpod/shared/containers/c/rootfs rw,relatime shared:3 - virtiofs vmpod rw
42 40 0:32 / /run/vmpod/shared/containers/c/mounts/0 rw,relatime shared:4 - virtiofs vmpod rw
43 40 0:33 / /run/vmpod/shared/containers/c/mounts/1 rw,relatime shared:5 - virtiofs vmpod rw
";

    fn told(lines: &str, volumes: &[&str]) -> Vec<(String, String, bool)> {
        let volumes = volumes.iter().copied().collect();
        mounts(&format!("{TREE}{lines}"), "/run/vmpod/shared", &volumes)
            .into_iter()
            .map(|mount| (mount.place, mount.source, mount.read_only))
            .collect()
    }

    fn mount(place: &str, source: &str, read_only: bool) -> (String, String, bool) {
        let volume = "containers/c/mounts/0";
        (format!("{volume}/{place}"), source.to_owned(), read_only)
    }

    const VOLUME: &[&str] = &["containers/c/mounts/0"];

    #[test]
    fn binds_in_a_shared_volume_are_told_with_what_they_show() {
        let lines = "\
50 42 0:31 /etc /run/vmpod/shared/containers/c/mounts/0/a\\040b rw shared:9 - virtiofs vmpod rw
51 50 0:33 / /run/vmpod/shared/containers/c/mounts/0/a\\040b/in ro shared:9 - virtiofs vmpod rw
52 43 0:31 /etc /run/vmpod/shared/containers/c/mounts/1/x rw shared:9 - virtiofs vmpod rw
53 42 0:30 /etc/hosts /run/vmpod/shared/containers/c/mounts/0/hosts rw shared:9 - virtiofs vmpod rw
";
        assert_eq!(
            told(lines, VOLUME),
            [
                mount("a b", "containers/c/rootfs/etc", false),
                mount("a b/in", "containers/c/mounts/1", true),
                mount("hosts", "etc/hosts", false),
            ]
        );
        assert!(told(lines, &[]).is_empty());
        // A name that begins as the volume's does is another's.
        assert!(told(lines, &["containers/c/mounts"]).len() == 4);
        assert!(told(lines, &["containers/c/mount"]).is_empty());
    }

    #[test]
    fn mounts_of_the_host_and_of_the_guests_kernel_are_not_told() {
        let lines = "\
50 42 0:40 / /run/vmpod/shared/containers/c/mounts/0/hosts-own rw shared:9 - virtiofs vmpod rw
51 42 0:41 / /run/vmpod/shared/containers/c/mounts/0/memory rw shared:9 - tmpfs tmpfs rw
52 51 0:31 /etc /run/vmpod/shared/containers/c/mounts/0/memory/etc rw shared:9 - virtiofs vmpod rw
53 42 0:31 /gone//deleted /run/vmpod/shared/containers/c/mounts/0/gone rw shared:9 - virtiofs vmpod rw
54 42 0:99 /x /run/vmpod/shared/containers/c/mounts/0/unknown rw shared:9 - virtiofs vmpod rw
55 50 0:31 /etc /run/vmpod/shared/containers/c/mounts/0/hosts-own/etc rw shared:9 - virtiofs vmpod rw
";
        assert_eq!(
            told(lines, VOLUME),
            [mount("hosts-own/etc", "containers/c/rootfs/etc", false)]
        );
    }

    #[test]
    fn last_mount_on_a_place_counts_and_no_more_than_the_limit() {
        let mut lines = String::new();
        for (id, what) in [(50, "etc"), (51, "usr")] {
            let parent = if id == 50 { 42 } else { 50 };
            lines.push_str(&format!(
                "{id} {parent} 0:31 /{what} /run/vmpod/shared/containers/c/mounts/0/x rw - virtiofs vmpod rw\n"
            ));
        }
        assert_eq!(
            told(&lines, VOLUME),
            [mount("x", "containers/c/rootfs/usr", false)]
        );
        for number in 100..300 {
            lines.push_str(&format!(
                "{number} 42 0:31 /etc /run/vmpod/shared/containers/c/mounts/0/{number} rw - virtiofs vmpod rw\n"
            ));
        }
        assert_eq!(told(&lines, VOLUME).len(), VOLUME_MOUNTS);
        // Lines of another form are left out.
        assert!(told("broken\n1 2 3\n - \n\\\\ \\777 - x\n", VOLUME).is_empty());
    }
}
