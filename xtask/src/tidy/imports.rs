//! Directions inside the VMM: `virtio` never reaches for `kvm` (it has guest-memory and interrupt
//! traits for that), and a device never reaches for another device. Reads `use` declarations and
//! plain paths as text; it does not expand macros.

use std::path::Path;

use super::sources::SourceFile;

const VIRTIO: &str = "vmm/src/virtio";

/// Folders of `virtio` that are not devices: the bus that all devices are reached through.
const NOT_DEVICES: &[&str] = &["mmio", "transport"];

/// Complaints about files of `virtio`.
pub fn check(files: &[SourceFile]) -> Vec<String> {
    let devices = devices(files);
    let mut complaints = Vec::new();
    for file in files {
        let Ok(inside) = file.path.strip_prefix(VIRTIO) else {
            continue;
        };
        let module = module_path(inside);
        let own = module.get(1).filter(|name| devices.contains(name)).cloned();
        for (line, path) in paths(&file.text, &module) {
            let at = format!("{}:{line}", file.path.display());
            if path.first().is_some_and(|name| name == "kvm") {
                complaints.push(format!("{at}: virtio must not import crate::kvm"));
            }
            let other = (path.first().is_some_and(|name| name == "virtio"))
                .then(|| path.get(1))
                .flatten()
                .filter(|name| devices.contains(name));
            if let (Some(own), Some(other)) = (&own, other)
                && own != other
            {
                complaints.push(format!("{at}: device {own} must not import device {other}"));
            }
        }
    }
    complaints.dedup();
    complaints
}

/// Devices are the folders right under `virtio`.
fn devices(files: &[SourceFile]) -> Vec<String> {
    let mut found: Vec<String> = files
        .iter()
        .filter_map(|file| {
            let mut parts = file.path.strip_prefix(VIRTIO).ok()?.iter();
            let first = parts.next()?.to_string_lossy().into_owned();
            parts.next().map(|_| first)
        })
        .filter(|name| !NOT_DEVICES.contains(&name.as_str()))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// `virtio::net::worker` of `net/worker.rs`, with the crate itself left out.
fn module_path(inside_virtio: &Path) -> Vec<String> {
    let mut module = vec!["virtio".to_owned()];
    for part in inside_virtio {
        let part = part.to_string_lossy();
        let stem = part.strip_suffix(".rs").unwrap_or(&part);
        if stem != "mod" {
            module.push(stem.to_owned());
        }
    }
    module
}

/// Every path of the text that starts at the crate's root or above its own module, as names below
/// the root, with the line that it begins on.
fn paths(text: &str, module: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let mut index = 0;
    while let Some(line) = code.get(index) {
        let number = index + 1;
        index += 1;
        let Some(start) = use_declaration(line) else {
            found.extend(plain_paths(line).into_iter().map(|path| (number, path)));
            continue;
        };
        let mut declaration = start.to_owned();
        while !declaration.contains(';') {
            let Some(next) = code.get(index) else { break };
            declaration.push(' ');
            declaration.push_str(next);
            index += 1;
        }
        let tree = declaration.split(';').next().unwrap_or_default();
        // Inside an inline module `super` means this file's module, and no file-level path.
        let at_file_level = !line.starts_with([' ', '\t']);
        for flat in flatten(tree) {
            found.extend(absolute(&flat, module, at_file_level).map(|path| (number, path)));
        }
    }
    found
}

/// What follows `use` on a line that is a declaration.
fn use_declaration(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    rest.strip_prefix("use ")
}

/// `crate::a::b` wherever it stands outside of a declaration.
fn plain_paths(line: &str) -> Vec<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    line.match_indices("crate::")
        .filter_map(|(at, start)| {
            let rest = line.get(at + start.len()..)?;
            let path = rest.split(|c| !is_name(c)).next()?;
            Some(
                path.split("::")
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )
        })
        .collect()
}

/// The paths of a use tree: `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn flatten(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![names(path)];
    };
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let prefix = names(prefix);
    let mut flat = Vec::new();
    let mut depth = 0_u32;
    let mut start = 0;
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                let part = group.get(start..at).unwrap_or_default();
                start = at + 1;
                if part.trim().is_empty() {
                    continue;
                }
                for tail in flatten(part) {
                    flat.push(prefix.iter().cloned().chain(tail).collect());
                }
            }
            _ => {}
        }
    }
    flat
}

fn names(path: &str) -> Vec<String> {
    path.split("::")
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The path below the crate's root, for paths that begin with `crate`, `self` or `super`.
fn absolute(path: &[String], module: &[String], at_file_level: bool) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" if at_file_level => Some(module.iter().chain(rest).cloned().collect()),
        "super" if at_file_level => {
            let climbs = path.iter().take_while(|name| *name == "super").count();
            let kept = module.len().checked_sub(climbs)?;
            let tail = path.get(climbs..)?;
            Some(module.get(..kept)?.iter().chain(tail).cloned().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let device = |name: &str| SourceFile {
            path: format!("vmm/src/virtio/{name}/mod.rs").into(),
            text: "//! W.\n".into(),
        };
        let file = SourceFile {
            path: path.into(),
            text: text.into(),
        };
        check(&[device("net"), device("rng"), device("mmio"), file])
    }

    #[test]
    fn imports_of_kvm_by_virtio_are_refused_in_every_form() {
        for text in [
            "use crate::kvm::Vm;\n",
            "use crate::{\n    kvm::{Vm, x},\n    other,\n};\n",
            "pub(crate) use super::super::super::kvm;\n",
            "fn f(vm: &crate::kvm::Vm) {}\n",
            "mod tests {\n    use crate::kvm;\n}\n",
        ] {
            let found = complaints("vmm/src/virtio/net/worker.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("crate::kvm"), "{found:?}");
        }
        assert!(complaints("vmm/src/machine.rs", "use crate::kvm::Vm;\n").is_empty());
        assert!(
            complaints(
                "vmm/src/virtio/ring.rs",
                "// crate::kvm\nuse kvm_bindings::x;\n"
            )
            .is_empty()
        );
    }

    #[test]
    fn imports_of_a_device_by_another_are_refused_in_every_form() {
        for text in [
            "use crate::virtio::rng::Rng;\n",
            "use super::super::rng::Rng;\n",
            "use super::super::{ring, rng as r};\n",
            "let x = crate::virtio::rng::spec::ID;\n",
        ] {
            let found = complaints("vmm/src/virtio/net/worker.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(
                found[0].contains("device net must not import device rng"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn imports_of_own_parts_and_shared_ones_are_accepted() {
        for text in [
            "use super::spec::X;\n",
            "use crate::virtio::{Interrupt, net::spec, ring::Ring};\n",
            "mod tests {\n    use super::super::*;\n}\n",
        ] {
            let found = complaints("vmm/src/virtio/net/worker.rs", text);
            assert!(found.is_empty(), "{text}: {found:?}");
        }
        assert!(
            complaints(
                "vmm/src/virtio/mmio/bus.rs",
                "use crate::virtio::rng::Rng;\n"
            )
            .is_empty()
        );
    }
}
