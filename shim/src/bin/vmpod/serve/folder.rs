//! The folder of manifests: which pods it asks for.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use vmpod_shim::manifest;
use vmpod_shim::manifest::source::MANIFEST_BYTES;

/// What a folder asks for.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// Hash of each file that holds a pod.
    pub(super) pods: BTreeMap<PathBuf, String>,
    /// Files that cannot be meant, and why. A pod that runs from one goes on.
    pub(super) broken: BTreeMap<PathBuf, String>,
}

/// Reads the folder. Files whose names begin with a dot or do not end in `.yaml`, `.yml` or `.json` are passed over, as
/// editors leave them.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn read(folder: &Path) -> io::Result<Desired> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ending = path.extension().unwrap_or_default().to_string_lossy();
            !name.starts_with('.') && ["yaml", "yml", "json"].contains(&ending.as_ref())
        })
        .collect();
    files.sort();
    let mut desired = Desired::default();
    let mut names: BTreeMap<(String, String), PathBuf> = BTreeMap::new();
    for file in files {
        match pod_of(&file) {
            Ok((name, hash)) => match names.get(&name) {
                Some(other) => {
                    let why = format!(
                        "its pod {:?} is that of {} as well, which goes first",
                        name.1,
                        other.display()
                    );
                    desired.broken.insert(file, why);
                }
                None => {
                    names.insert(name, file.clone());
                    desired.pods.insert(file, hash);
                }
            },
            Err(why) => {
                desired.broken.insert(file, why);
            }
        }
    }
    Ok(desired)
}

/// Namespace and name of the pod in `file`, and the file's hash.
fn pod_of(file: &Path) -> Result<((String, String), String), String> {
    let bytes = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > MANIFEST_BYTES {
        return Err(format!("has more than {MANIFEST_BYTES} bytes"));
    }
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let text = String::from_utf8(bytes).map_err(|_| "is no UTF-8 text".to_owned())?;
    let objects =
        manifest::objects(&text, &file.to_string_lossy()).map_err(|error| error.to_string())?;
    match objects.pods.as_slice() {
        [(pod, _)] => {
            let namespace = pod.metadata.namespace.clone();
            let name = pod.metadata.name.clone().unwrap_or_default();
            Ok(((namespace.unwrap_or_else(|| "default".into()), name), hash))
        }
        pods => Err(format!(
            "holds {} Pods; a static pod's file holds one",
            pods.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_with_pods_and_other_files_names_what_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n";
        write("a.yaml", pod);
        write("b.yml", pod);
        write("c.json", "{");
        write(".a.yaml.swp", "x");
        write("notes.txt", "x");
        let desired = read(dir.path()).unwrap();
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(
            desired.pods.keys().map(name).collect::<Vec<_>>(),
            ["a.yaml"]
        );
        assert_eq!(
            desired.broken.keys().map(name).collect::<Vec<_>>(),
            ["b.yml", "c.json"]
        );
        let before = desired.pods.values().next().cloned();
        write("a.yaml", &format!("{pod}# changed\n"));
        assert_ne!(
            read(dir.path()).unwrap().pods.values().next().cloned(),
            before
        );
    }
}
