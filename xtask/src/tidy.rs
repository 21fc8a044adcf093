//! `cargo xtask tidy`: the rules that this repository has set itself and no compiler checks. Each
//! rule is a file here; it takes plain data (source texts, the crate graph), returns complaints, and
//! has tests that feed it bad trees.

mod edges;
mod imports;
mod licences;
mod names;
mod sources;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace;

/// Runs the subcommand.
///
/// # Errors
/// When a rule is broken, after printing each complaint.
pub fn run() -> Result<u8> {
    check()?;
    eprintln!("tidy: nothing to complain about");
    Ok(0)
}

/// Checks every rule and prints every complaint.
///
/// # Errors
/// When there is a complaint, or the tree cannot be read.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let files = sources::read(&root)?;
    let text = process::output(workspace::cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
    ]))?;
    let metadata: edges::Metadata =
        serde_json::from_str(&text).context("reading the answer of `cargo metadata`")?;
    let deny = root.join("deny.toml");
    let deny =
        std::fs::read_to_string(&deny).with_context(|| format!("reading {}", deny.display()))?;

    let mut complaints = Vec::new();
    complaints.extend(edges::check(&metadata));
    complaints.extend(licences::check(&metadata, &deny)?);
    complaints.extend(sources::check(&files));
    complaints.extend(names::check(&files, &metadata));
    complaints.extend(imports::check(&files));
    if complaints.is_empty() {
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    bail!(
        "{} of the repository's rules broken, see above",
        complaints.len()
    );
}
