//! The runtime `vmpod` in containerd's configuration: an entry for its CRI plugin. containerd 1.x replaces whole sections by
//! what it imports, so that the entry goes into the file itself; 2.x merges, and gets a file of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::{InstallError, Target, failing, write};

/// Name of the runtime, and with it of the runtime class's handler.
const HANDLER: &str = "vmpod";

const RUNTIME_TYPE: &str = "io.containerd.vmpod.v2";

/// Where containerd is looked for.
const PROGRAMS: [&str; 3] = [
    "/usr/bin/containerd",
    "/usr/local/bin/containerd",
    "/usr/sbin/containerd",
];

/// A version of containerd, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `2` of 2.1.9.
    pub major: u32,
    /// `1` of 2.1.9.
    pub minor: u32,
}

/// A text is no version, or one that is too old.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// It is none.
    #[error("{0:?} is not a version of containerd, such as 1.7.24")]
    Text(String),
    /// It is too old.
    #[error("containerd {0} is older than 1.6, which is the first that vmpod works with")]
    Old(String),
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError::Text(text.to_owned());
        let mut numbers = text.trim_start_matches('v').split('.');
        let mut number = || -> Option<u32> {
            let part = numbers.next()?;
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part.get(..end)?.parse().ok()
        };
        let version = Self {
            major: number().ok_or_else(bad)?,
            minor: number().ok_or_else(bad)?,
        };
        if version < (Self { major: 1, minor: 6 }) {
            return Err(VersionError::Old(text.to_owned()));
        }
        Ok(version)
    }
}

/// The version of the host's containerd; `None`: there is none.
pub(super) fn version(target: &Target) -> Result<Option<Version>, VersionError> {
    if let Some(version) = target.version {
        return Ok(Some(version));
    }
    let told = PROGRAMS.iter().find_map(|program| {
        let said = target
            .program(Path::new(program))
            .arg("--version")
            .output()
            .ok()?;
        String::from_utf8(said.stdout).ok()
    });
    // "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1"
    told.map(|line| {
        line.split_whitespace()
            .nth(2)
            .unwrap_or_default()
            .parse::<Version>()
    })
    .transpose()
}

/// Tables that lead to the runtimes, in the configuration of each major version.
fn runtimes_path(version: Version) -> [&'static str; 4] {
    if version.major >= 2 {
        [
            "plugins",
            "io.containerd.cri.v1.runtime",
            "containerd",
            "runtimes",
        ]
    } else {
        [
            "plugins",
            "io.containerd.grpc.v1.cri",
            "containerd",
            "runtimes",
        ]
    }
}

fn read(path: &Path) -> Result<Option<DocumentMut>, InstallError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failing("read", path)(error)),
    };
    text.parse()
        .map(Some)
        .map_err(|source| InstallError::Config {
            path: path.to_owned(),
            source,
        })
}

fn save(path: &Path, document: &DocumentMut) -> Result<(), InstallError> {
    write(path, document.to_string().as_bytes(), 0o644)
}

/// The table at `path`, made where it is missing without a heading of its own.
fn table<'a>(document: &'a mut DocumentMut, path: &[&str]) -> Option<&'a mut Table> {
    let mut table = document.as_table_mut();
    for name in path {
        let item = table.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            made.set_implicit(true);
            Item::Table(made)
        });
        table = item.as_table_mut()?;
    }
    Some(table)
}

/// Adds the runtime to `document`. Returns whether that changed anything; `None`: what should be a table is none.
fn add_runtime(document: &mut DocumentMut, version: Version) -> Option<bool> {
    let runtimes = table(document, &runtimes_path(version))?;
    let present = runtimes
        .get(HANDLER)
        .and_then(|runtime| runtime.get("runtime_type"))
        .and_then(Item::as_str)
        == Some(RUNTIME_TYPE);
    if present {
        return Some(false);
    }
    let mut runtime = Table::new();
    runtime.insert("runtime_type", value(RUNTIME_TYPE));
    let mut annotations = Array::new();
    annotations.push("vmpod.io/*");
    runtime.insert("pod_annotations", value(annotations));
    // Privileged containers get no devices of the host.
    runtime.insert("privileged_without_host_devices", value(true));
    if version.major >= 2 {
        // The shim makes the pod itself: no pause container, and no image for it.
        runtime.insert("sandboxer", value("shim"));
    }
    runtimes.insert(HANDLER, Item::Table(runtime));
    Some(true)
}

/// Removes the runtime, and the tables that hold nothing any more.
fn remove_runtime(table: &mut Table, path: &[&str]) -> bool {
    let Some((name, rest)) = path.split_first() else {
        return table.remove(HANDLER).is_some();
    };
    let Some(inner) = table.get_mut(name).and_then(Item::as_table_mut) else {
        return false;
    };
    let removed = remove_runtime(inner, rest);
    if removed && inner.is_empty() && inner.is_implicit() {
        table.remove(name);
    }
    removed
}

fn drop_in(target: &Target) -> PathBuf {
    let directory = target.config.parent().unwrap_or(Path::new("/"));
    directory.join("conf.d/vmpod.toml")
}

/// Adds the runtime to containerd's configuration. Returns what was done.
pub(super) fn add(target: &Target, version: Version) -> Result<Vec<String>, InstallError> {
    let path = target.on_host(&target.config);
    let found = read(&path)?;
    let unfit = |why: String| InstallError::Unfit {
        path: path.clone(),
        why,
    };
    let new = found.is_none();
    let mut document = found.unwrap_or_default();
    if new {
        let number = if version.major >= 2 { 3 } else { 2 };
        document.insert("version", value(number));
    } else if document
        .get("version")
        .and_then(Item::as_integer)
        .unwrap_or(1)
        < 2
    {
        return Err(unfit(
            "it is of version 1 of containerd's configuration; write it anew with `containerd config migrate` or `containerd config default`"
                .into(),
        ));
    }
    let mut done = Vec::new();
    let changed = if version.major >= 2 {
        let own = drop_in(target);
        let mut runtime = DocumentMut::new();
        runtime.insert("version", value(3));
        let _ = add_runtime(&mut runtime, version);
        let place = target.on_host(&own);
        if !fs::read_to_string(&place).is_ok_and(|old| old == runtime.to_string()) {
            save(&place, &runtime)?;
            done.push(format!("wrote {}", own.display()));
        }
        add_import(&mut document, &own)
    } else {
        add_runtime(&mut document, version)
    };
    match changed {
        Some(true) => {
            save(&path, &document)?;
            done.push(format!(
                "changed {}: the runtime {HANDLER} is {RUNTIME_TYPE}",
                target.config.display()
            ));
        }
        Some(false) => {}
        None => return Err(unfit("what should be a table of plugins is none".into())),
    }
    Ok(done)
}

/// Has `document` import `own`, unless a pattern of it does.
fn add_import(document: &mut DocumentMut, own: &Path) -> Option<bool> {
    let own = own.to_string_lossy();
    let all = format!(
        "{}/*.toml",
        own.rsplit_once('/').map_or("", |(directory, _)| directory)
    );
    let imports = document
        .entry("imports")
        .or_insert_with(|| value(Array::new()))
        .as_array_mut()?;
    let present = imports
        .iter()
        .filter_map(|import| import.as_str())
        .any(|import| import == own || import == all);
    if !present {
        imports.push(own.as_ref());
    }
    Some(!present)
}

/// Takes the runtime out of containerd's configuration. Returns what was done.
pub(super) fn remove(target: &Target) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    let path = target.on_host(&target.config);
    let own = drop_in(target);
    if let Some(mut document) = read(&path)? {
        let mut changed = false;
        for major in [1, 2] {
            let path = runtimes_path(Version { major, minor: 0 });
            changed |= remove_runtime(document.as_table_mut(), &path);
        }
        if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
            let before = imports.len();
            imports.retain(|import| import.as_str().map(Path::new) != Some(&own));
            changed |= imports.len() != before;
            if imports.is_empty() && imports.len() != before {
                document.remove("imports");
            }
        }
        if changed {
            save(&path, &document)?;
            done.push(format!(
                "changed {}: the runtime {HANDLER} is gone",
                target.config.display()
            ));
        }
    }
    let place = target.on_host(&own);
    match fs::remove_file(&place) {
        Ok(()) => {
            done.push(format!("removed {}", own.display()));
            if let Some(directory) = place.parent() {
                // Others may have files there.
                let _ = fs::remove_dir(directory);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failing("remove", &place)(error)),
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_as_containerd_writes_it() {
        let version = |text: &str| text.parse::<Version>();
        assert_eq!(version("1.6.20~ds1"), Ok(Version { major: 1, minor: 6 }));
        assert_eq!(version("v2.1.9+x"), Ok(Version { major: 2, minor: 1 }));
        assert!(matches!(version("1.5.2"), Err(VersionError::Old(_))));
        assert!(matches!(version("x"), Err(VersionError::Text(_))));
    }

    #[test]
    fn runtime_is_added_beside_others_and_found_again() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
        let mut document: DocumentMut = text.parse().unwrap();
        let version = Version { major: 1, minor: 7 };
        assert_eq!(add_runtime(&mut document, version), Some(true));
        assert_eq!(add_runtime(&mut document, version), Some(false));
        let made = document.to_string();
        assert!(
            made.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.vmpod]"),
            "{made}"
        );
        assert!(made.starts_with(text), "{made}");
        assert!(!made.contains("sandboxer"), "{made}");
        assert!(remove_runtime(
            document.as_table_mut(),
            &runtimes_path(version)
        ));
        assert_eq!(document.to_string(), text);
        let mut wrong: DocumentMut = "plugins = 1".parse().unwrap();
        assert_eq!(add_runtime(&mut wrong, version), None);
    }

    #[test]
    fn runtime_of_containerd_2_makes_the_sandbox_itself() {
        let mut document: DocumentMut = "version = 3\n".parse().unwrap();
        let version = Version { major: 2, minor: 1 };
        assert_eq!(add_runtime(&mut document, version), Some(true));
        let made = document.to_string();
        assert!(made.contains("sandboxer = \"shim\""), "{made}");
    }

    #[test]
    fn import_of_a_pattern_that_covers_it_is_enough() {
        let own = Path::new("/etc/containerd/conf.d/vmpod.toml");
        let mut document: DocumentMut = "imports = [\"/etc/containerd/conf.d/*.toml\"]"
            .parse()
            .unwrap();
        assert_eq!(add_import(&mut document, own), Some(false));
        let mut document: DocumentMut = "imports = [\"/a\"]".parse().unwrap();
        assert_eq!(add_import(&mut document, own), Some(true));
        assert!(
            document.to_string().contains("\"/a\", \"/etc"),
            "{document}"
        );
    }
}
