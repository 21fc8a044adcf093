//! Licences of all dependencies, against the list in `deny.toml` (the file that cargo-deny reads, so
//! that whoever has that tool gets the same answer). Expressions are read as SPDX writes them.

use anyhow::{Context, Result};

use super::edges::Metadata;

/// Complaints about packages whose licence cannot be met with the allowed ones.
///
/// # Errors
/// When `deny` has no list of allowed licences.
pub fn check(metadata: &Metadata, deny: &str) -> Result<Vec<String>> {
    let allowed = allowed(deny)
        .context("deny.toml has no `allow = [...]` with licence names under [licenses]")?;
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        let named = format!("{} {}", package.name, package.version);
        match package
            .license
            .as_deref()
            .map(|expression| (expression, met(expression, &allowed)))
        {
            None => complaints.push(format!("{named} names no licence")),
            Some((expression, None)) => {
                complaints.push(format!("{named}: cannot read the licence {expression:?}"));
            }
            Some((expression, Some(false))) => complaints.push(format!(
                "{named} is under {expression:?}, which deny.toml does not allow"
            )),
            Some((_, Some(true))) => {}
        }
    }
    Ok(complaints)
}

/// The strings of `allow = [ ... ]` in the section `[licenses]`.
fn allowed(deny: &str) -> Option<Vec<String>> {
    let section = deny
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .skip_while(|line| *line != "[licenses]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .collect::<Vec<_>>()
        .join("\n");
    let list = section.split_once("allow = [")?.1.split_once(']')?.0;
    let names: Vec<String> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    (!names.is_empty()).then_some(names)
}

/// Whether `expression` can be met; `None` when it cannot be read.
fn met(expression: &str, allowed: &[String]) -> Option<bool> {
    // Before SPDX expressions, cargo used a slash for "or".
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader {
        tokens: &tokens,
        allowed,
    };
    let result = reader.any()?;
    reader.tokens.is_empty().then_some(result)
}

/// A reader by descent: `any` is a list with OR, `all` one with AND (which binds closer), `one` a
/// licence with its exception, or parentheses.
struct Reader<'a> {
    tokens: &'a [&'a str],
    allowed: &'a [String],
}

impl<'a> Reader<'a> {
    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.take_if("OR") {
            result |= self.all()?;
        }
        Some(result)
    }

    fn all(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.take_if("AND") {
            result &= self.one()?;
        }
        Some(result)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take_if("(") {
            let result = self.any()?;
            return self.take_if(")").then_some(result);
        }
        let mut name = self.take()?.to_owned();
        if matches!(name.as_str(), "OR" | "AND" | "WITH" | ")") {
            return None;
        }
        if self.take_if("WITH") {
            name = format!("{name} WITH {}", self.take()?);
        }
        Some(self.allowed.contains(&name))
    }

    fn take(&mut self) -> Option<&'a str> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn take_if(&mut self, token: &str) -> bool {
        let is_next = self.tokens.first() == Some(&token);
        if is_next {
            self.tokens = self.tokens.get(1..).unwrap_or_default();
        }
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::super::edges::Package;
    use super::*;

    const DENY: &str = "[graph]\nallow = [\"no\"]\n[licenses]\n# allow = [\"GPL\"]\nallow = [\n  \
        \"MIT\", # short\n  \"Apache-2.0\",\n  \"Apache-2.0 WITH LLVM-exception\",\n]\n[bans]\n";

    fn meets(expression: &str) -> Option<bool> {
        met(expression, &allowed(DENY).unwrap())
    }

    #[test]
    fn licence_expressions_are_met_as_spdx_says() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR X) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 AND Y OR MIT",
        ] {
            assert_eq!(meets(good), Some(true), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "GPL-3.0 AND (MIT OR X)",
            "MIT WITH odd",
            "no",
        ] {
            assert_eq!(meets(bad), Some(false), "{bad}");
        }
        for unreadable in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "OR"] {
            assert_eq!(meets(unreadable), None, "{unreadable}");
        }
    }

    #[test]
    fn licence_of_bad_package_is_named() {
        let package = |name: &str, license: Option<&str>| Package {
            id: name.into(),
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            dependencies: Vec::new(),
        };
        let metadata = Metadata {
            packages: vec![
                package("a", Some("MIT")),
                package("b", Some("GPL-3.0")),
                package("c", None),
            ],
            workspace_members: Vec::new(),
        };
        let complaints = check(&metadata, DENY).unwrap();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("b 1.0.0") && complaints[1].starts_with("c 1.0.0"));
        assert!(check(&metadata, "[licenses]\nallow = []\n").is_err());
    }
}
