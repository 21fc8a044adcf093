//! Volumes made of objects, as a kubelet lays them out: the content in a directory of its own, a `..data` link to it, and a
//! link for each top-level name. An update makes another directory and turns `..data` to it by one rename, so that whoever
//! reads sees the old files or the new ones, never some of each.
//!
//! The pod sees these directories read-only: what is found in them was written here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use super::volumes::{VolumeError, failing};
use crate::manifest::plan::FileContent;

/// The link that every reader goes through.
const DATA: &str = "..data";

/// Where the link is made before it takes its place.
const DATA_NEW: &str = "..data_tmp";

/// Beginning of the names of directories with content; a number follows.
const CONTENT: &str = "..content_";

/// Brings the files of the volume at `directory` to `files`, all at once. Returns whether anything changed.
///
/// # Errors
/// When a name could leave the volume or something cannot be written; the old files stay then.
pub fn write_files(
    directory: &Path,
    files: &BTreeMap<String, FileContent>,
    fs_group: Option<u32>,
) -> Result<bool, VolumeError> {
    let mut top_level = BTreeSet::new();
    for name in files.keys() {
        top_level
            .insert(first_part(name).ok_or_else(|| VolumeError::FileName { name: name.clone() })?);
    }
    make_directory(directory)?;
    let before = fs::read_link(directory.join(DATA)).ok();
    if let Some(before) = &before
        && holds(&directory.join(before), files, fs_group)
    {
        return Ok(false);
    }
    let number = before
        .as_ref()
        .and_then(|name| name.to_str()?.strip_prefix(CONTENT)?.parse::<u64>().ok())
        .map_or(0, |number| number.wrapping_add(1));
    let name = format!("{CONTENT}{number}");
    let content = directory.join(&name);
    // An update that was killed may have left its beginning.
    absent(fs::remove_dir_all(&content)).map_err(failing("remove", &content))?;
    fill(&content, files, fs_group)?;

    let fresh = directory.join(DATA_NEW);
    absent(fs::remove_file(&fresh)).map_err(failing("remove", &fresh))?;
    std::os::unix::fs::symlink(&name, &fresh).map_err(failing("make link", &fresh))?;
    let data = directory.join(DATA);
    fs::rename(&fresh, &data).map_err(failing("turn link", &data))?;

    for name in &top_level {
        let link = directory.join(name);
        match std::os::unix::fs::symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failing("make link", &link)(error));
            }
            _ => {}
        }
    }
    for entry in fs::read_dir(directory)
        .map_err(failing("list", directory))?
        .flatten()
    {
        let name = entry.file_name();
        let own = name.as_encoded_bytes().starts_with(b"..");
        if !own && !top_level.contains(&name) {
            let link = entry.path();
            absent(fs::remove_file(&link)).map_err(failing("remove", &link))?;
        }
    }
    Ok(true)
}

/// Removes what the volume at `directory` held before. To be called a while after [`write_files`]: a reader in the guest
/// may be on its way through the link, which takes it several requests.
///
/// # Errors
/// When something resists.
pub fn remove_old_files(directory: &Path) -> Result<(), VolumeError> {
    let data = directory.join(DATA);
    let current = fs::read_link(&data).map_err(failing("read link", &data))?;
    for entry in fs::read_dir(directory)
        .map_err(failing("list", directory))?
        .flatten()
    {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(CONTENT.as_bytes()) && current != Path::new(&name) {
            let old = entry.path();
            absent(fs::remove_dir_all(&old)).map_err(failing("remove", &old))?;
        }
    }
    Ok(())
}

/// The first part of a relative path without `..` that does not begin with two dots.
fn first_part(name: &str) -> Option<OsString> {
    let relative = Path::new(name);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match relative.components().next().filter(|_| plain)? {
        Component::Normal(first) if !first.as_encoded_bytes().starts_with(b"..") => {
            Some(first.to_owned())
        }
        _ => None,
    }
}

fn make_directory(path: &Path) -> Result<(), VolumeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(failing("make directory", path))
}

/// The permission bits of a file: its group can read what the owner can, where the group is the pod's.
fn mode_of(file: &FileContent, fs_group: Option<u32>) -> u32 {
    let mode = file.mode & 0o777;
    if fs_group.is_some() {
        mode | (mode & 0o400) >> 3
    } else {
        mode
    }
}

fn fill(
    content: &Path,
    files: &BTreeMap<String, FileContent>,
    fs_group: Option<u32>,
) -> Result<(), VolumeError> {
    make_directory(content)?;
    for (name, file) in files {
        let path = content.join(name);
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        let mut written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failing("make file", &path))?;
        written
            .write_all(&file.bytes)
            .map_err(failing("write", &path))?;
        if let Some(group) = fs_group {
            std::os::unix::fs::fchown(&written, None, Some(group))
                .map_err(failing("give to the fsGroup", &path))?;
        }
        written
            .set_permissions(fs::Permissions::from_mode(mode_of(file, fs_group)))
            .map_err(failing("set the permissions of", &path))?;
    }
    Ok(())
}

/// Whether `content` holds these files and no others.
fn holds(content: &Path, files: &BTreeMap<String, FileContent>, fs_group: Option<u32>) -> bool {
    let same = |(name, file): (&String, &FileContent)| {
        let path = content.join(name);
        fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
            && fs::metadata(&path)
                .is_ok_and(|found| found.permissions().mode() & 0o7777 == mode_of(file, fs_group))
    };
    count_files(content) == Some(files.len()) && files.iter().all(same)
}

fn count_files(directory: &Path) -> Option<usize> {
    let mut count = 0_usize;
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).ok()? {
            let entry = entry.ok()?;
            if entry.file_type().ok()?.is_dir() {
                open.push(entry.path());
            } else {
                count = count.saturating_add(1);
            }
        }
    }
    Some(count)
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, FileContent> {
        list.iter()
            .map(|(name, text)| {
                let bytes = text.as_bytes().to_vec();
                ((*name).to_owned(), FileContent { bytes, mode: 0o440 })
            })
            .collect()
    }

    fn read(directory: &Path, name: &str) -> Option<String> {
        fs::read_to_string(directory.join(name)).ok()
    }

    #[test]
    fn files_are_reached_through_the_data_link() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_files(dir, &files(&[("key", "v"), ("sub/key", "w")]), None).unwrap();
        assert_eq!(read(dir, "key").as_deref(), Some("v"));
        assert_eq!(read(dir, "..data/sub/key").as_deref(), Some("w"));
        let link = fs::read_link(dir.join("key")).unwrap();
        assert_eq!(link, Path::new("..data/key"));
    }

    #[test]
    fn files_with_names_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "/x", "", "..data", "a/../b"] {
            let refused = write_files(&dir.path().join("v"), &files(&[(name, "")]), None);
            assert!(
                matches!(refused, Err(VolumeError::FileName { .. })),
                "{name}"
            );
        }
        assert!(!dir.path().join("v").exists());
    }

    #[test]
    fn files_written_again_are_swapped_and_what_is_gone_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = files(&[("a", "1"), ("b/x", "1")]);
        assert!(write_files(dir, &first, None).unwrap());
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write_files(dir, &first, None).unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);

        assert!(write_files(dir, &files(&[("a", "2"), ("c", "2")]), None).unwrap());
        assert_eq!(read(dir, "a").as_deref(), Some("2"));
        assert_eq!(read(dir, "c").as_deref(), Some("2"));
        assert!(fs::symlink_metadata(dir.join("b")).is_err());
        assert_ne!(fs::read_link(dir.join(DATA)).unwrap(), before);
        assert!(dir.join(&before).exists(), "for who reads there now");
        remove_old_files(dir).unwrap();
        assert!(!dir.join(before).exists());
        // One directory of content, and the link to it.
        assert_eq!(fs::read_dir(dir).unwrap().count(), 4);
        // A file fewer alone is a change as well.
        assert!(write_files(dir, &files(&[("a", "2")]), None).unwrap());
        assert!(write_files(dir, &files(&[]), None).unwrap());
        remove_old_files(dir).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
    }
}
