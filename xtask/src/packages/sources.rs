//! The machine's apt sources, read in both of their formats (sources.list(5): one line each, and
//! deb822 stanzas), and the private sources derived from them: the same addresses and keys, other
//! suites. No address of any server is written down here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One source as the machine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// `Signed-By`: key files, or an inline key with its continuation lines as they stand.
    signed_by: Option<String>,
    /// `Trusted` and whatever else a deb822 stanza or an option list said, as `Field: value`.
    options: Vec<(String, String)>,
}

/// The release's name from the text of os-release(5).
pub fn codename(os_release: &str) -> Option<String> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
}

/// Every binary source under `etc` (normally `/etc/apt`).
///
/// # Errors
/// When a file that is there cannot be read.
pub fn read_machine(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        let entries =
            fs::read_dir(&parts).with_context(|| format!("listing {}", parts.display()))?;
        for entry in entries {
            files.push(
                entry
                    .with_context(|| format!("listing {}", parts.display()))?
                    .path(),
            );
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let extension = file.extension().and_then(|extension| extension.to_str());
        let read =
            || fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
        match extension {
            Some("list") => sources.extend(parse_lines(&read()?)),
            Some("sources") => sources.extend(parse_stanzas(&read()?)),
            _ => {}
        }
    }
    Ok(sources)
}

fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

/// `deb [option=value ...] uri suite component...`
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    rest = rest.trim_start();
    let mut signed_by = None;
    let mut options = Vec::new();
    if let Some(bracketed) = rest.strip_prefix('[') {
        let (inside, after) = bracketed.split_once(']')?;
        for option in inside.split_whitespace() {
            let (name, value) = option.split_once('=')?;
            match name {
                "signed-by" => signed_by = Some(value.replace(',', " ")),
                "trusted" => options.push(("Trusted".to_owned(), value.to_owned())),
                "check-valid-until" => {
                    options.push(("Check-Valid-Until".to_owned(), value.to_owned()));
                }
                _ => {}
            }
        }
        rest = after.trim_start();
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next()?;
    let suite = words.next()?;
    Some(Source {
        uris: vec![uri],
        suites: vec![suite],
        components: words.collect(),
        signed_by,
        options,
    })
}

fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    };
    let words = |name: &str| -> Option<Vec<String>> {
        Some(field(name)?.split_whitespace().map(str::to_owned).collect())
    };
    let binary = words("types")?.iter().any(|kind| kind == "deb");
    let disabled = field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if !binary || disabled {
        return None;
    }
    let options = ["Trusted", "Check-Valid-Until"]
        .into_iter()
        .filter_map(|name| {
            Some((
                name.to_owned(),
                field(&name.to_ascii_lowercase())?.to_owned(),
            ))
        })
        .collect();
    Some(Source {
        uris: words("uris")?,
        suites: words("suites")?,
        components: words("components").unwrap_or_default(),
        signed_by: field("signed-by").map(str::to_owned),
        options,
    })
}

/// The deb822 text of private sources: for each suite in `wanted`, the machine's own source of
/// that suite, else (for suites that live beside the release, such as backports, and for other
/// releases) the machine's source of the release `codename` with the suite replaced.
///
/// # Errors
/// When the machine has no source for `codename` with the component `main`.
pub fn derive(machine: &[Source], codename: &str, wanted: &[String]) -> Result<String> {
    let of_suite = |suite: &str| {
        machine.iter().find(|source| {
            source.suites.iter().any(|name| name == suite)
                && source
                    .components
                    .iter()
                    .any(|component| component == "main")
        })
    };
    let Some(release) = of_suite(codename) else {
        bail!(
            "no apt source of this machine offers `{codename} main` (looked in \
             /etc/apt/sources.list and /etc/apt/sources.list.d); add the release's own source"
        );
    };
    let mut text =
        String::from("# Derived from this machine's own sources; rewritten when those change.\n");
    for suite in wanted {
        let beside_release = suite.ends_with("-backports") || !suite.contains('-');
        let source = match of_suite(suite) {
            Some(source) => source,
            None if beside_release => release,
            None => continue,
        };
        text.push_str("\nTypes: deb\n");
        text.push_str(&format!("URIs: {}\n", source.uris.join(" ")));
        text.push_str(&format!("Suites: {suite}\nComponents: main\n"));
        if let Some(key) = &source.signed_by {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        for (name, value) in &source.options {
            text.push_str(&format!("{name}: {value}\n"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb deb-src\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\n\
        Signed-By: /usr/share/keyrings/a.gpg\n\n# note\nTypes: deb\nEnabled: no\n\
        URIs: http://other.example\nSuites: bookworm-security\nComponents: main\n";

    fn wanted() -> Vec<String> {
        vec![
            "bookworm".into(),
            "bookworm-security".into(),
            "bookworm-backports".into(),
        ]
    }

    #[test]
    fn derive_from_stanzas_keeps_address_and_key() {
        let text = derive(&parse_stanzas(STANZAS), "bookworm", &wanted()).unwrap();
        assert_eq!(
            text.matches("URIs: http://mirror.example/debian\n").count(),
            2,
            "{text}"
        );
        assert!(text.contains("Suites: bookworm-backports\n"), "{text}");
        assert_eq!(
            text.matches("Signed-By: /usr/share/keyrings/a.gpg\n")
                .count(),
            2,
            "{text}"
        );
        assert!(
            !text.contains("other.example"),
            "a disabled source must stay out: {text}"
        );
    }

    #[test]
    fn derive_from_line_with_options_keeps_key() {
        let machine = parse_lines(
            "# deb http://no.example bookworm main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main # x\n\
             deb-src http://mirror.example/debian bookworm main\n",
        );
        assert_eq!(machine.len(), 1);
        let text = derive(&machine, "bookworm", &wanted()).unwrap();
        assert!(text.contains("Signed-By: /k.gpg"), "{text}");
    }

    #[test]
    fn derive_of_another_release_replaces_the_suite() {
        let text = derive(&parse_stanzas(STANZAS), "bookworm", &["sid".into()]).unwrap();
        assert!(
            text.contains("URIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n"),
            "{text}"
        );
        assert_eq!(text.matches("Types:").count(), 1, "{text}");
    }

    #[test]
    fn derive_with_inline_key_keeps_every_line() {
        let text = "Types: deb\nURIs: http://m.example\nSuites: bookworm\nComponents: main\n\
            Signed-By:\n -----BEGIN\n .\n abc\n -----END\n";
        let derived = derive(&parse_stanzas(text), "bookworm", &wanted()).unwrap();
        assert!(
            derived.contains("Signed-By: \n -----BEGIN\n .\n abc\n -----END\n"),
            "{derived}"
        );
    }

    #[test]
    fn derive_without_release_is_refused_by_name() {
        let error = derive(&[], "bookworm", &wanted()).unwrap_err().to_string();
        assert!(error.contains("bookworm main"), "{error}");
    }

    #[test]
    fn codename_with_quotes_is_bare() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=\"bookworm\"\n").as_deref(),
            Some("bookworm")
        );
    }
}
