//! The Unix sockets that the device surfaces as: the listener for host clients, and the way to host listeners.
//!
//! Paths are kept as a directory descriptor and a name, so that they go on working in a process that has changed its
//! root, and may be longer than `sun_path`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sched::CloneFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, fchdir, unlinkat};

/// Connections that may wait while the guest is not ready.
const BACKLOG: i32 = 128;

/// The listening socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Reserved context id.
    #[error("vsock: guest context id {cid} is reserved; give 3 or more and less than 4294967295")]
    GuestCid {
        /// What was given.
        cid: u32,
    },
    /// The path has no file name.
    #[error("vsock: {} is not the path of a file", path.display())]
    NoFileName {
        /// What was given.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("vsock: {} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// Path of the listening socket.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("vsock: could not {what} {}", path.display())]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Path of the listening socket.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Listener and directory of the sockets.
#[derive(Debug)]
pub struct HostSockets {
    directory: OwnedFd,
    name: OsString,
    listener: UnixListener,
}

impl HostSockets {
    /// Listens at `path`, mode 0600; a stale socket there is replaced.
    ///
    /// # Errors
    /// The path is not usable, or a system call failed.
    pub fn bind(path: &Path) -> Result<Self, VsockError> {
        let failed = |what: &'static str| {
            move |source: io::Error| VsockError::Socket {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let name = path.file_name().ok_or_else(|| VsockError::NoFileName {
            path: path.to_owned(),
        })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let directory: OwnedFd = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(parent)
            .map_err(failed("open the directory of"))?
            .into();
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat)
                if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
                    == SFlag::S_IFSOCK =>
            {
                unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir)
                    .map_err(|e| failed("remove the stale socket")(e.into()))?;
            }
            Ok(_) => {
                return Err(VsockError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(failed("look at")(e.into())),
        }
        let fd = stream_socket().map_err(failed("create a socket for"))?;
        // The directory's descriptor in place of its path, which may be too long for an address.
        let through_descriptor =
            Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        UnixAddr::new(path)
            .or_else(|_| UnixAddr::new(&through_descriptor))
            .and_then(|address| bind(fd.as_raw_fd(), &address))
            .map_err(|e| failed("bind a socket at")(e.into()))?;
        // Before it listens, so that nobody else connects in between.
        fchmodat(
            &directory,
            name,
            Mode::S_IRUSR | Mode::S_IWUSR,
            FchmodatFlags::FollowSymlink,
        )
        .map_err(|e| failed("set the mode of")(e.into()))?;
        Backlog::new(BACKLOG)
            .and_then(|backlog| listen(&fd, backlog))
            .map_err(|e| failed("listen at")(e.into()))?;
        Ok(Self {
            directory,
            name: name.to_owned(),
            listener: fd.into(),
        })
    }

    /// The listener; non-blocking.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next host client that waits, non-blocking in one system call.
    ///
    /// # Errors
    /// As accept4(2); `WouldBlock` when none waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let fd = accept4(
            self.listener.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        // SAFETY: the kernel has just opened it, for this call alone.
        Ok(unsafe { UnixStream::from_raw_fd(fd) })
    }

    /// Makes the directory the calling thread's own working directory, which [`Self::connect`] needs.
    ///
    /// # Errors
    /// unshare(2) or fchdir(2) failed.
    pub fn enter(&self) -> io::Result<()> {
        // Otherwise the working directory of all threads would change.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        Ok(fchdir(&self.directory)?)
    }

    /// Connects to the host listener for a port: `<path>_<port>`. Does not wait.
    ///
    /// # Errors
    /// Nobody listens there, or its backlog is full.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.name.clone();
        name.push(format!("_{port}"));
        let address = UnixAddr::new::<OsStr>(&name)?;
        let fd = stream_socket()?;
        connect(fd.as_raw_fd(), &address)?;
        Ok(fd.into())
    }
}

impl Drop for HostSockets {
    fn drop(&mut self) {
        // A leftover does no harm: whoever starts next replaces it.
        let _ = unlinkat(
            &self.directory,
            self.name.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}
