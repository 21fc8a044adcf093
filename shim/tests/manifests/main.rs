//! Manifests that are wrong, and every word that `vmpod run --dry-run` says of them: each `refused/NAME.yaml` with its
//! `refused/NAME.txt`. Written again by `VMPOD_WRITE_MANIFESTS=1 cargo test -p vmpod-shim --test manifests`, to be read
//! beside what the API server says.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit status of input that is not valid.
const INVALID: i32 = 2;

fn refused() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/refused")
}

/// Exit status and messages of a dry run of `file`.
fn dry_run(file: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmpod"))
        .args(["run", "--dry-run"])
        .arg(file.file_name().unwrap())
        .current_dir(file.parent().unwrap())
        .output()
        .unwrap();
    assert!(output.stdout.is_empty(), "{}: a plan", file.display());
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn manifests_that_are_wrong_are_refused_in_these_words() {
    let write = std::env::var_os("VMPOD_WRITE_MANIFESTS").is_some();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(refused()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        seen += 1;
        let (code, words) = dry_run(&file);
        let expected = file.with_extension("txt");
        if write {
            std::fs::write(&expected, &words).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if code != Some(INVALID) || words != expected {
            wrong.push(format!(
                "{}: exit status {code:?}\n--- expected\n{expected}--- said\n{words}",
                file.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        seen >= 9,
        "only {seen} manifests in {}",
        refused().display()
    );
}

#[test]
fn every_line_that_is_named_is_one_of_the_field() {
    // The last part of a field's path stands in the line, unless the field is what is missing.
    for entry in std::fs::read_dir(refused()).unwrap() {
        let file = entry.unwrap().path().with_extension("yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, words) = dry_run(&file);
        for line in words.lines() {
            let mut parts = line.trim_start_matches("vmpod: ").splitn(4, ':');
            let number: usize = parts.nth(1).unwrap().parse().unwrap();
            let field = parts.next().unwrap().trim();
            let message = parts.next().unwrap_or_default();
            let last = field.rsplit('.').next().unwrap();
            let name = last.split('[').next().unwrap();
            let there = text.lines().nth(number - 1).unwrap();
            let is_missing = message.trim().starts_with("Required value");
            assert!(
                there.contains(name)
                    || last.ends_with(']')
                    || is_missing
                    || message.contains("\"\""),
                "{line}\nline {number} is {there:?}"
            );
        }
    }
}
