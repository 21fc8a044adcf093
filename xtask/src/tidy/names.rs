//! Names that say nothing. A file, folder, module or crate is named for its concept.

use super::edges::Metadata;
use super::sources::SourceFile;

const SAY_NOTHING: &[&str] = &[
    "util",
    "utils",
    "utilities",
    "common",
    "base",
    "manager",
    "managers",
    "helper",
    "helpers",
    "misc",
];

/// Complaints about files, folders, modules and crates.
pub fn check(files: &[SourceFile], metadata: &Metadata) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in metadata.members() {
        if let Some(word) = forbidden(&package.name) {
            complaints.push(format!(
                "crate {}: {word:?} says nothing; name the concept",
                package.name
            ));
        }
    }
    for file in files {
        let path = file.path.display();
        for part in &file.path {
            let part = part.to_string_lossy();
            let stem = part.strip_suffix(".rs").unwrap_or(&part);
            if let Some(word) = forbidden(stem) {
                complaints.push(format!("{path}: {word:?} says nothing; name the concept"));
            }
        }
        for (index, line) in file.text.lines().enumerate() {
            if let Some(name) = module_name(line)
                && line.ends_with('{')
                && let Some(word) = forbidden(name)
            {
                let at = index + 1;
                complaints.push(format!("{path}:{at}: module {name}: {word:?} says nothing"));
            }
        }
    }
    complaints.dedup();
    complaints
}

/// The first word of `name` that says nothing.
fn forbidden(name: &str) -> Option<&str> {
    name.split(['-', '_'])
        .find(|word| SAY_NOTHING.contains(word))
}

/// The name that `mod NAME` declares.
fn module_name(line: &str) -> Option<&str> {
    let mut words = line
        .split_whitespace()
        .skip_while(|word| word.starts_with("pub"));
    (words.next()? == "mod").then_some(())?;
    Some(words.next()?.trim_end_matches(['{', ';']))
}

#[cfg(test)]
mod tests {
    use super::super::edges::Package;
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let metadata = Metadata {
            packages: Vec::new(),
            workspace_members: Vec::new(),
        };
        check(
            &[SourceFile {
                path: path.into(),
                text: text.into(),
            }],
            &metadata,
        )
    }

    #[test]
    fn names_of_files_and_folders_that_say_nothing_are_refused() {
        for path in [
            "vmm/src/utils.rs",
            "vmm/src/common/x.rs",
            "shim/src/pod_manager.rs",
        ] {
            assert_eq!(complaints(path, "//! W.\n").len(), 1, "{path}");
        }
        assert!(complaints("vmm/src/database.rs", "//! W.\n").is_empty());
    }

    #[test]
    fn names_of_inline_modules_that_say_nothing_are_refused() {
        let found = complaints("a.rs", "//! W.\npub(crate) mod helper {\n}\n");
        assert!(found[0].starts_with("a.rs:2: module helper"), "{found:?}");
        assert!(complaints("a.rs", "//! The common mod helper.\nlet base = 1;\n").is_empty());
    }

    #[test]
    fn names_of_crates_that_say_nothing_are_refused() {
        let package = Package {
            id: "x".into(),
            name: "vmpod-utils".into(),
            version: "1.0.0".into(),
            license: None,
            dependencies: Vec::new(),
        };
        let metadata = Metadata {
            packages: vec![package],
            workspace_members: vec!["x".into()],
        };
        assert!(check(&[], &metadata)[0].contains("vmpod-utils"));
    }
}
