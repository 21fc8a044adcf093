//! The workspace's Rust files as texts, and the rules on a file as a whole: it opens with what it is
//! for, and it is short or says why not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines of a file, its tests left out, above which it needs a reason.
const LONG: usize = 500;

/// How the reason begins; it stands within the first lines of the file.
const REASON: &str = "// tidy: long because ";
const REASON_WITHIN: usize = 60;

/// One Rust file.
#[derive(Debug)]
pub struct SourceFile {
    /// Relative to the checkout.
    pub path: PathBuf,
    pub text: String,
}

impl SourceFile {
    /// Whether the file holds nothing but tests: `tests.rs`, `..._tests.rs`, or anything in a folder
    /// `tests` of a crate, or the end-to-end cases. (The rest of the crate `tests` is a framework.)
    fn is_tests(&self) -> bool {
        let stem = self.path.file_stem().map(|stem| stem.to_string_lossy());
        stem.is_some_and(|stem| stem == "tests" || stem.ends_with("_tests"))
            || self.path.iter().skip(1).any(|part| part == "tests")
            || self.path.starts_with("tests/cases")
    }
}

/// Every Rust file under `root`, without build output and hidden folders.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn read(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .with_context(|| format!("reading {}", path.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(".rs") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                let path = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
                files.push(SourceFile { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Complaints about how files open and how long they are.
pub fn check(files: &[SourceFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let path = file.path.display();
        let opening = file
            .text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        let says_something = opening
            .strip_prefix("//!")
            .is_some_and(|text| !text.trim().is_empty());
        if !says_something {
            complaints.push(format!(
                "{path} does not open with `//!` and what it is for"
            ));
        }
        let length = lines_without_tests(&file.text);
        let reasoned = file.text.lines().take(REASON_WITHIN).any(|line| {
            line.trim()
                .strip_prefix(REASON.trim_end())
                .is_some_and(|reason| !reason.trim().is_empty())
        });
        if length > LONG && !reasoned && !file.is_tests() {
            complaints.push(format!(
                "{path} has {length} lines without its tests, above {LONG}: split it by concept, \
                 or say near its top `{REASON}...`"
            ));
        }
    }
    complaints
}

/// Counts lines outside of `#[cfg(test)] mod name { ... }` at the file's outermost level.
fn lines_without_tests(text: &str) -> usize {
    let mut count = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let opens_tests = line == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| {
                next.trim_start_matches("pub(crate) ").starts_with("mod ") && next.ends_with('{')
            });
        if !opens_tests {
            count += 1;
            continue;
        }
        // rustfmt puts the closing brace of an outermost item alone at the line's start.
        for inside in lines.by_ref() {
            if inside == "}" {
                break;
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: String) -> SourceFile {
        SourceFile {
            path: path.into(),
            text,
        }
    }

    #[test]
    fn file_without_opening_is_refused() {
        for text in ["fn main() {}\n", "", "//!\nfn x() {}\n", "// why\n"] {
            let complaints = check(&[file("vmm/src/a.rs", text.to_owned())]);
            assert!(
                complaints[0].contains("vmm/src/a.rs does not open"),
                "{text:?}"
            );
        }
        assert!(check(&[file("a.rs", "\n//! Why.\n".to_owned())]).is_empty());
    }

    #[test]
    fn file_that_is_long_is_refused_without_a_reason() {
        let long = format!("//! Why.\n{}", "fn x() {}\n".repeat(LONG));
        assert!(check(&[file("a/src/b.rs", long.clone())])[0].contains("501 lines"));
        let empty_reason = format!("//! Why.\n// tidy: long because\n{}", "x\n".repeat(LONG));
        assert_eq!(check(&[file("a/src/b.rs", empty_reason)]).len(), 1);
        let reason = long.replacen(
            "//! Why.\n",
            "//! Why.\n// tidy: long because one table\n",
            1,
        );
        assert!(check(&[file("a/src/b.rs", reason)]).is_empty());
        for path in [
            "a/src/b/tests.rs",
            "tests/tests/run.rs",
            "a/src/x/tests/y.rs",
        ] {
            assert!(check(&[file(path, long.clone())]).is_empty(), "{path}");
        }
        assert_eq!(check(&[file("tests/src/node.rs", long)]).len(), 1);
    }

    #[test]
    fn lines_without_tests_counts_what_follows_them() {
        let text =
            "//! W.\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n";
        assert_eq!(lines_without_tests(text), 3);
        assert_eq!(
            lines_without_tests("#[cfg(test)]\nmod tests;\nfn a() {}\n"),
            3
        );
    }
}
