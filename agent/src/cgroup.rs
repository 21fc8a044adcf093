//! Delegation of control group controllers; limits and statistics of a container are in `container::cgroup`.

use std::fs;
use std::io;
use std::path::Path;

/// Enables every available controller of group `directory` for its children.
pub fn delegate(directory: &Path) -> io::Result<()> {
    let available = fs::read_to_string(directory.join("cgroup.controllers"))?;
    let mut wanted = String::new();
    for controller in available.split_whitespace() {
        wanted.push('+');
        wanted.push_str(controller);
        wanted.push(' ');
    }
    if wanted.is_empty() {
        return Ok(());
    }
    fs::write(directory.join("cgroup.subtree_control"), wanted)
}
