//! Tar archives of a container's files, out and in.
//!
//! Done by a child that joins the container's mount namespace, so that every path and link means what it means to the
//! container, and that speaks on the connection itself; the agent only waits for it. The child keeps the agent's
//! privileges, so it opens nothing but regular files and directories, and never blocks on a pipe that lies around.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use tar::{Archive, Builder, EntryType, Header};
use vmpod_agent_protocol::stream::{StreamReply, encode_line};

use super::refuse;
use crate::byte_stream::ByteStream;
use crate::container::{At as _, Engine, StepError, become_root_of_namespace};
use crate::process::{CloneRequest, clone_process, keep_descriptors};

/// Which way the archive goes, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the container.
    Read,
    /// Into the container.
    Write,
}

/// Directories within directories that are followed.
const DEPTH: usize = 512;

/// Whose files.
struct Place {
    /// A process of the container.
    pidfd: OwnedFd,
    /// It is in another user namespace than the agent.
    other_users: bool,
}

/// Serves an archive on `connection` to its end.
pub async fn serve(
    connection: ByteStream,
    engine: &Engine,
    container: &str,
    path: PathBuf,
    direction: Direction,
) {
    let place = match engine.pidfd(container) {
        Ok((pidfd, other_users)) => Place { pidfd, other_users },
        Err(error) => return refuse(&connection, error.to_string()).await,
    };
    if !path.is_absolute() {
        let text = format!("{:?} is not an absolute path", path.display());
        return refuse(&connection, text).await;
    }
    let connection = connection.into_inner();
    let made = engine.reaper().watch(|| {
        clone_process(&CloneRequest::default(), || {
            run(&connection, &place, &path, direction)
        })
    });
    drop(place);
    match made {
        Ok((_child, exit)) => {
            let _ = exit.await;
        }
        Err(error) => {
            if let Ok(connection) = ByteStream::new(connection) {
                refuse(&connection, format!("start the archive process: {error}")).await;
            }
        }
    }
}

/// The child.
fn run(connection: &OwnedFd, container: &Place, path: &Path, direction: Direction) -> libc::c_int {
    keep_descriptors(&mut [connection.as_raw_fd(), container.pidfd.as_raw_fd()]);
    let Ok(copy) = connection.try_clone() else {
        return 1;
    };
    let mut stream = File::from(copy);
    let say = |stream: &mut File, reply: &StreamReply| {
        encode_line(reply).is_ok_and(|line| stream.write_all(&line).is_ok())
    };
    let outcome = prepare(connection, container).and_then(|()| match direction {
        Direction::Read => {
            // The first look happens before the answer, so that a path that is not there is an answer.
            let status = fs::metadata(path).at(|| format!("read {}", path.display()))?;
            if !say(&mut stream, &StreamReply::Ready) {
                return Ok(false);
            }
            // Nothing can be said once the archive has begun; without its end mark it is seen to be cut short.
            let _ = read(&mut stream, path, &status);
            Ok(false)
        }
        Direction::Write => {
            let status = fs::metadata(path).at(|| format!("unpack to {}", path.display()))?;
            if !status.is_dir() {
                return Err(StepError::because(
                    format!("unpack to {}", path.display()),
                    "not a directory",
                ));
            }
            if !say(&mut stream, &StreamReply::Ready) {
                return Ok(false);
            }
            write(&stream, path).at(|| format!("unpack to {}", path.display()))?;
            Ok(true)
        }
    });
    let last_word = match outcome {
        Ok(false) => return 0,
        Ok(true) => StreamReply::Ready,
        Err(StepError(message)) => StreamReply::Refused { message },
    };
    i32::from(!say(&mut stream, &last_word))
}

fn prepare(connection: &OwnedFd, container: &Place) -> Result<(), StepError> {
    // SAFETY: F_GETFL and F_SETFL take and give integers only. The agent does not use the connection any more.
    unsafe {
        let flags = libc::fcntl(connection.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(
            connection.as_raw_fd(),
            libc::F_SETFL,
            flags & !libc::O_NONBLOCK,
        );
        libc::umask(0);
        // The container may be able to see this process, but shall not read the agent's memory.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    let step = || "enter the container's file system";
    if container.other_users {
        // Files of others than its users cannot be made there.
        let both = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER;
        setns(container.pidfd.as_fd(), both).at(step)?;
        become_root_of_namespace()?;
    } else {
        setns(container.pidfd.as_fd(), CloneFlags::CLONE_NEWNS).at(step)?;
    }
    nix::unistd::chdir("/").at(step)
}

fn read(stream: &mut File, path: &Path, status: &Metadata) -> io::Result<()> {
    let mut out = Builder::new(io::BufWriter::with_capacity(64 * 1024, stream));
    let name = path.file_name().map_or(PathBuf::from("."), PathBuf::from);
    let mut links = HashMap::new();
    append(&mut out, path, &name, status, &mut links, 0)?;
    out.into_inner()?.flush()
}

/// Appends a file or a directory with everything in it. `links` knows where a file with several names was put first.
fn append<W: io::Write>(
    out: &mut Builder<W>,
    path: &Path,
    name: &Path,
    status: &Metadata,
    links: &mut HashMap<(u64, u64), PathBuf>,
    depth: usize,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(status);
    let kind = status.file_type();
    if kind.is_dir() {
        header.set_size(0);
        out.append_data(&mut header, name, io::empty())?;
        if depth >= DEPTH {
            return Err(io::Error::other("directories are nested too deeply"));
        }
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = name.join(entry.file_name());
            match fs::symlink_metadata(&path) {
                Ok(status) => append(out, &path, &name, &status, links, depth + 1)?,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        return Ok(());
    }
    if kind.is_symlink() {
        header.set_size(0);
        header.set_entry_type(EntryType::Symlink);
        return out.append_link(&mut header, name, fs::read_link(path)?);
    }
    if kind.is_socket() {
        return Ok(());
    }
    if status.nlink() > 1 {
        let identity = (status.dev(), status.ino());
        if let Some(first) = links.get(&identity) {
            header.set_size(0);
            header.set_entry_type(EntryType::Link);
            return out.append_link(&mut header, name, first);
        }
        links.insert(identity, name.to_owned());
    }
    if !kind.is_file() {
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            let number = status.rdev();
            header.set_device_major(libc::major(number))?;
            header.set_device_minor(libc::minor(number))?;
        }
        return out.append_data(&mut header, name, io::empty());
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    // The size in the header must be what follows it, whatever happens to the file.
    let now = file.metadata()?;
    if !now.is_file() {
        return Ok(());
    }
    let size = now.len();
    header.set_size(size);
    let padded = io::Read::take(io::Read::chain(file, io::repeat(0)), size);
    out.append_data(&mut header, name, padded)
}

fn write(stream: &File, path: &Path) -> io::Result<()> {
    let mut archive = Archive::new(io::BufReader::with_capacity(64 * 1024, stream));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive.unpack(path)
}
