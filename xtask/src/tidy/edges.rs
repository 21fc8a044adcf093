//! Which crate may depend on which: the direction of dependencies that ARCHITECTURE.md draws.
//! Owns the shape of `cargo metadata` that the other rules read as well.

use serde::Deserialize;

/// The part of `cargo metadata --format-version 1` that the rules read.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub workspace_members: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    pub dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
}

impl Metadata {
    /// The packages of this workspace.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }
}

/// Each crate of the workspace and the crates of the workspace that it may depend on, in whatever
/// way (build, development and ordinary dependencies alike).
const ALLOWED: &[(&str, &[&str])] = &[
    ("vmpod-agent-protocol", &[]),
    ("vmpod-vmm-api", &[]),
    ("vmpod-guest-image", &[]),
    ("vmpod-agent", &["vmpod-agent-protocol"]),
    ("vmpod-vmm", &["vmpod-vmm-api"]),
    ("vmpod-shim", &["vmpod-agent-protocol", "vmpod-vmm-api"]),
    ("vmpod-tests", &["vmpod-agent-protocol", "vmpod-vmm-api"]),
    ("xtask", &["vmpod-guest-image"]),
];

/// Complaints about edges that are not in the table, and crates that it does not know.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let members: Vec<&str> = metadata
        .members()
        .map(|package| package.name.as_str())
        .collect();
    let mut complaints = Vec::new();
    for package in metadata.members() {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            complaints.push(format!(
                "crate {} is not in the table of xtask/src/tidy/edges.rs; say there what it may \
                 depend on",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if members.contains(&name) && name != package.name && !allowed.contains(&name) {
                complaints.push(format!(
                    "crate {} depends on {name}; it may depend on {} only",
                    package.name,
                    if allowed.is_empty() {
                        "no crate of the workspace".into()
                    } else {
                        allowed.join(", ")
                    }
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(edges: &[(&str, &[&str])]) -> Metadata {
        let packages: Vec<Package> = edges
            .iter()
            .map(|(name, dependencies)| Package {
                id: format!("{name}-id"),
                name: (*name).to_owned(),
                version: "1.0.0".into(),
                license: Some("MIT".into()),
                dependencies: dependencies
                    .iter()
                    .map(|name| Dependency {
                        name: (*name).to_owned(),
                    })
                    .collect(),
            })
            .collect();
        let workspace_members = packages.iter().map(|package| package.id.clone()).collect();
        Metadata {
            packages,
            workspace_members,
        }
    }

    #[test]
    fn edges_with_shim_on_vmm_are_refused() {
        let bad = metadata(&[
            ("vmpod-shim", &["vmpod-vmm", "libc"]),
            ("vmpod-vmm", &["vmpod-vmm-api"]),
        ]);
        let complaints = check(&bad);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints[0].contains("vmpod-shim depends on vmpod-vmm"),
            "{complaints:?}"
        );
    }

    #[test]
    fn edges_with_protocol_on_anything_are_refused() {
        let bad = metadata(&[
            ("vmpod-agent-protocol", &["vmpod-vmm-api"]),
            ("vmpod-vmm-api", &[]),
        ]);
        assert!(check(&bad)[0].contains("no crate of the workspace"));
    }

    #[test]
    fn edges_with_unknown_crate_are_refused() {
        assert!(check(&metadata(&[("vmpod-extra", &[])]))[0].contains("not in the table"));
    }

    #[test]
    fn edges_as_drawn_are_accepted() {
        let good = metadata(&[
            (
                "vmpod-shim",
                &["vmpod-agent-protocol", "vmpod-vmm-api", "tokio"],
            ),
            ("vmpod-agent", &["vmpod-agent-protocol"]),
            ("vmpod-agent-protocol", &["ttrpc"]),
            ("vmpod-vmm-api", &["serde"]),
        ]);
        assert_eq!(check(&good), Vec::<String>::new());
    }
}
