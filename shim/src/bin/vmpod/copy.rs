//! `vmpod cp`: files between a container and the host, as tar archives of the agent. An archive from a guest is hostile
//! input: nothing in it leaves the destination, and it brings no devices.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use blocking_stream::{Reading, Writing};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use vmpod_agent_protocol::stream::StreamHeader;
use vmpod_shim::pod::hybrid_vsock::{open_stream, read_reply};
use vmpod_shim::pod::roots::Roots;

use crate::cli::CpArguments;
use crate::guest::{self, CONNECT_LIMIT};

/// How long the agent may take to say that an archive is unpacked, once it has all of it.
const UNPACK_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A path of the host.
    Host(PathBuf),
    /// Standard input or output, as a tar archive.
    Stream,
    /// A path in a pod.
    Pod { pod: String, path: String },
}

impl Side {
    /// Reads `POD:PATH`, `PATH` or `-`. A path with a colon is written with a slash before it, as with scp.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((pod, path)) if !pod.is_empty() && !pod.contains('/') && !pod.starts_with('.') => {
                Self::Pod {
                    pod: pod.to_owned(),
                    path: path.to_owned(),
                }
            }
            _ => Self::Host(PathBuf::from(text)),
        }
    }
}

/// `vmpod cp`
pub fn cp(roots: &Roots, arguments: &CpArguments) -> anyhow::Result<u8> {
    let container = arguments.container.as_deref();
    match (
        Side::parse(&arguments.source),
        Side::parse(&arguments.destination),
    ) {
        (Side::Pod { pod, path }, Side::Host(to)) => {
            from_pod(roots, &pod, container, &path, Some(&to))
        }
        (Side::Pod { pod, path }, Side::Stream) => from_pod(roots, &pod, container, &path, None),
        (Side::Host(from), Side::Pod { pod, path }) => {
            to_pod(roots, &pod, container, &path, Some(&from))
        }
        (Side::Stream, Side::Pod { pod, path }) => to_pod(roots, &pod, container, &path, None),
        _ => bail!("one side of a copy is POD:PATH, the other a path of the host or `-`"),
    }
}

fn absolute(path: &str) -> anyhow::Result<String> {
    if !path.starts_with('/') {
        bail!("{path:?}: a path in a container must be absolute");
    }
    Ok(path.to_owned())
}

fn from_pod(
    roots: &Roots,
    selector: &str,
    container: Option<&str>,
    path: &str,
    to: Option<&Path>,
) -> anyhow::Result<u8> {
    let path = absolute(path)?;
    let pod = guest::running(roots, selector)?;
    let (_, container) = pod.running_container(container)?;
    let header = StreamHeader::ArchiveRead {
        container,
        path: path.clone(),
    };
    let stream = open(&pod.pod.paths.vsock(), &header)?;
    let mut reading = Reading::new(stream);
    let Some(to) = to else {
        io::copy(&mut reading, &mut io::stdout().lock())?;
        return Ok(0);
    };
    // Like cp: into a directory that is there, else as the very name.
    let name = Path::new(&path).file_name().map(OsString::from);
    let (directory, name) = if to.is_dir() {
        (to.to_owned(), name.unwrap_or_default())
    } else {
        let parent = to
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if !parent.is_dir() {
            bail!("{} is not a directory of this host", parent.display());
        }
        (
            parent.to_owned(),
            to.file_name().map(OsString::from).unwrap_or_default(),
        )
    };
    unpack(reading, &directory, &name)
        .with_context(|| format!("cannot unpack what the container sent to {}", to.display()))?;
    Ok(0)
}

/// Unpacks an archive below `directory` with its first path component replaced by `name`.
fn unpack(reading: impl Read, directory: &Path, name: &OsString) -> io::Result<()> {
    let mut archive = tar::Archive::new(Tail {
        inner: reading,
        zeroes: 0,
    });
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            continue;
        }
        let inside = entry.path()?.into_owned();
        let Some(target) = renamed(&inside, name) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the archive names {inside:?}, which leads out of it"),
            ));
        };
        if target.as_os_str().is_empty() {
            continue;
        }
        if kind.is_hard_link() {
            // A hard link names another entry: it has to be renamed as that was, and can reach nothing else.
            let link = entry.link_name()?.map(|link| link.into_owned());
            let from = link.as_deref().and_then(|link| renamed(link, name));
            let Some(from) = from else {
                continue;
            };
            let (from, to) = (directory.join(from), directory.join(&target));
            if is_plain_inside(directory, &from) && is_plain_inside(directory, &to) {
                let _ = std::fs::remove_file(&to);
                std::fs::hard_link(from, to)?;
            }
            continue;
        }
        entry.unpack_in_as(directory, &target)?;
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    if rest.zeroes < END_MARK {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the archive was cut short",
        ));
    }
    Ok(())
}

/// Bytes of zeroes at the end of a whole archive: two blocks.
const END_MARK: u64 = 1024;

/// Counts the zeroes at the end of what is read.
struct Tail<R> {
    inner: R,
    zeroes: u64,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        let zeroes = out[..length].iter().rev().take_while(|&&b| b == 0).count();
        if zeroes == length {
            self.zeroes += length as u64;
        } else {
            self.zeroes = zeroes as u64;
        }
        Ok(length)
    }
}

/// `path` with its first component replaced by `name`; `None` when it leads out. An archive of a directory's content
/// (`.`) goes below `name` as a whole.
fn renamed(path: &Path, name: &OsString) -> Option<PathBuf> {
    let mut out = PathBuf::from(name);
    let mut first = true;
    for component in path.components() {
        match component {
            Component::Normal(part) => {
                if !first {
                    out.push(part);
                }
                first = false;
            }
            Component::CurDir => first = false,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

/// Whether no directory on the way from `base` to `path` is a link.
fn is_plain_inside(base: &Path, path: &Path) -> bool {
    let Some(rest) = path
        .parent()
        .and_then(|parent| parent.strip_prefix(base).ok())
    else {
        return false;
    };
    let mut here = base.to_owned();
    rest.components().all(|part| {
        here.push(part);
        std::fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir())
    })
}

/// Unpacking an entry at another place than its own path says, with no link followed on the way.
trait UnpackAs {
    fn unpack_in_as(&mut self, base: &Path, target: &Path) -> io::Result<()>;
}

impl<R: Read> UnpackAs for tar::Entry<'_, R> {
    fn unpack_in_as(&mut self, base: &Path, target: &Path) -> io::Result<()> {
        let path = base.join(target);
        if let Some(parent) = target.parent() {
            let mut here = base.to_owned();
            for part in parent.components() {
                here.push(part);
                match std::fs::symlink_metadata(&here) {
                    Ok(found) if found.is_dir() => {}
                    Ok(_) => {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("{} is on the way and is no directory", here.display()),
                        ));
                    }
                    Err(_) => std::fs::create_dir(&here)?,
                }
            }
        }
        // A link at the very place would be written through.
        if std::fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) {
            std::fs::remove_file(&path)?;
        }
        self.unpack(&path)?;
        Ok(())
    }
}

fn to_pod(
    roots: &Roots,
    selector: &str,
    container: Option<&str>,
    path: &str,
    from: Option<&Path>,
) -> anyhow::Result<u8> {
    let path = absolute(path)?;
    let pod = guest::running(roots, selector)?;
    let (_, container) = pod.running_container(container)?;
    if let Some(from) = from
        && std::fs::symlink_metadata(from).is_err()
    {
        bail!("{} is not there", from.display());
    }
    // Like cp: into a directory that is there, else as the very name. The agent takes archives for directories alone.
    let archive = |directory: &str| StreamHeader::ArchiveWrite {
        container: container.clone(),
        path: directory.to_owned(),
    };
    let socket = pod.pod.paths.vsock();
    let own_name = from.and_then(|from| {
        from.canonicalize()
            .ok()
            .and_then(|path| path.file_name().map(OsString::from))
    });
    let (stream, directory, name) = match (open(&socket, &archive(&path)), path.rsplit_once('/')) {
        (Ok(stream), _) => (stream, path.clone(), own_name.unwrap_or_default()),
        (Err(error), Some((parent, name))) if from.is_some() && !name.is_empty() => {
            tracing::debug!(%error, "not a directory");
            let parent = if parent.is_empty() { "/" } else { parent };
            let stream = open(&socket, &archive(parent))?;
            (stream, parent.to_owned(), OsString::from(name))
        }
        (Err(error), _) => return Err(error),
    };
    let mut writing = Writing::new(stream);
    let written = match from {
        None => io::copy(&mut io::stdin().lock(), &mut writing).map(drop),
        Some(from) => pack(&mut writing, from, Path::new(&name)),
    };
    // An agent that refuses in the middle says why: its words come before the broken connection.
    let answer = writing.finish();
    answer.with_context(|| format!("the container did not take what was to go to {directory}"))?;
    written.context("cannot send the files")?;
    Ok(0)
}

fn pack(writing: &mut Writing, from: &Path, name: &Path) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, writing));
    builder.follow_symlinks(false);
    let found = std::fs::symlink_metadata(from)?;
    if found.is_dir() {
        builder.append_dir_all(name, from)?;
    } else if found.is_symlink() {
        builder.append_path_with_name(from, name)?;
    } else {
        builder.append_file(name, &mut File::open(from)?)?;
    }
    builder.into_inner()?.flush()
}

fn open(
    socket: &Path,
    header: &StreamHeader,
) -> anyhow::Result<(tokio::runtime::Runtime, UnixStream)> {
    let runtime = guest::runtime()?;
    let stream = runtime.block_on(open_stream(socket, header, CONNECT_LIMIT))?;
    Ok((runtime, stream))
}

/// A stream of the agent for code that reads and writes in the ordinary way.
mod blocking_stream {
    use super::{AsyncWriteExt, Read, UNPACK_LIMIT, UnixStream, Write, io, read_reply};
    use anyhow::Context;
    use std::os::unix::net::UnixStream as StdStream;
    use tokio::runtime::Runtime;

    /// The reading side.
    #[derive(Debug)]
    pub struct Reading(Option<StdStream>);

    impl Reading {
        pub fn new((runtime, stream): (Runtime, UnixStream)) -> Self {
            let _guard = runtime.enter();
            let stream = stream
                .into_std()
                .and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
            Self(stream.ok())
        }
    }

    impl Read for Reading {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match &mut self.0 {
                Some(stream) => stream.read(out),
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// The writing side.
    #[derive(Debug)]
    pub struct Writing {
        runtime: Runtime,
        stream: UnixStream,
    }

    impl Writing {
        pub fn new((runtime, stream): (Runtime, UnixStream)) -> Self {
            Self { runtime, stream }
        }

        /// Ends the archive and waits for the agent's word.
        pub fn finish(mut self) -> anyhow::Result<()> {
            self.runtime.block_on(async {
                let _ = self.stream.shutdown().await;
                tokio::time::timeout(UNPACK_LIMIT, read_reply(&mut self.stream))
                    .await
                    .context("the agent did not say whether it has unpacked the archive")??;
                Ok(())
            })
        }
    }

    impl Write for Writing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.runtime.block_on(self.stream.write(bytes))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Written by hand: the builder refuses names that lead out.
        let bytes = name.as_bytes();
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, name, target).unwrap();
    }

    #[test]
    fn side_of_each_form_is_told() {
        assert_eq!(Side::parse("-"), Side::Stream);
        assert_eq!(
            Side::parse("p:/x"),
            Side::Pod {
                pod: "p".into(),
                path: "/x".into()
            }
        );
        assert_eq!(Side::parse("./a:b"), Side::Host("./a:b".into()));
        assert_eq!(Side::parse("/a"), Side::Host("/a".into()));
    }

    #[test]
    fn archive_of_a_directory_is_unpacked_under_the_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(|b| {
            file(b, "src/a", b"1");
            file(b, "src/sub/b", b"2");
        });
        unpack(&bytes[..], dir.path(), &"dst".into()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("dst/a")).unwrap(), b"1");
        assert_eq!(std::fs::read(dir.path().join("dst/sub/b")).unwrap(), b"2");
    }

    #[test]
    fn archive_cut_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(|b| file(b, "a", b"1"));
        let cut = &bytes[..bytes.len() - 1024];
        assert!(unpack(cut, dir.path(), &"dst".into()).is_err());
    }

    #[test]
    fn archive_that_leads_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        for name in ["../out", "/out", "a/../../out"] {
            let bytes = archive(|b| file(b, name, b"x"));
            assert!(
                unpack(&bytes[..], &inside, &"dst".into()).is_err(),
                "{name}"
            );
        }
        let through_link = archive(|b| {
            link(b, "src/l", dir.path().to_str().unwrap());
            file(b, "src/l/out", b"x");
        });
        assert!(unpack(&through_link[..], &inside, &"dst".into()).is_err());
        let over_link = archive(|b| {
            link(b, "src/l", dir.path().join("out").to_str().unwrap());
            file(b, "src/l", b"x");
        });
        unpack(&over_link[..], &inside, &"other".into()).unwrap();
        assert!(!dir.path().join("out").exists());
    }
}
