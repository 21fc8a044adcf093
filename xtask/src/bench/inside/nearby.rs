//! Brings what the measured programs open into the node's memory. The node sees the machine's files over 9p, and each
//! opening of one is answered in real time, which a node that counts instructions turns into waiting of any length. Its
//! root is an overlay whose upper layer is memory: a change of a file, even to what it was, moves the file there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Where programs are looked for: short, so that the search does not count, and the same for everybody.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs of the host that are measured.
const PROGRAMS: [&str; 1] = ["/usr/sbin/runc"];

/// Files and folders that they read, as far as they are there.
const READ: [&str; 6] = [
    "/etc/ld.so.cache",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
];

/// Links that searches for programs and libraries pass.
const LINKS: [&str; 4] = ["/bin", "/lib", "/lib64", "/sbin"];

/// Moves everything that `programs` and those above open into memory.
///
/// # Errors
/// When a program is missing, or a file cannot be moved.
pub fn bring(programs: &[PathBuf]) -> Result<()> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    let known = PROGRAMS.map(PathBuf::from);
    for program in known.iter().chain(programs) {
        files.insert(program.clone());
        // A static program has no libraries, and ldd fails on it.
        if let Ok(libraries) = process::output(Command::new("ldd").arg(program)) {
            files.extend(libraries_in(&libraries));
        }
    }
    for path in READ.map(Path::new) {
        match fs::read_dir(path) {
            Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) if path.is_file() => {
                files.insert(path.to_owned());
            }
            Err(_) => {}
        }
    }
    // Links on the way are read over 9p each time as well.
    let mut links: BTreeSet<&Path> = LINKS.map(Path::new).into();
    for file in &files {
        links.extend(file.ancestors());
    }
    for link in links {
        let found = fs::symlink_metadata(link);
        if let Ok(metadata) = found
            && metadata.is_symlink()
        {
            lchown(link, Some(metadata.uid()), Some(metadata.gid()))
                .with_context(|| format!("moving {} into memory", link.display()))?;
        }
    }
    for file in &files {
        let shown = file.display();
        let metadata = fs::metadata(file).with_context(|| format!("reading {shown}"))?;
        if metadata.is_file() {
            fs::set_permissions(file, metadata.permissions())
                .with_context(|| format!("moving {shown} into memory"))?;
        }
    }
    Ok(())
}

/// The absolute paths in what `ldd` prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn libraries_in(listing: &str) -> impl Iterator<Item = PathBuf> + '_ {
    listing.lines().filter_map(|line| {
        let words = line.split_whitespace();
        words
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from)
            .next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_in_a_listing_are_those_with_a_path() {
        let listing = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x7f1)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7f2)\n";
        let found: Vec<PathBuf> = libraries_in(listing).collect();
        let expected = ["/lib/x/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
