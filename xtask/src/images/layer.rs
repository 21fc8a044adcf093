//! Layers: a tree, or what was added to a tree, as a tar stream that is the same for the same tree, compressed by zstd.
//!
//! Kept in the cache with the digests that manifests need. Sockets and extended attributes are left out: the packages
//! used here have neither.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::process;
use crate::progress::Step;

/// Files that were made during the build get this time, so that it does not show when that was. Others keep theirs:
/// Java's archive of classes is only used while the file it was made from has the time it had.
const NEWEST: u64 = 1_760_000_000;

/// A compressed layer in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layer {
    /// `sha256:` digest of the tar stream.
    pub diff_id: String,
    /// `sha256:` digest of the compressed file.
    pub digest: String,
    /// Bytes of the compressed file.
    pub size: u64,
    /// The compressed file.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Layer {
    /// The layer kept under `dir`, if it is whole.
    pub fn cached(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join("layer.json")).ok()?;
        let mut layer: Self = serde_json::from_slice(&text).ok()?;
        layer.path = dir.join("layer.tar.zst");
        (fs::metadata(&layer.path).ok()?.len() == layer.size).then_some(layer)
    }

    /// Writes a layer into the cache folder `dir`, by way of `work` on the same file system. What is newer than `begun`
    /// was made by the build.
    ///
    /// # Errors
    /// When files cannot be read or written, or zstd fails.
    pub fn write(
        tree: &Path,
        before: Option<&Snapshot>,
        begun: SystemTime,
        dir: &Path,
        work: &Path,
        step: &mut Step,
    ) -> Result<Self> {
        step.note("writing the layer");
        let plain = work.join("layer.tar");
        let mut out = Hashing::new(BufWriter::new(
            File::create(&plain).with_context(|| format!("creating {}", plain.display()))?,
        ));
        write_tree(tree, before, begun, &mut out)?;
        let diff_id = out.finish()?;
        step.note("compressing the layer");
        let packed = work.join("layer.tar.zst");
        process::run(
            Command::new("zstd")
                .args(["-q", "-f", "-3", "-T2", "--rm"])
                .arg(&plain)
                .arg("-o")
                .arg(&packed),
            step,
        )?;
        let (digest, size) = hash_file(&packed)?;
        let mut layer = Self {
            diff_id,
            digest,
            size,
            path: packed,
        };
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let place = dir.join("layer.tar.zst");
        fs::rename(&layer.path, &place)
            .with_context(|| format!("renaming to {}", place.display()))?;
        layer.path = place;
        // Last, as it says that the layer is there.
        crate::workspace::write_atomically(&dir.join("layer.json"), &serde_json::to_vec(&layer)?)?;
        Ok(layer)
    }

    /// Unpacks the layer below `tree`.
    ///
    /// # Errors
    /// When tar fails.
    pub fn unpack(&self, tree: &Path, step: &mut Step) -> Result<()> {
        fs::create_dir_all(tree).with_context(|| format!("creating {}", tree.display()))?;
        step.note("unpacking the layer below");
        let mut command = Command::new("tar");
        command
            .args(["--zstd", "--numeric-owner", "-xpf"])
            .arg(&self.path)
            .arg("-C")
            .arg(tree);
        process::run(&mut command, step)
    }
}

/// The `sha256:` digest and the number of bytes of a file.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut out = Hashing::new(io::sink());
    let size =
        io::copy(&mut file, &mut out).with_context(|| format!("reading {}", path.display()))?;
    Ok((out.finish()?, size))
}

/// The `sha256:` digest of bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    shown(Sha256::new_with_prefix(bytes))
}

fn shown(hasher: Sha256) -> String {
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    fn finish(mut self) -> Result<String> {
        self.inner.flush().context("writing")?;
        Ok(shown(self.hasher))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What a tree looked like at one time: enough to tell each object that was changed since.
#[derive(Debug)]
pub struct Snapshot {
    objects: BTreeMap<PathBuf, (u64, i64, i64)>,
}

impl Snapshot {
    /// Looks at every object below `tree`.
    ///
    /// # Errors
    /// When it cannot be walked.
    pub fn of(tree: &Path) -> Result<Self> {
        let mut objects = BTreeMap::new();
        for path in walk(tree)? {
            objects.insert(path.clone(), mark(&tree.join(&path))?);
        }
        Ok(Self { objects })
    }
}

/// Any change of an object changes its inode's change time, or the inode.
fn mark(path: &Path) -> Result<(u64, i64, i64)> {
    let found =
        fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// All paths below `tree`, relative, parents first, in the order of their bytes.
fn walk(tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let path = tree.join(&folder);
        for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
            let entry = entry.with_context(|| format!("listing {}", path.display()))?;
            let child = folder.join(entry.file_name());
            if entry
                .file_type()
                .with_context(|| format!("looking at {}", child.display()))?
                .is_dir()
            {
                open.push(child.clone());
            }
            found.insert(child);
        }
    }
    Ok(found)
}

fn write_tree(
    tree: &Path,
    before: Option<&Snapshot>,
    begun: SystemTime,
    out: &mut impl Write,
) -> Result<()> {
    let mut builder = Builder::new(out);
    let mut linked: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let present = walk(tree)?;
    for path in &present {
        let whole = tree.join(path);
        if let Some(before) = before
            && before.objects.get(path) == Some(&mark(&whole)?)
        {
            continue;
        }
        write_object(&mut builder, &whole, path, begun, &mut linked)
            .with_context(|| format!("writing {} into the layer", whole.display()))?;
    }
    let removed = before
        .into_iter()
        .flat_map(|before| before.objects.keys())
        .filter(|path| !present.contains(*path));
    for path in removed {
        // Removing a directory removes what is in it.
        if path
            .parent()
            .is_some_and(|parent| !parent.as_os_str().is_empty() && !present.contains(parent))
        {
            continue;
        }
        let name = path.file_name().context("a path without a name")?;
        let mut hidden = std::ffi::OsString::from(".wh.");
        hidden.push(name);
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(NEWEST);
        header.set_size(0);
        builder
            .append_data(&mut header, path.with_file_name(hidden), io::empty())
            .context("writing a whiteout")?;
    }
    builder
        .into_inner()
        .context("ending the layer")?
        .flush()
        .context("writing the layer")
}

fn write_object<W: Write>(
    builder: &mut Builder<W>,
    whole: &Path,
    path: &Path,
    begun: SystemTime,
    linked: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<()> {
    let found = fs::symlink_metadata(whole)?;
    let kind = found.file_type();
    let mut header = Header::new_gnu();
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(u64::from(found.uid()));
    header.set_gid(u64::from(found.gid()));
    let made_here = found.modified().is_ok_and(|time| time >= begun);
    let mtime = u64::try_from(found.mtime()).unwrap_or(0);
    header.set_mtime(if made_here { NEWEST } else { mtime });
    header.set_size(0);
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return Ok(builder.append_data(&mut header, path, io::empty())?);
    }
    if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        return Ok(builder.append_link(&mut header, path, fs::read_link(whole)?)?);
    }
    if kind.is_socket() {
        return Ok(());
    }
    if !kind.is_file() {
        bail!("it is neither a file nor a directory nor a link");
    }
    if found.nlink() > 1
        && let Some(first) = linked.get(&(found.dev(), found.ino()))
    {
        header.set_entry_type(EntryType::Link);
        return Ok(builder.append_link(&mut header, path, first)?);
    }
    linked.insert((found.dev(), found.ino()), path.to_path_buf());
    header.set_entry_type(EntryType::Regular);
    header.set_size(found.len());
    Ok(builder.append_data(&mut header, path, File::open(whole)?)?)
}

/// A hash of texts that go into something, in 16 digits.
#[must_use]
pub fn key_of(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length keeps neighbours from running into each other.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    shown(hasher)
        .trim_start_matches("sha256:")
        .chars()
        .take(16)
        .collect()
}

/// Whether a name may stand in a path of the cache as it is.
#[must_use]
pub fn file_name_of(image: &str) -> String {
    image
        .as_bytes()
        .iter()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || *byte == b'.' {
                char::from(*byte)
            } else {
                '-'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn entries(tar: &[u8]) -> Vec<(String, EntryType)> {
        let mut archive = tar::Archive::new(tar);
        let read = |entry: tar::Entry<'_, &[u8]>| {
            (
                entry.path().unwrap().to_str().unwrap().to_owned(),
                entry.header().entry_type(),
            )
        };
        archive
            .entries()
            .unwrap()
            .map(|entry| read(entry.unwrap()))
            .collect()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/deep")).unwrap();
        fs::write(dir.path().join("etc/a"), "1").unwrap();
        fs::hard_link(dir.path().join("etc/a"), dir.path().join("etc/b")).unwrap();
        symlink("a", dir.path().join("etc/link")).unwrap();
        fs::write(dir.path().join("etc/deep/x"), "2").unwrap();
        dir
    }

    #[test]
    fn tree_written_twice_gives_the_same_bytes() {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        write_tree(tree().path(), None, SystemTime::UNIX_EPOCH, &mut one).unwrap();
        write_tree(tree().path(), None, SystemTime::UNIX_EPOCH, &mut two).unwrap();
        assert_eq!(one, two);
        let kinds: Vec<_> = entries(&one)
            .into_iter()
            .map(|(path, kind)| format!("{path} {kind:?}"))
            .collect();
        assert_eq!(
            kinds,
            [
                "etc Directory",
                "etc/a Regular",
                "etc/b Link",
                "etc/deep Directory",
                "etc/deep/x Regular",
                "etc/link Symlink"
            ]
        );
    }

    #[test]
    fn tree_against_a_snapshot_gives_changes_and_whiteouts_only() {
        let dir = tree();
        let before = Snapshot::of(dir.path()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(dir.path().join("new"), "3").unwrap();
        fs::remove_dir_all(dir.path().join("etc/deep")).unwrap();
        let mut tar = Vec::new();
        write_tree(dir.path(), Some(&before), SystemTime::UNIX_EPOCH, &mut tar).unwrap();
        let names: Vec<_> = entries(&tar).into_iter().map(|(path, _)| path).collect();
        assert_eq!(names, ["etc", "new", "etc/.wh.deep"]);
    }

    #[test]
    fn key_of_parts_that_run_into_each_other_differs() {
        assert_ne!(key_of(&["ab", "c"]), key_of(&["a", "bc"]));
        assert_eq!(key_of(&["a"]).len(), 16);
    }
}
